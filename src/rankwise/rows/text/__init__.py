"""Texts of rows: tokenizers, templates, masks."""
