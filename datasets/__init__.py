"""One image pair, from disk to batch."""
