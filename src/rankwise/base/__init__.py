"""Base models: found, inspected, loaded, saved."""
