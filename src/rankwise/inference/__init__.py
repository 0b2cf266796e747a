"""Answers from a model: decoding, its cache of keys and values, and the tuned model with its base."""
