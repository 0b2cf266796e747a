"""Text: examples, chat templates, tokenizers, and the loss mask that is made where the tokens are made."""
