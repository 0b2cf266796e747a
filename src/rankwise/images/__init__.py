"""Images as rows: decoded and checked, resized as the model expects, and augmented."""
