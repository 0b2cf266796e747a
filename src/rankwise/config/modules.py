"""The modules of a model, of one in memory and of a plan alike: what targets need to know of them (`Seen`), and, of
those that hold weights, the sizes and the position that a plan counts with (`Layer`).

A weight (O, I) maps I inputs to O outputs. An embedding has I rows of O numbers; a convolution's I is channels times
kernel. A tied head reads the embedding's weight and has none of its own. Experts are one parameter that holds
a weight (O, I) of each expert of a block.

A stem or a patch embedding reads the image, as the head writes the logits: `all-conv` leaves the one alone as
`all-linear` does the other. Both can be named. On EfficientNet-Lite0 at 112 pixels, an adapter over the stem too saves
11 % more activations and takes 28 % more time, since the gradient then goes through the largest images. Its accuracy
was better in three seeds at 64 pixels, by 1.7 to 3.7 points, and worse in three at 112, by 0.3, 3.7 and 26.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rankwise.errors import some

AUTO, ALL_LINEAR, ALL_CONV = "auto", "all-linear", "all-conv"
"""Targets that are no names."""
HostKind = Literal["linear", "conv1d", "conv2d", "embedding", "experts"]
"""Kinds of layers that can have an adapter. A conv1d is GPT-2's linear layer, whose weight is stored as (I, O), and
experts are the weights of all experts of a block in one parameter (experts.py), by the path of that parameter."""
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
MOST_CHANNELS = 4
"""Channels that an image may have."""
Kind = Literal["linear", "conv1d", "conv2d", "embedding", "experts", "other"]
"""`other` holds weights that no adapter is laid over: norms, positions, single vectors."""
Position = tuple[int, int]
"""A block and a stage inside it; positions compare from input to output."""
Heads = Mapping[str, tuple[int, ...]]
"""Sizes of the weights of modules that are trained whole beside an adapter, by their names in the model."""
Side = Literal["", "input", "output"]
"""Which tokens a layer of an encoder with a decoder maps: those that the encoder reads, as the keys and values of
cross-attention also do, or those that the decoder writes. Empty for all other models."""
BEFORE, AFTER = (-1, 0), (1 << 30, 0)


@dataclass(frozen=True)
class Layer:
    """A module with weights. `stage` counts the different inputs that layers of the same block were called with before
    this one, so layers that read one tensor side by side share a stage; outside blocks it is -1 before and 0 after
    them. It is None for a layer that the forward pass never calls, or where no forward pass was made."""

    path: str
    kind: Kind
    inputs: int = 0
    outputs: int = 0
    bias: int = 0
    """Parameters of the bias; of `other`, all of its parameters."""
    shares: str | None = None
    """The path of the layer whose weight this one reads."""
    parts: tuple[int, ...] = ()
    """Outputs of the query, the key and the value, where one layer makes all three."""
    kernel: tuple[int, int] | None = None
    """Height and width, for a convolution over images."""
    class_name: str = ""
    """The module's class, for `other` alone."""
    problem: str = ""
    """Why no adapter can be laid over it, for a convolution that is `other`."""
    stacked: tuple[str, ...] = ()
    """Names of its parameters that hold the weights of several experts and cannot be adapted, for `other` alone."""
    experts: int = 0
    """How many experts a parameter of kind `experts` holds, whose path is that of the parameter."""
    stage: int | None = None
    positions: float | None = None
    """In a model of images, how many inputs it maps for each planned token: the pixels that a convolution makes, or an
    encoder's own patches. None in a model of texts, where it is one."""
    side: Side = ""
    offset: int = 0
    """Blocks that the forward pass goes through before the stack of this one: of a decoder, those of its encoder."""

    @property
    def parameters(self) -> int:
        return (0 if self.shares else self.inputs * self.outputs * max(1, self.experts)) + self.bias

    @property
    def channels(self) -> int:
        """Input channels of a convolution over images."""
        return 0 if self.kernel is None else self.inputs // math.prod(self.kernel)

    @cached_property
    def block(self) -> int | None:
        """The number of the layer's block among all blocks in the order of the forward pass: the first number in the
        path plus `offset`; None for a path without a number."""
        number = layer_number(self.path)
        return None if number is None else number + self.offset

    @property
    def position(self) -> Position | None:
        """Block and stage in which the layer is called, or that it is before or after all blocks; None if unknown."""
        if self.stage is None:
            return None
        if self.block is None:
            return BEFORE if self.stage < 0 else AFTER
        return self.block, self.stage


