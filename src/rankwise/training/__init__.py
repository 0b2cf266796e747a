"""The loop and its parts. It is handed a module's forward and never asks where a model comes from."""
