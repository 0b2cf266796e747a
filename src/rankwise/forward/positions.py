"""How many tokens a model's position embeddings have room for."""

from __future__ import annotations

from torch import nn


def usable_positions(module: nn.Module) -> int | None:
    """The most tokens that position embeddings have room for, where the first of them are reserved: RoBERTa and its kin
    number the tokens of a text from the position after that of padding, so of 514 positions 512 can be used."""
    reserved = [
        part.num_embeddings - part.padding_idx - 1
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding) and name.endswith("position_embeddings") and part.padding_idx is not None
    ]
    return min(reserved, default=None)
