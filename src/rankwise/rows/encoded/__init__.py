"""Encoded rows: columns, and batches of them."""
