"""What new tokens add to a plan: their rows in the embedding, and in a head that has a weight of its own.

A token that the tokenizer has already gets no row, which only the tokenizer knows: the counts are at most.
"""

from __future__ import annotations

from dataclasses import replace

from rankwise.planning.shape import ModelShape

ROWS = "token_adapter.trainable_tokens_delta"
"""What PEFT calls them in the adapter's file."""


def with_new_tokens(shape: ModelShape, tokens: int) -> ModelShape:
    """The same shape, in which the rows of so many tokens are trained beside the adapters."""
    if not tokens:
        return shape
    tables = [one for one in shape.layers if one.kind == "embedding" and one.inputs == shape.vocabulary][:1]
    heads = [one for one in shape.layers if one.path == shape.head and one.shares is None and not shape.is_classifier]
    sizes = {f"{one.path}.{ROWS}": (tokens, one.outputs) for one in tables}
    sizes |= {f"{one.path}.{ROWS}": (tokens, one.inputs) for one in heads}
    return replace(shape, heads={**shape.heads, **sizes})


def has_new_tokens(shape: ModelShape) -> bool:
    """Whether rows of new tokens are trained, which the fused kernels do not know."""
    return any(name.endswith(ROWS) for name in shape.heads)