@dataclass(frozen=True)
class Seen:
    """What targets need to know about a module.

    `kind` is None for a module that cannot be adapted, and `name` is its class. `tied` marks a linear layer that shares
    an embedding's weight, and `head` the layer that computes the logits. `channels` are the input channels of a
    convolution, and `problem` says why a convolution cannot be adapted. `stacked` are the names of a module's
    parameters that hold the weights of several experts each and cannot be adapted (experts.py).
    """

    kind: HostKind | None
    name: str
    tied: bool = False
    head: bool = False
    channels: int = 0
    problem: str = ""
    stacked: tuple[str, ...] = ()


Modules = Mapping[str, Seen]
"""Modules by path, in the model's order."""


@dataclass(frozen=True)
class Selection:
    """The layers that targets mean: `paths` in the model's order. `notes` are sentences about names that were
    understood, and about layers that were left out."""

    paths: list[str]
    notes: list[str]


def layer_number(path: str) -> int | None:
    """Number of the block that a module belongs to: the first number in its path."""
    number = NUMBER.search(path)
    return None if number is None else int(number[1])


TOWERS = frozenset({
    "vision_tower", "vision_model", "visual", "vision_backbone", "vision_encoder", "image_encoder", "image_newline",
    "audio_tower", "audio_model", "audio_encoder", "multi_modal_projector", "mm_projector", "connector",
    "vision_embed_tokens", "embed_vision", "embed_audio",
})  # fmt: skip
"""Names of the modules by which language models read images and sounds."""


def linear_layers(modules: Modules, *, also_head: bool = False) -> list[str]:
    """What `all-linear` means: in a language model that reads images too, the layers of the language model."""
    every = [path for path, seen in modules.items()
             if seen.kind in ("linear", "conv1d") and (also_head or not seen.head)]  # fmt: skip
    towers = set(tower_layers(modules))
    return [path for path in every if path not in towers]


def tower_layers(modules: Modules) -> list[str]:
    """Linear layers of the towers beside a language model. A model that is a tower itself has none of these."""
    linear = [path for path, seen in modules.items() if seen.kind in ("linear", "conv1d") and not seen.head]
    inside = [path for path in linear if not TOWERS.isdisjoint(path.split("."))]
    return inside if len(inside) < len(linear) else []


def inner_convolutions(modules: Modules) -> list[str]:
    reading = set(image_readers(modules))
    return [path for path, seen in modules.items() if seen.kind == "conv2d" and path not in reading]


def image_readers(modules: Modules) -> list[str]:
    """Convolutions with as many input channels as the first one of the model, where these can be an image's."""
    channels = {path: seen.channels for path, seen in modules.items() if seen.kind == "conv2d"}
    first = next(iter(channels.values()), 0)
    return [path for path, count in channels.items() if count == first] if first <= MOST_CHANNELS else []


def left_out(paths: list[str], modules: Modules) -> list[str]:
    """Which convolutions among `paths` cannot be adapted, and why."""
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        if modules[path].problem:
            problems[modules[path].problem].append(path)
    return [
        f"{_counted(layers)} that cannot be adapted ({some(layers, 3)}): {problem}"
        for problem, layers in problems.items()
    ]


def left_out_of_all(paths: list[str], modules: Modules) -> list[str]:
    """Which convolutions among `paths` the target `all-conv` leaves out, and why: those that read the image, and those
    that cannot be adapted."""
    here = set(paths)
    reading = [path for path in image_readers(modules) if path in here]
    image = [f"{_counted(reading)} that {'reads' if len(reading) == 1 else 'read'} the image ({some(reading, 3)})"]
    return (image if reading else []) + left_out(paths, modules)


def no_inner_convolution(modules: Modules) -> str:
    """Why `all-conv` matches nothing in this model."""
    reasons = left_out_of_all(list(modules), modules)
    if not reasons:
        return f'target "{ALL_CONV}" matches no layer of this model, which has no convolutions. Use {ALL_LINEAR}.'
    return (
        f'target "{ALL_CONV}" matches no layer of this model: it leaves out {"; and ".join(reasons)}. Use {ALL_LINEAR}.'
    )


def _counted(paths: list[str]) -> str:
    return f"{len(paths)} convolution{'' if len(paths) == 1 else 's'}"
