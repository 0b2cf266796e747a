"""Files of rows, of every kind."""
