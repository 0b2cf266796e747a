"""What a forward pass keeps for its backward pass, by arithmetic, in bytes of one token and one block.

In the fast form (kernels/), with b bytes a number, width d, queries q, keys and values k, feed-forward f (twice where
it is gated) and adapters of ranks r:

    b (d + d) of what goes into the two norms, their roots;  b (q + 2 k);  b q of what attention gives;  b f;  b sum r

The plain form is the model's own code under autograd. It keeps what each norm gives too, numbers of norms in float32,
what attention gives and its normalisers, and of the feed-forward layer what goes into the activation, what comes out,
and their product. Where the weights themselves learn, what a norm's weight is multiplied with comes to that.

Both were compared with what autograd holds (tests/planning/test_activations.py). A block that is computed twice keeps
what goes into it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rankwise.planning.shape import Blocks, ModelShape

Form = Literal["fast", "plain"]
EXACT = 4
"""Bytes of a number in float32."""
ONE_INPUT = frozenset({"gpt_neox", "gptj"})
"""Attention and feed-forward layer begin from one and the same x."""


@dataclass(frozen=True)
class BlockParts:
    """Of one block: how many norms the stream goes through, and how many numbers the norms of heads take."""

    layer_norm: bool
    norms: int
    normed_heads: int
    one_input: bool


def parts_of(shape: ModelShape, stack: Blocks) -> BlockParts:
    """By the sizes of what is neither a linear layer nor a table in the first block."""
    first = [layer for layer in shape.layers if layer.kind == "other" and ".0." in layer.path]
    of_stream = [layer for layer in first if layer.bias in (stack.width, 2 * stack.width)]
    of_heads = [layer for layer in first if layer.bias == stack.head_size != stack.width]
    heads = stack.heads * stack.head_size + stack.key_value_heads * stack.head_size if of_heads else 0
    layer_norm = any(layer.bias == 2 * stack.width for layer in of_stream)
    return BlockParts(layer_norm, max(1, len(of_stream)), heads, shape.family in ONE_INPUT)


def kept_per_token(
    shape: ModelShape, stack: Blocks, ranks: float, number: int, form: Form, *, whole: bool
) -> float:  # fmt: skip
    """Bytes of a token in one block. `ranks` is the sum over its adapters, `number` the bytes of a number in the
    format of the model, `whole` whether its own weights learn."""
    parts = parts_of(shape, stack)
    queries, keys = stack.heads * stack.head_size, stack.key_value_heads * stack.head_size
    attention = number * (2 * queries + 2 * keys) + number * parts.normed_heads
    roots = EXACT * parts.norms * (2 if parts.layer_norm else 1)
    if form == "fast":
        inputs = 1 if parts.one_input else parts.norms
        fed = number * stack.inner * (2 if stack.gated else 1)
        return number * stack.width * inputs + roots + attention + fed + number * ranks
    return (
        _plain_norms(parts, stack, number, whole=whole)
        + roots
        + attention
        + EXACT * stack.heads
        + number * (ranks + stack.inner * (4 if stack.gated else 2))
    )


def _plain_norms(parts: BlockParts, stack: Blocks, number: int, *, whole: bool) -> int:
    """What goes in, in float32 unless it is torch's own layer norm, and what comes out."""
    given = number if parts.layer_norm else EXACT
    inputs = 1 if parts.one_input and parts.layer_norm else parts.norms
    again = number * parts.norms if whole and not parts.layer_norm else 0
    return stack.width * (given * inputs + number * parts.norms + again)


def kept(
    shape: ModelShape, ranks: Mapping[int, float], number: int, form: Form, tokens: int, *, whole: bool,
    recomputed: int = 0, lowest: int = 0,
) -> float:  # fmt: skip
    """Bytes of all blocks from `lowest` on, of which the first `recomputed` keep their input alone. `ranks` by the
    block's number."""
    stack = shape.stacks[-1]
    bare = kept_per_token(shape, stack, 0.0, number, form, whole=whole)
    again = min(recomputed, stack.count - lowest)
    own = number * sum(rank for block, rank in ranks.items() if block >= lowest + again)
    total = again * number * stack.width + (stack.count - lowest - again) * bare + own
    if again:  # while it is computed again, one of them keeps everything
        total += bare + number * ranks.get(lowest, 0.0)
    return total * tokens
