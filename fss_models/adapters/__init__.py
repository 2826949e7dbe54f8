"""Adapters: small trainable modules that are put into a frozen trunk."""
