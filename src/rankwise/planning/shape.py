"""What a model is made of, as a frozen value: every module that holds weights, and what its blocks keep and compute.

    layers    by the path that transformers gives them, each with its sizes and where it stands in the forward pass
    stacks    runs of equal transformer blocks: how many, how wide, and what a token keeps for the backward pass

A shape that was built once is stored as JSON, without the fields that have their default, so a plan takes seconds only
the first time. A file of this cache is named for the SHA-256 of the config that the shape was built from, of the
version of transformers that built it, and of what a shape records. One that cannot be read is built anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from rankwise.base.config_check import checked_config
from rankwise.config.images import patches_of
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.config.modules import Heads, Layer
from rankwise.errors import ResourceError
from rankwise.planning.tasks import COUNTED, SEQUENCES, TAGGER, TASKS, PlannedTask
from rankwise.system.cache import cache_folder
from rankwise.system.extras import installed_version
from rankwise.system.files import write_atomic

NEW_TOKENS = "token_adapter.trainable_tokens_delta"
"""What PEFT calls the rows of new tokens in the adapter's file."""
RECORDED = 4
"""Raised whenever a shape records other things than before, or measures them otherwise."""


class Saved(NamedTuple):
    """Bytes that one block keeps for its backward pass, of one sequence of S tokens: constant + token S + pair S^2."""

    constant: float
    token: float
    pair: float = 0.0

    @classmethod
    def by_length(cls, constant: float, token: float, pair: float = 0.0) -> Saved:
        """To thousandths, as it is stored."""
        return cls(round(constant, 3), round(token, 3), round(pair, 3))

    def of(self, tokens: float, longest: float = 0) -> float:
        """`tokens` in sequences of at most `longest`."""
        return self.constant + tokens * (self.token + self.pair * longest)


@dataclass(frozen=True)
class Blocks:
    """A stack of `count` transformer blocks. `saved` has what the model's own code keeps in the mean one of them, by
    what learns ("adapter" or "full") and by number format, without an adapter's own activations."""

    count: int
    width: int
    queries: int
    """Numbers of a token's queries, in all heads together."""
    causal: bool
    window: int | None = None
    """Tokens that attention looks back, where no block sees all."""
    saved: Mapping[str, Saved] = field(default_factory=dict)
    """Keys are "adapter float32", "adapter bfloat16" and "full float32". In a model of images "conv", "both"
    and "head" stand beside "adapter", as ADAPTED has them (activations.py)."""
    passing: Mapping[str, Saved] = field(default_factory=dict)
    """The most bytes that live at once beside what is saved, in a model of images; keys are as in `saved`."""
    reading: Mapping[str, Saved] = field(default_factory=dict)
    """What one block of a decoder behind an encoder keeps of the encoder's S tokens for the T tokens that it writes,
    token S + pair S T; keys are as in `saved`."""
    rest: float = 0.0
    """Operations of the mean block's forward pass beside its layers, for each planned token of a model of images; 0 for
    other models."""


@dataclass(frozen=True)
class NewHead:
    """The head of a classifier that a model is to get."""

    outputs: int
    """How many classes there are, or 1 for a number."""
    new_pooler: bool = False
    """Whether the model's weights lack its pooler, which is then drawn anew and trained whole too."""
    image: int | None = None
    """Side in pixels of the images that it is trained on; None for texts."""
    words: bool = False
    """Whether it has outputs for each word, and not for a whole row."""
    pooled: bool = False
    """Whether it reads a vector that is pooled from all tokens, so that the model's pooler is not there."""


NATURES = {SEQUENCES: BOTH}
"""By the same, of models without a new head that generate texts; every other is a decoder."""


