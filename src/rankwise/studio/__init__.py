"""The studio: a local page in a browser over the runs of a folder, which does what the terminal does."""
