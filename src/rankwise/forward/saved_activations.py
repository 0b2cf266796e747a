"""What each block of a model keeps for its backward pass, and in which order its layers are called.

A forward pass over fake tensors (fake_pass.py) is made at three lengths. They give the three numbers of

    bytes of a block = constant + token S + pair S^2        for S tokens

In a pass "adapter" the linear layers learn, so their inputs are saved as an adapter over them would save them; in a
pass "full" everything learns. Of equal blocks that follow each other only the first two are gone through.

Of an encoder and its decoder, passes with S tokens read and T written give the numbers of

    bytes of an encoder's block = constant + token S + pair S^2
    bytes of a decoder's block  = constant + token T + pair T^2 + reading S + crossing S T

S and T always differ, so the length of its input tells on which side a layer stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from rankwise.config.modules import Layer, Side
from rankwise.forward.fake_pass import Trace, make_fake, trace, without_memory
from rankwise.planning.shape import Blocks, Saved

LENGTHS = (32, 64, 96)
Value = TypeVar("Value")
Pass = Callable[..., Trace]
"""A forward pass over the blocks at some paths."""
PASSES = (("adapter", torch.bfloat16), ("adapter", torch.float32), ("full", torch.float32))


@dataclass(frozen=True)
class Stack:
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


def stacks_of(model: Any, *, causal: bool) -> tuple[Stack, ...]:
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
        Stack(path, tuple(_kind(block) for block in part), Blocks(
            len(part), width, 0, causal or "decoder" in path, _window(text),
        ))
        for path, part in outermost
    )  # fmt: skip


def measured(model: Any, stacks: Sequence[Stack], *, masked: bool = False) -> tuple[tuple[Stack, ...], dict[str, int]]:
    """The stacks with what their blocks save, and the stage of every layer that is called. Both come back as they
    were, and empty, where a forward pass needs more than token ids or cannot be faked (experts in float32). The model's
    weights are replaced by fake ones. `masked` rows are padded."""
    lengths = lengths_within(model)
    passes = _passes(model, stacks, [partial(trace, model, length, masked=masked) for length in lengths])
    if passes is None:
        return tuple(stacks), {}
    last = next(iter(passes.values()))[-1]
    saved = [{name: fitted(lengths, _means(stack, each)) for name, each in passes.items()} for stack in stacks]
    sized = (with_sizes(stack, last, model, saved=own) for stack, own in zip(stacks, saved, strict=True))
    return tuple(sized), stages_of_layers(last.stages, stacks)


def _passes(model: Any, stacks: Sequence[Stack], passes: Sequence[Pass]) -> dict[str, list[Trace]] | None:
    """Each of the passes by what learns and the number format; None where they cannot be faked."""
    paths = [stack.block_path(at) for stack in stacks for at in range(min(stack.short, stack.blocks.count))]
    traces: dict[str, list[Trace]] = {}
    try:
        with without_memory(model, {stack.path: stack.short for stack in stacks}):
            for learns, dtype in PASSES:
                make_fake(model, dtype, everything=learns == "full")
                traces[f"{learns} {str(dtype).removeprefix('torch.')}"] = [one(blocks=paths) for one in passes]
    except Exception:  # as many kinds as there are architectures
        return None
    return traces


def _means(stack: Stack, traces: Sequence[Trace]) -> list[float]:
    """Bytes of the mean of all blocks of the stack, each like the example of its kind."""
    examples = stack.examples
    return [sum(count * one.saved[path] for path, count in examples.items()) / examples.total() for one in traces]


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


def with_sizes(stack: Stack, last: Trace, model: nn.Module, **measured: Mapping[str, Saved]) -> Stack:
    """With what was measured of its blocks, their width, and their queries in the mean."""
    examples = stack.examples
    width = next((last.widths[path] for path in examples if path in last.widths), stack.blocks.width)
    queries = sum(count * _queries(model.get_submodule(path), path, last) for path, count in examples.items())
    blocks = replace(stack.blocks, width=width, queries=round(queries / stack.blocks.count), **measured)
    return replace(stack, blocks=blocks)


def _queries(block: nn.Module, path: str, trace: Trace) -> int:
    """What the first layer after attention gets for each token: as many numbers as its queries have."""
    if not any("Attention" in type(part).__name__ for part in block.modules()):
        return 0
    inside = (layer for layer, stage in trace.stages.items() if stage == 1 and layer.startswith(f"{path}."))
    return next((trace.inputs[layer] for layer in inside), 0)


def fitted(lengths: Sequence[int], amounts: Sequence[float]) -> Saved:
    """The parabola through three points."""
    (a, b, c), (x, y, z) = lengths, amounts
    if not a < b < c:
        return Saved(0.0, z / c)
    first, second = (y - x) / (b - a), (z - y) / (c - b)
    pair = (second - first) / (c - a)
    token = first - pair * (a + b)
    return Saved(x - token * a - pair * a * a, token, pair)


def stages_of_layers(stages: Mapping[str, int], stacks: Sequence[Stack]) -> dict[str, int]:
    """Of the layers of all blocks, and of those outside: -1 before the first block that is called and 0 after it."""
    found = in_all_blocks(stages, stacks)
    at = -1
    for path in stages:
        if any(path.startswith(f"{stack.path}.") for stack in stacks):
            at = 0
        else:
            found[path] = at
    return found


def in_all_blocks(known: Mapping[str, Value], stacks: Sequence[Stack]) -> dict[str, Value]:
    """What is known of the layers of the blocks that were gone through, for the layers of all blocks like them."""
    found: dict[str, Value] = {}
    inside = {stack.block_path(number): (stack, number) for stack in stacks for number in range(stack.blocks.count)}
    for path, value in known.items():
        home = next((block for block in inside if path.startswith(f"{block}.")), None)
        if home is None:
            continue
        stack, example = inside[home]
        rest = path.removeprefix(home)
        for number, kind in enumerate(stack.kinds):
            if number == example or (kind == stack.kinds[example] and stack.example(number) == example):
                found[f"{stack.block_path(number)}{rest}"] = value
    return found


SIDES = 2
"""Stacks of blocks: an encoder's and a decoder's."""


@dataclass(frozen=True)
class TwoSided:
    """The stacks with what their blocks save; of every layer its stage, and which tokens it maps."""

    stacks: tuple[Stack, ...]
    stages: Mapping[str, int]
    sides: Mapping[str, Side]

    def with_place(self, layer: Layer) -> Layer:
        """The layer with its side, and with its block counted from the encoder's first."""
        writes = layer.path.startswith(f"{self.stacks[-1].path}.")
        offset = self.stacks[0].blocks.count if writes else 0
        return replace(layer, side=self.sides.get(layer.path, ""), offset=offset)


