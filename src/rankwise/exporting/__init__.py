"""Export of adapters and merged models for other engines."""
