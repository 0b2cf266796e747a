"""The formats of rows."""
