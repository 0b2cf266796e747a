"""What the blocks of an encoder and of its decoder keep for their backward pass, and which tokens each layer maps.

Passes over fake tensors (fake_pass.py) with S tokens read and T written give the numbers of

    bytes of an encoder's block = constant + token S + pair S^2
    bytes of a decoder's block  = constant + token T + pair T^2 + reading S + crossing S T

S and T always differ, so the length of its input tells on which side a layer stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.config.layer import Layer, Side
from rankwise.forward.fake_pass import Trace, make_fake, trace, without_memory
from rankwise.forward.saved_activations import (
    PASSES,
    Stack,
    fitted,
    in_all_blocks,
    lengths_within,
    mean_saved,
    stages_of_layers,
    with_sizes,
)
from rankwise.planning.shape import Saved

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
    paths = [stack.block_path(at) for stack in stacks for at in range(min(stack.short, stack.blocks.count))]
    passes: dict[str, dict[tuple[int, int], Trace]] = {}
    try:
        with without_memory(model, {stack.path: stack.short for stack in stacks}):
            for learns, dtype in PASSES:
                make_fake(model, dtype, everything=learns == "full")
                name = f"{learns} {str(dtype).removeprefix('torch.')}"
                passes[name] = {(given, output): trace(model, given, paths, output=output) for given, output in pairs}
    except Exception:  # as many kinds as there are architectures
        return None
    last = next(iter(passes.values()))[pairs[-1]]
    encoder, decoder = (with_sizes(stack, last, model) for stack in stacks)
    of_encoder = {name: _reading(encoder, read, written[0], each) for name, each in passes.items()}
    of_decoder = {name: _writing(decoder, read, written, each) for name, each in passes.items()}
    encoder = replace(encoder, blocks=replace(encoder.blocks, saved=of_encoder))
    blocks = replace(
        decoder.blocks, saved={name: own for name, (own, _) in of_decoder.items()},
        reading={name: crossing for name, (_, crossing) in of_decoder.items()},
    )  # fmt: skip
    measured = encoder, replace(decoder, blocks=blocks)
    lengths: dict[str, Side] = {}
    for path, length in last.lengths.items():
        lengths[path] = "input" if length == pairs[-1][0] else "output"
    return TwoSided(measured, stages_of_layers(last.stages, measured), in_all_blocks(lengths, measured))


def _reading(stack: Stack, read: Sequence[int], output: int, traces: Mapping[tuple[int, int], Trace]) -> Saved:
    """Of an encoder's mean block, whatever is written."""
    amounts = [traces[given, output].saved for given in read]
    return mean_saved({path: fitted(read, [one[path] for one in amounts]) for path in stack.examples}, stack.examples)


def _writing(
    stack: Stack, read: Sequence[int], written: Sequence[int], traces: Mapping[tuple[int, int], Trace]
) -> tuple[Saved, Saved]:
    """Of a decoder's mean block: what it keeps of its own tokens, and of the encoder's."""
    own: dict[str, Saved] = {}
    crossing: dict[str, Saved] = {}
    (a, b, *_), (t, u, *_) = read, written
    for path in stack.examples:
        saved: dict[tuple[int, int], int] = {pair: one.saved[path] for pair, one in traces.items()}
        low, high = ((saved[b, width] - saved[a, width]) / (b - a) for width in (t, u))
        pair = (high - low) / (u - t)
        crossing[path] = Saved(0.0, low - pair * t, pair)
        left = [saved[a, width] - crossing[path].of(a, width) for width in written]
        own[path] = fitted(written, left)
    examples: Counter[str] = stack.examples
    return mean_saved(own, examples), mean_saved(crossing, examples)
