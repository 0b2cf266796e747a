"""Where base models come from: the hub, folders, GGUF files, starters. The only home of transformers."""
