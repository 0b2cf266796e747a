"""What a forward pass keeps for its backward pass, in bytes.

In the plain form, a model's own code under autograd, it is what was measured on the model itself (planning/shape.py's
`Saved`), and the low-rank activations of the adapters: b r for each, with b bytes a number and rank r.

In the fast form (kernels/) it is arithmetic: of one token and one block of width d, with queries q, keys and values k
and all outputs f of the feed-forward layer's first part,

    b (d + d) of what goes into the two norms, their roots;  b (q + 2 k);  b q of what attention gives;  b f;  b sum r

Both are compared with what autograd holds (tests/planning/test_activations.py). A block under activation checkpointing
keeps its input alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.base.packed import EXACT
from rankwise.config.method import Form
from rankwise.config.modules import Layer
from rankwise.planning.batches import AtOnce
from rankwise.planning.shape import ModelShape
from rankwise.planning.tasks import OF_TEXTS

WITHOUT_KERNEL = frozenset({"clip"})
"""Families with a fast form that has no kernel for the activation function: the model's own keeps two more tensors as
wide as its feed-forward layer."""
PARALLEL = frozenset({"gpt_neox"})
"""Families whose attention and feed-forward layer read the same input. Keys, values and queries are parts of one
tensor, which is also kept as it was before the rotation."""
DTYPES = {4: "float32", 2: "bfloat16"}
ADAPTED = ("adapter", "conv", "both", "head")
"""What adapters are laid over: linear layers; in a model of images also convolutions but those that read the image, any
layers at all, or none, where a head learns alone. The other thing that learns is the whole model, "full"."""


def block_bytes(shape: ModelShape, amount: AtOnce, ranks: float, number: int, form: Form, learns: str) -> float:
    """Bytes that the mean block keeps of a micro-batch: of an encoder's block and a decoder's the larger amount.
    `ranks` is the sum over its adapters, `number` the bytes of a number, and `learns` what learns. A model whose
    forward pass was not measured is not trained here, and its blocks count as nothing."""
    bare = max((bare for bare, _ in _bare(shape, amount, number, form, learns)), default=0.0)
    return number * ranks * amount.tokens + bare


def _bare(shape: ModelShape, amount: AtOnce, number: int, form: Form, learns: str) -> list[tuple[float, float]]:
    """The bytes that each block keeps without those of adapters, and the bytes of its input alone, in the order of the
    blocks."""
    blocks, key, tokens, longest = shape.blocks, f"{learns} {DTYPES[number]}", amount.tokens, amount.longest
    if blocks.reading:
        encoder, share = shape.stacks[0], amount.output_share
        given, output = tokens * (1 - share), tokens * share
        reads = encoder.saved[key].of(given, longest * (1 - share))
        writes = blocks.saved[key].of(output, longest * share) + blocks.reading[key].of(given, longest * share)
        inputs = number * encoder.width * given, number * blocks.width * output
        return [(reads, inputs[0])] * encoder.count + [(writes, inputs[1])] * blocks.count
    whole, bare = tokens * positions_of(shape), 0.0
    if form == "fast":
        bare = whole * _fast(shape, number)
    elif blocks.saved:
        bare = blocks.saved[key].of(tokens, longest)
    return [(bare, whole * number * blocks.width)] * blocks.count


def saved_bytes(
    shape: ModelShape, amount: AtOnce, ranks: Mapping[int | None, float], number: int, form: Form, learns: str,
    *, lowest: int = 0, recomputed: int = 0,
) -> float:  # fmt: skip
    """Bytes of all blocks from `lowest` on, of which the first `recomputed` keep their input alone. `ranks` by the
    block's number; a decoder's blocks follow those of its encoder."""
    every = _bare(shape, amount, number, form, learns)
    own = {block: number * amount.tokens * rank for block, rank in ranks.items() if block is not None}
    first = lowest + min(recomputed, len(every) - lowest)
    inputs = sum(size for _, size in every[lowest:first])
    total = inputs + sum(bare for bare, _ in every[first:]) + sum(size for block, size in own.items() if block >= first)
    if first > lowest:  # while it is computed again, one of them keeps everything, and those above nothing any more
        total = max(total, inputs + max(every[block][0] + own.get(block, 0.0) for block in range(lowest, first)))
    return total


def positions_of(shape: ModelShape) -> float:
    """Inputs of a block for each planned token: of images, its patches for each of 16 pixels."""
    return next((layer.positions for layer in shape.block_layers(0) if layer.positions), 1.0)


def _fast(shape: ModelShape, number: int) -> float:
    """Bytes of one token in one block, from the sizes of the layers and norms of the first."""
    layers, width = shape.block_layers(0), shape.blocks.width
    by_stage = [[layer for layer in layers if layer.stage == stage] for stage in range(3)]
    read, queries, gates = _outputs(by_stage[0]), by_stage[1][0].inputs, _outputs(by_stage[2])
    norms = [layer for layer in layers if layer.kind == "other" and "Scale" not in layer.class_name]
    of_stream = [layer for layer in norms if layer.bias in (width, 2 * width)]
    of_heads = [layer.bias for layer in norms if layer not in of_stream]
    head_roots = (read + queries) // 2 // of_heads[0] if of_heads else 0  # queries + keys, in heads
    roots = len(of_stream) * (2 if any(layer.bias == 2 * width for layer in of_stream) else 1)
    parallel = shape.family in PARALLEL
    stream = width * (1 if parallel else len(of_stream)) * (2 if shape.family in OF_TEXTS else 1)
    normed = head_roots * of_heads[0] if of_heads else 0
    gates *= 3 if shape.family in WITHOUT_KERNEL else 1
    return number * (stream + read + queries + gates + normed + 2 * queries * parallel) + EXACT * (roots + head_roots)


def _outputs(layers: list[Layer]) -> int:
    return sum(layer.outputs for layer in layers)
