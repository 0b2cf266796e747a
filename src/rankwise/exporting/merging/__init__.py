"""Adapters merged into the files of their base, tensor by tensor, and the proof that a merge is what it claims."""
