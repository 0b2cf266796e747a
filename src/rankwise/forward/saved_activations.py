"""What each block of a model keeps for its backward pass, and in which order its layers are called.

A forward pass over fake tensors (fake_pass.py) is made at three lengths. They give the three numbers of

    bytes of a block = constant + token S + pair S^2        for S tokens

In a pass "adapter" the linear layers learn, so their inputs are saved as an adapter over them would save them; in a
pass "full" everything learns. Of equal blocks that follow each other these passes go through the first two; a survey of
all tells in which order layers are called.

Of an encoder and its decoder, passes with S tokens read and T written give the numbers of

    bytes of an encoder's block = constant + token S + pair S^2
    bytes of a decoder's block  = constant + token T + pair T^2 + reading S + crossing S T

S and T always differ, so the length of its input tells on which side a layer stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from rankwise.forward.fake_pass import (
    Call,
    MemoryPass,
    Survey,
    kept_bytes,
    make_fake,
    read_texts,
    survey,
    without_memory,
)
from rankwise.planning.shape import Blocks, Saved

LENGTHS = (32, 64, 96)
PASSES = (("adapter", torch.bfloat16), ("adapter", torch.float32), ("full", torch.float32))


@dataclass(frozen=True)
class BlockStack:
    """A list of blocks at `path`; blocks of one entry in `kinds` are equal."""

    path: str
    kinds: tuple[Hashable, ...]
    blocks: Blocks

    @property
    def short(self) -> int:
        """How many blocks have every kind of them among them, two at least."""
        return max(2, 1 + max(self.kinds.index(kind) for kind in set(self.kinds)))

    def block_path(self, number: int) -> str:
        return f"{self.path}.{number}"

    def example(self, number: int) -> int:
        """The last of the first blocks that is of the same kind."""
        short = self.kinds[: self.short]
        return len(short) - 1 - short[::-1].index(self.kinds[number])

    @cached_property
    def examples(self) -> Counter[str]:
        """The paths of the blocks that are gone through, with how many each of them stands for."""
        return Counter(self.block_path(self.example(number)) for number in range(self.blocks.count))


def stacks_of(model: Any, *, causal: bool) -> tuple[BlockStack, ...]:
    """The outermost lists of blocks: those that transformers can compute twice, or lists of any modules where a model
    has none of these."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    marked = [(path, part) for path, part in lists if all(isinstance(one, GradientCheckpointingLayer) for one in part)]
    outermost: list[tuple[str, nn.ModuleList]] = []
    for path, part in marked or lists:
        if not any(path.startswith(f"{outer}.") for outer, _ in outermost):
            outermost.append((path, part))
    text = model.config.get_text_config()
    width = getattr(text, "hidden_size", 0)
    width = width if isinstance(width, int) else 0
    return tuple(
        BlockStack(path, tuple(_kind(block) for block in part), Blocks(
            len(part), width, 0, causal or "decoder" in path, _window(text),
        ))
        for path, part in outermost
    )  # fmt: skip


def surveyed(model: Any, stacks: Sequence[BlockStack], call: Call) -> Survey | None:
    """None where a forward pass needs more than the call gives or cannot be faked (experts in float32). The model's
    weights are replaced by fake ones."""
    blocks = [stack.block_path(number) for stack in stacks for number in range(stack.blocks.count)]
    try:
        with without_memory(model, {}):
            make_fake(model, torch.float32, everything=False)
            return survey(model, call, blocks)
    except Exception:  # as many kinds as there are architectures
        return None


def with_saved(model: Any, stacks: Sequence[BlockStack], seen: Survey, *, masked: bool) -> tuple[BlockStack, ...]:
    """The stacks with what their blocks save; none where their passes cannot be faked. `masked` rows are padded."""
    lengths = lengths_within(model)
    passes = _passes(model, stacks, [read_texts(length, masked=masked) for length in lengths])
    return tuple(
        with_sizes(stack, model, seen, saved={
            name: fitted(lengths, _means(stack, each)) for name, each in passes.items()
        }) for stack in stacks if passes
    )  # fmt: skip


def _passes(model: Any, stacks: Sequence[BlockStack], calls: Sequence[Call]) -> dict[str, list[MemoryPass]]:
    """Each of the calls by what learns and the number format; none where they cannot be faked."""
    paths = [stack.block_path(at) for stack in stacks for at in range(min(stack.short, stack.blocks.count))]
    passes: dict[str, list[MemoryPass]] = {}
    try:
        with without_memory(model, {stack.path: stack.short for stack in stacks}):
            for learns, dtype in PASSES:
                make_fake(model, dtype, everything=learns == "full")
                key = f"{learns} {str(dtype).removeprefix('torch.')}"
                passes[key] = [kept_bytes(model, call, paths) for call in calls]
    except Exception:  # as many kinds as there are architectures
        return {}
    return passes


