"""Faster forms of mathematics that stands elsewhere in plain form. A kernel sees tensors, and
of modules only the linear layers that it takes them from."""
