"""Adapters and merged models for other engines."""