def _means(stack: BlockStack, passes: Sequence[MemoryPass]) -> list[float]:
    """Bytes of the mean of all blocks of the stack, each like the example of its kind."""
    examples = stack.examples
    return [sum(count * one.saved[path] for path, count in examples.items()) / examples.total() for one in passes]


def lengths_within(model: Any) -> list[int]:
    """Three lengths that the model's positions allow."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTHS[-1]
    return [max(number, min(limit, LENGTHS[-1]) * number // 3) for number in (1, 2, 3)]


def _kind(block: nn.Module) -> Hashable:
    """Equal for blocks that compute the same: by their parts, the sizes of weights, and the settings of each part but
    its number."""
    return tuple(
        (
            path, type(part).__name__, tuple(tuple(weight.shape) for weight in part.parameters(recurse=False)),
            tuple(sorted(
                (key, value) for key, value in vars(part).items()
                if isinstance(value, bool | str) and not key.startswith("_")
            )),
        )
        for path, part in block.named_modules()
    )  # fmt: skip


def _window(text: Any) -> int | None:
    """Tokens that attention looks back, where no block sees all."""
    window, kinds = getattr(text, "sliding_window", None), set(getattr(text, "layer_types", None) or ())
    everywhere = kinds == {"sliding_attention"} or (not kinds and getattr(text, "use_sliding_window", True))
    return window if isinstance(window, int) and everywhere else None


def with_sizes(stack: BlockStack, model: nn.Module, seen: Survey, **with_saved: Mapping[str, Saved]) -> BlockStack:
    """With what was measured of its blocks, their width, and their queries in the mean."""
    paths = [stack.block_path(number) for number in range(stack.blocks.count)]
    width = next((seen.widths[path] for path in paths if path in seen.widths), stack.blocks.width)
    queries = sum(_queries(model.get_submodule(path), path, seen) for path in paths) / len(paths)
    return replace(stack, blocks=replace(stack.blocks, width=width, queries=round(queries), **with_saved))


def _queries(block: nn.Module, path: str, seen: Survey) -> int:
    """What the first layer after attention gets for each token: as many numbers as its queries have."""
    if not any("Attention" in type(part).__name__ for part in block.modules()):
        return 0
    inside = (layer for layer, stage in seen.stages.items() if stage == 1 and layer.startswith(f"{path}."))
    return next((seen.inputs[layer] for layer in inside), 0)


def fitted(lengths: Sequence[int], amounts: Sequence[float]) -> Saved:
    """The parabola through three points."""
    (a, b, c), (x, y, z) = lengths, amounts
    if not a < b < c:
        return Saved.by_length(0.0, z / c)
    first, second = (y - x) / (b - a), (z - y) / (c - b)
    pair = (second - first) / (c - a)
    token = first - pair * (a + b)
    return Saved.by_length(x - token * a - pair * a * a, token, pair)


SIDES = 2
"""Stacks of blocks: an encoder's and a decoder's."""


def pairs_within(model: Any) -> list[tuple[int, int]]:
    """Tokens that an encoder reads and a decoder writes, in the passes that tell what each keeps."""
    written = lengths_within(model)
    read = [length - 1 for length in written]
    pairs = [(read[0], length) for length in written] + [(length, written[0]) for length in read[1:]]
    return [*pairs, (read[1], written[1])]


def measured_sides(model: Any, stacks: Sequence[BlockStack], seen: Survey) -> tuple[BlockStack, ...]:
    """The stacks of an encoder and its decoder with what their blocks save; none where their passes cannot be faked."""
    written = lengths_within(model)
    read = [length - 1 for length in written]
    passes = _passes(model, stacks, [read_texts(given, output=output) for given, output in pairs_within(model)])
    if not passes:
        return ()
    first, second = stacks
    decoded = {name: _decoder_saved(read, written, _means(second, each)) for name, each in passes.items()}
    return (
        with_sizes(first, model, seen, saved={
            name: fitted(read, _means(first, [each[0], *each[3:5]])) for name, each in passes.items()
        }),
        with_sizes(
            second, model, seen, saved={name: own for name, (own, _) in decoded.items()},
            reading={name: crossing for name, (_, crossing) in decoded.items()},
        ),
    )  # fmt: skip


def _decoder_saved(read: Sequence[int], output_lengths: Sequence[int], amounts: Sequence[float]) -> tuple[Saved, Saved]:
    """What the mean block of a decoder keeps for the backward pass: for its own tokens, and for the encoder's."""
    (a, b, *_), (t, u, _) = read, output_lengths
    own, (wider, _, both) = amounts[:3], amounts[3:]
    low, high = (wider - own[0]) / (b - a), (both - own[1]) / (b - a)
    pair = (high - low) / (u - t)
    crossing = Saved(0.0, low - pair * t, pair)
    left = [amount - crossing.of(a, width) for amount, width in zip(own, output_lengths, strict=True)]
    return fitted(output_lengths, left), Saved.by_length(*crossing)
