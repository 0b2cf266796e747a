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
EAGER = frozenset({"gemma2"})
"""Attention in small operations, since its scores are capped: they are kept for each pair of tokens."""


@dataclass(frozen=True)
class BlockParts:
    """Of one block: how many norms the stream goes through, how many numbers the norms of heads take and how many
    roots they have, and what a family's code keeps besides, in numbers."""

    layer_norm: bool
    norms: int
    normed_heads: int
    head_roots: int
    one_input: bool
    besides: Mapping[Form, int]


def parts_of(shape: ModelShape, stack: Blocks) -> BlockParts:
    """By the sizes of what is neither a linear layer nor a table in the first block."""
    first = [layer for layer in shape.layers if layer.kind == "other" and ".0." in layer.path]
    of_stream = [layer for layer in first if layer.bias in (stack.width, 2 * stack.width)]
    of_heads = [layer for layer in first if layer.bias == stack.head_size != stack.width]
    roots = stack.heads + stack.key_value_heads if of_heads else 0
    layer_norm = any(layer.bias == 2 * stack.width for layer in of_stream)
    one_input = shape.family in ONE_INPUT
    return BlockParts(
        layer_norm, max(1, len(of_stream)), roots * stack.head_size, roots, one_input, _besides(shape.family, stack)
    )


def _besides(family: str, stack: Blocks) -> Mapping[Form, int]:
    """GPT-NeoX, Phi-3: v is a part of the layer that made q and k too, so all of that stays though both were turned
    since. GPT-2, GPT-J: the activation is written out in small operations, each with a result of its own. OPT's gives
    what goes on and needs nothing else."""
    plain = {
        "gpt_neox": 3 * stack.queries, "phi3": 2 * stack.queries + stack.keys, "gpt2": 3 * stack.inner,
        "gptj": 3 * stack.inner, "opt": -stack.inner,
    }  # fmt: skip
    return {"fast": 2 * stack.queries if family == "gpt_neox" else 0, "plain": plain.get(family, 0)}


def kept_per_token(
    shape: ModelShape, stack: Blocks, ranks: float, number: int, form: Form, *, whole: bool, longest: int = 0
) -> float:
    """Bytes of a token in one block. `ranks` is the sum over its adapters, `number` the bytes of a number in the
    format of the model, `whole` whether its own weights learn, `longest` the tokens of the longest document."""
    parts = parts_of(shape, stack)
    attention = number * (2 * stack.queries + 2 * stack.keys + parts.besides[form])
    roots = EXACT * (parts.norms * (2 if parts.layer_norm else 1) + parts.head_roots)
    if form == "fast":
        inputs = 1 if parts.one_input else parts.norms
        fed = number * stack.inner * (2 if stack.gated else 1)
        return number * (stack.width * inputs + parts.normed_heads + ranks) + roots + attention + fed
    scores = 2 * EXACT * stack.heads * longest if shape.family in EAGER else EXACT * stack.heads
    fed = number * (ranks + stack.inner * (4 if stack.gated else 2))
    of_heads = (EXACT + number * whole) * parts.normed_heads
    return _plain_norms(parts, stack, number, whole=whole) + of_heads + roots + attention + scores + fed


def _plain_norms(parts: BlockParts, stack: Blocks, number: int, *, whole: bool) -> int:
    """What goes in, in float32 unless it is torch's own layer norm, and what comes out."""
    given = number if parts.layer_norm else EXACT
    inputs = 1 if parts.one_input and parts.layer_norm else parts.norms
    again = number * parts.norms if whole and not parts.layer_norm else 0
    return stack.width * (given * inputs + number * parts.norms + again)


def kept(
    shape: ModelShape, ranks: Mapping[int, float], number: int, form: Form, tokens: int, *, whole: bool,
    recomputed: int = 0, lowest: int = 0, longest: int = 0,
) -> float:  # fmt: skip
    """Bytes of all blocks from `lowest` on, of which the first `recomputed` keep their input alone. `ranks` by the
    block's number."""
    stack = shape.stacks[-1]
    bare = kept_per_token(shape, stack, 0.0, number, form, whole=whole, longest=longest)
    again = min(recomputed, stack.count - lowest)
    own = number * sum(rank for block, rank in ranks.items() if block >= lowest + again)
    total = again * number * stack.width + (stack.count - lowest - again) * bare + own
    if again:  # while it is computed again, one of them keeps everything, and those above keep nothing any more
        one = bare + number * ranks.get(lowest, 0.0)
        total = max(total, again * number * stack.width + one)
    return total * tokens
