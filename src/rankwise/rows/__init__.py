"""Rows: files read, recognised, checked, encoded and dealt into batches."""
