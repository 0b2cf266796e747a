"""Base models from the hub, folders, GGUF files and starters. Most uses of transformers are here."""
