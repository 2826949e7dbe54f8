"""What may be trained inside a frozen trunk."""
