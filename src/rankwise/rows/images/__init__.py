"""Images of rows: decoded, resized, varied."""