@dataclass(frozen=True)
class ModelShape:
    name: str
    family: str
    """model_type of its config.json."""
    auto_class: str
    """The class of transformers that built it. A model without a task's head is AutoModel's."""
    layers: tuple[Layer, ...]
    """In the model's order."""
    stacks: tuple[Blocks, ...]
    vocabulary: int
    """0 where there is none, as with images."""
    context: int | None
    head: str | None
    """The path of the layer that makes logits, which `all-linear` leaves alone."""
    outputs: int | None = None
    """How many numbers a classifier predicts for a row; None for other models."""
    heads: Heads = field(default_factory=dict)
    """The weights of a classifier that are trained whole beside an adapter."""
    image: int | None = None
    """Side in pixels of the images that it reads; None for a model of texts."""
    file_bytes: int = 0
    """Bytes of the matrices in the GGUF file that the model was read from, if it can be trained as it lies there;
    otherwise 0."""

    @cached_property
    def linear(self) -> tuple[Layer, ...]:
        """The linear layers but the head, as `all-linear` means them."""
        return tuple(one for one in self.layers if one.kind in ("linear", "conv1d") and one.path != self.head)

    @cached_property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def blocks(self) -> Blocks:
        """The blocks of a causal language model, which has one stack of them; in an encoder with a decoder, the
        decoder's."""
        return self.stacks[-1]

    @property
    def block_count(self) -> int:
        """How many blocks the model has, those of an encoder and its decoder together."""
        return sum(stack.count for stack in self.stacks)

    @property
    def words(self) -> bool:
        """Whether a classifier predicts for each word, and not for a whole row."""
        return self.auto_class == TAGGER

    @property
    def task(self) -> PlannedTask:
        return TASKS.get(self.auto_class, COUNTED)

    @property
    def patches(self) -> int:
        """The planned tokens of an image, as training counts them."""
        return patches_of(self.image or 1)

    @property
    def mostly(self) -> str | None:
        """What most operations of a model of images are: products of "patches" with matrices, or "convolutions"."""
        if self.image is None:
            return None
        sizes = {kind: sum(one.inputs * one.outputs * (one.positions or 0) for one in self.layers if one.kind == kind)
                 for kind in ("linear", "conv2d")}  # fmt: skip
        return max(("patches", sizes["linear"]), ("convolutions", sizes["conv2d"]), key=lambda item: item[1])[0]

    @property
    def nature(self) -> str:
        """What it is before it gets a new head (config/models.py). An encoder reads texts and generates none, so that
        it is trained as a classifier unless somebody decides otherwise."""
        if self.image is not None:
            return IMAGES
        reads = self.auto_class == "AutoModel" and self.vocabulary > 0 and self.is_measured
        return ENCODER if reads else NATURES.get(self.auto_class, DECODER)

    @property
    def is_measured(self) -> bool:
        return len(self.stacks) == self.task.stacks and all(stack.saved for stack in self.stacks)

    @cached_property
    def full_paths(self) -> frozenset[str]:
        """Paths of the layers that are trained whole, and so get no adapter."""
        return frozenset(name.rpartition(".")[0] for name in self.heads)

    def block_layers(self, number: int) -> list[Layer]:
        return [layer for layer in self.layers if layer.block == number]

    def with_new_tokens(self, tokens: int) -> ModelShape:
        """This shape with rows of so many new tokens trained beside the adapters, in the embedding and in a head that
        has a weight of its own. The counts are upper bounds, since a token that the tokenizer has already gets no row,
        which only the tokenizer knows."""
        if not tokens:
            return self
        tables = [one for one in self.layers if one.kind == "embedding" and one.inputs == self.vocabulary][:1]
        heads = [one for one in self.layers if one.path == self.head and one.shares is None]
        sizes = {f"{one.path}.{NEW_TOKENS}": (tokens, one.outputs) for one in tables}
        sizes |= {f"{one.path}.{NEW_TOKENS}": (tokens, one.inputs) for one in heads}
        return replace(self, heads={**self.heads, **sizes})


Build = Callable[[dict[str, Any], str, str, NewHead | None], ModelShape]
"""A config, the model's name, the file that the config was read from and the head that the model gets, to its shape."""


@cache
def _stored() -> TypeAdapter[ModelShape]:
    return TypeAdapter(ModelShape)


def shape_to_json(shape: ModelShape) -> dict[str, Any]:
    return _stored().dump_python(shape, mode="json", exclude={"name"}, exclude_defaults=True)


def shape_from_json(stored: Any, name: str) -> ModelShape:
    """ValueError or TypeError where `stored` is not what `shape_to_json` makes."""
    return _stored().validate_python(stored | {"name": name})


def cached_shape(
    config: dict[str, Any], name: str, where: str, build: Build, head: NewHead | None = None
) -> ModelShape:
    settings = checked_config(config, where)
    key = json.dumps([RECORDED, installed_version("transformers"), settings, head and asdict(head)], sort_keys=True)
    file = cache_folder() / "shapes" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, TypeError, RecursionError):
        return shape_from_json(json.loads(file.read_text(encoding="utf-8")), name)
    shape = build(settings, name, where, head)
    with suppress(OSError, ResourceError):  # where nothing can be written, it is built each time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(shape_to_json(shape), separators=(",", ":")).encode())
    return shape
