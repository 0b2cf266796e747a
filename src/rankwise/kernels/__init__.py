"""Faster forms of mathematics that stands elsewhere in plain form. A kernel sees tensors and nothing else."""
