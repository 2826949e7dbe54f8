"""What methods share that compare a query with masked support features: prior masks, masked means, trunks."""