def measured_sides(model: Any, stacks: Sequence[Stack]) -> TwoSided | None:
    """None where a forward pass cannot be faked, or where the stacks are no encoder and decoder. The model's weights
    are replaced by fake ones."""
    if len(stacks) != SIDES:
        return None
    written = lengths_within(model)
    read = [length - 1 for length in written]
    pairs = [(read[0], length) for length in written] + [(length, written[0]) for length in read[1:]]
    pairs.append((read[1], written[1]))
    passes = _passes(model, stacks, [partial(trace, model, given, output=output) for given, output in pairs])
    if passes is None:
        return None
    last, (first, second) = next(iter(passes.values()))[-1], stacks
    decoded = {name: _writing(read, written, _means(second, each)) for name, each in passes.items()}
    sized = (
        with_sizes(first, last, model, saved={
            name: fitted(read, _means(first, [each[0], *each[3:5]])) for name, each in passes.items()
        }),
        with_sizes(
            second, last, model, saved={name: own for name, (own, _) in decoded.items()},
            reading={name: crossing for name, (_, crossing) in decoded.items()},
        ),
    )  # fmt: skip
    sides: dict[str, Side] = {
        path: "input" if length == pairs[-1][0] else "output" for path, length in last.lengths.items()
    }
    return TwoSided(sized, stages_of_layers(last.stages, sized), in_all_blocks(sides, sized))


def _writing(read: Sequence[int], written: Sequence[int], amounts: Sequence[float]) -> tuple[Saved, Saved]:
    """Of a decoder's mean block: what it keeps of its own tokens, and of the encoder's."""
    (a, b, *_), (t, u, _) = read, written
    own, (wider, _, both) = amounts[:3], amounts[3:]
    low, high = (wider - own[0]) / (b - a), (both - own[1]) / (b - a)
    pair = (high - low) / (u - t)
    crossing = Saved(0.0, low - pair * t, pair)
    left = [amount - crossing.of(a, width) for amount, width in zip(own, written, strict=True)]
    return fitted(written, left), crossing
