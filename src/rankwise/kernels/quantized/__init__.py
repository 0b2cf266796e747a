"""Frozen weights that are stored in fewer bits, and how each format becomes numbers again."""
