"""From a config.json to the shape of the model that transformers makes of it, a page for each group of families."""
