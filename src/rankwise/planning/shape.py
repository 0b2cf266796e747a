"""What a model is made of, as a frozen value: every module that holds weights, and what its blocks keep and compute.

    layers    by the path that transformers gives them, each with its sizes and where it stands in the forward pass
    stacks    runs of equal transformer blocks: how many, how wide, and what a token keeps for the backward pass

`shape_file.py` writes this value as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from rankwise.config.images import patches_of
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.config.modules import Heads, Layer

NEW_TOKENS = "token_adapter.trainable_tokens_delta"
"""What PEFT calls the rows of new tokens in the adapter's file."""


@dataclass(frozen=True)
class Saved:
    """Bytes that one block keeps for its backward pass, of one sequence of S tokens: constant + token S + pair S^2."""

    constant: float
    token: float
    pair: float = 0.0

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
    """Of a model of images by the same keys: bytes that live at once beside what is saved, at the most."""
    reading: Mapping[str, Saved] = field(default_factory=dict)
    """Of a decoder behind an encoder by the same keys: what one block keeps of the encoder's S tokens for the T tokens
    that it writes, token S + pair S T."""
    rest: float = 0.0
    """Of a model of images: operations of the mean block's forward pass beside its layers, for each planned token."""


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


class PlannedTask:
    """What a model is trained for, as far as a plan goes by it: here to continue texts."""

    planned = True
    """Whether its training can be planned at all."""
    unplanned = "its forward pass cannot be simulated without its weights; only the parameters are counted"
    """Why it is not, where it is not."""
    stacks = 1
    """Of blocks."""
    texts = 1
    """Of a document."""
    learns = "answer"
    unit = "row"
    names = "classes"
    targets = "rows"
    """That outputs are counted for."""
    writes = 1
    """Answers that a validation has of each row that it may answer."""
    readings = 1
    """How often a validation reads each row."""
    compiled = True
    """Whether torch's compiler takes its fast form."""
    trimmed = True
    """Whether its fast form computes of the last block only what the head gets."""
    tables = 2
    """Gradients of the table of words that are there at once, where it learns."""
    holes = 1.0
    """Of the usual holes between pieces of memory."""
    padding = ""
    lengths = "median length {0:,}, longest {1:,} tokens"

    def learned(self, tokens: int) -> int:
        """Of a document of so many, those with a loss."""
        return tokens

    def above(self, tokens: int, targets: float) -> float:
        """Positions that the layers above all blocks map."""
        return tokens

    def backward(self, plain: float, adapted: float) -> float:
        """How many times what a block keeps is held on the way through its backward pass, where it runs through an
        adapter: as `plain`, or as `adapted`."""
        return plain

    def learned_share(self, share: float) -> str:
        """For people; `share` is that of tokens with a loss."""
        return f"{share:.0%} of them in the loss"


class Counting(PlannedTask):
    """Of a model without the head of a task, whose parameters alone are counted."""

    planned = False
    unplanned = "memory and time are forecast for models that write texts and for classifiers only"


class Rewriting(PlannedTask):
    """An encoder reads a text and a decoder writes another."""

    stacks = texts = 2
    padding = " with padding"
    lengths = "of each input and output the longer has {0:,} tokens in the median, at most {1:,}"


class Classifying(PlannedTask):
    """Of whole rows."""

    unplanned = Counting.unplanned
    learns = "label"
    writes, readings = 0, 2
    compiled = trimmed = False
    tables, holes = 1, 0.0
    padding = " with padding"

    def above(self, tokens: int, targets: float) -> float:
        return targets

    def backward(self, plain: float, adapted: float) -> float:
        return adapted

    def learned(self, tokens: int) -> int:
        return 1

    def learned_share(self, share: float) -> str:
        return f"one target per {self.unit}"


class TaggingWords(Classifying):
    """Of each word."""

    unit, names, targets = "word", "tags", "tokens"

    def above(self, tokens: int, targets: float) -> float:
        return tokens


CAUSAL, CLASSIFIER, TAGGER, IMAGE_CLASSIFIER, SEQUENCES = (
    "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
    "AutoModelForImageClassification", "AutoModelForSeq2SeqLM",
)  # fmt: skip
COUNTED = Counting()
TASKS: Mapping[str, PlannedTask] = {
    CAUSAL: PlannedTask(), SEQUENCES: Rewriting(), CLASSIFIER: Classifying(), TAGGER: TaggingWords(),
    IMAGE_CLASSIFIER: Classifying(),
}  # fmt: skip
"""By the class of transformers that built the model."""
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
    """Of the matrices of the GGUF file that it was read from, if it can be trained as it lies; 0 elsewhere."""

    @cached_property
    def linear(self) -> tuple[Layer, ...]:
        """The linear layers but the head, as `all-linear` means them."""
        return tuple(one for one in self.layers if one.kind in ("linear", "conv1d") and one.path != self.head)

    @cached_property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def blocks(self) -> Blocks:
        """Those that a causal language model has one stack of; of an encoder with a decoder, the decoder's."""
        return self.stacks[-1]

    @property
    def block_count(self) -> int:
        """Of an encoder and its decoder together."""
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
        return max(("patches", sizes["linear"]), ("convolutions", sizes["conv2d"]), key=lambda one: one[1])[0]

    @property
    def is_encoder(self) -> bool:
        """Whether it reads texts and generates none, so that it is trained as a classifier unless somebody decides
        otherwise."""
        return self.auto_class == "AutoModel" and self.vocabulary > 0 and self.is_measured

    @property
    def nature(self) -> str:
        """What it is before it gets a new head (config/models.py)."""
        if self.image is not None:
            return IMAGES
        return ENCODER if self.is_encoder else NATURES.get(self.auto_class, DECODER)

    @property
    def is_measured(self) -> bool:
        return len(self.stacks) == self.task.stacks and all(stack.saved for stack in self.stacks)

    @cached_property
    def whole(self) -> frozenset[str]:
        """Paths of the layers that are trained whole, and so get no adapter."""
        return frozenset(name.rpartition(".")[0] for name in self.heads)

    def block_layers(self, number: int) -> list[Layer]:
        return [layer for layer in self.layers if layer.block == number]

    def with_new_tokens(self, tokens: int) -> ModelShape:
        """The same shape, in which rows of so many new tokens are trained beside the adapters: in the embedding, and in
        a head that has a weight of its own. A token that the tokenizer has already gets no row, which only the
        tokenizer knows: the counts are at most."""
        if not tokens:
            return self
        tables = [one for one in self.layers if one.kind == "embedding" and one.inputs == self.vocabulary][:1]
        heads = [one for one in self.layers if one.path == self.head and one.shares is None]
        sizes = {f"{one.path}.{NEW_TOKENS}": (tokens, one.outputs) for one in tables}
        sizes |= {f"{one.path}.{NEW_TOKENS}": (tokens, one.inputs) for one in heads}
        return replace(self, heads={**self.heads, **sizes})
