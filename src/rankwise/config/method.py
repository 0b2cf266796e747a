"""Settings of a fine-tuning method, as the rest of the package sees them.

What differs between methods and needs no torch is answered here, so that nobody has to ask which method it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from rankwise.config.base import Flag, Label
from rankwise.config.incompatible import Compatible
from rankwise.config.models import ModelConfig
from rankwise.config.modules import AFTER, Heads, Layer, Modules, Position, Selection
from rankwise.config.parameters import NO_HEADS, Parameters
from rankwise.errors import ConfigError

Form = Literal["fast", "plain"]
"""How a step is computed: by fused kernels, or as the model's own code does."""
ASKED_SEPARATELY = "{model} is asked alone, since it needs a model of its own."


@dataclass(frozen=True)
class Card:
    """A way to use a method, as the page offers it: in one sentence, with the settings that it stands for."""

    name: str
    title: str
    sentence: str
    settings: Mapping[str, Any]


class MethodConfig(Compatible):
    sections = ("adapter",)
    start_from: Annotated[
        str | None, Flag("--from"), Label("Begin with an adapter", "more")
    ] = Field(None, min_length=1)  # fmt: skip
    """Continue training an existing adapter: a finished run (name or folder) or a PEFT adapter's folder. Its base
    model is used, unless you name another one. Its layers, ranks and scale are kept; other values for them are
    rejected."""
    cards: ClassVar[tuple[Card, ...]]
    named: ClassVar[str]
    """The method's name as a setting, and what it is where the name does not say it."""
    artifact: ClassVar[Literal["adapter", "model"]]
    """What is written, and the folder of a finished run that it lies in."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """By activity, or by format of an export, why nothing that was trained so is used for it: a sentence, in which
    `{model}` is what was trained and `{folder}` where it lies. Artifacts refuse by it."""
    auto_rate: ClassVar[float]
    """What the learning rate `auto` is at width 576, for language models; training/trainer.py says why."""
    classifier_rate: ClassVar[float]
    """What the learning rate `auto` is at width 576, for classifiers."""
    image_rate: ClassVar[float | None] = None
    """What the learning rate `auto` is at width 576 for classifiers of images; None where it is `classifier_rate`."""
    text_rate: ClassVar[float | None] = None
    """What the learning rate `auto` is at width 576 for classifiers of texts, whose head is fitted first; None where it
    is `classifier_rate`."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Tags of the model card, beside those that every adapter has."""
    base_gradients: ClassVar[int] = 0
    """Gradients of each of the base's own weights."""
    averages: ClassVar[int] = 0
    """Moving averages of each trained parameter, beside those of the optimizer."""
    lowest: ClassVar[Position] = AFTER
    """The lowest place in a model that learns where no layer has an adapter."""
    smaller: ClassVar[tuple[str, ...]] = ()
    """The setting that an adapter's size follows from, with a small value."""
    fewer_bits: ClassVar[Mapping[str, str]] = {
        "int8": "the base's weights are rounded to 8 bits", "nf4": "the base's weights are rounded to 4 bits",
    }  # fmt: skip
    """The formats of a packed base that it may be trained over, and their prices."""
    trial_part: ClassVar[int] = 4
    """A trial of --tune has so many times fewer rows in a step and makes so many times more of them: what decides about
    a rate is how many steps there are. Where every weight learns, the optimizer's work on each step costs more."""
    trial_copies: ClassVar[int] = 0
    """What a trial takes beside the model, as a multiple of it: its weights, gradients and two averages."""
    lighter_base: ClassVar[tuple[str, str]] = (
        "model.dtype=bfloat16",
        "weights have 8 significant bits instead of 24; the loss of a step differs by some hundredths of a nat",
    )
    """The setting by which a base in float32 takes less memory, and its price."""

    full_takes: ClassVar[Mapping[str, float]] = {}
    """By backend, how many times as long a step of full fine-tuning in float32 takes, where docs/speed.md says it."""

    @property
    def label(self) -> str:
        """The method's name, for people."""
        raise NotImplementedError

    @property
    def written_as(self) -> str:
        """The method's name on a model card, which says what the files hold."""
        return self.label

    @property
    def only_rows(self) -> str:
        """Where it fits only layers whose weight has one row for each output: the sentence that refuses others."""
        return ""

    def without_rows(self) -> Self:
        """These settings with an initialization that needs no training rows."""
        return self

    def loaded(self, base: ModelConfig) -> ModelConfig:
        """The base as it is loaded for this method."""
        return base

    def form(self, fastest: Form) -> Form:
        """How its steps are computed, where a base could be in the form `fastest`."""
        return fastest

    def learns(self, adapted: str) -> str:
        """What learns, by the name of its measurements; `adapted` is that of the layers with an adapter."""
        return adapted

    def select(self, modules: Modules) -> Selection:
        """The modules that get an adapter."""
        return Selection([], [])

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        """What trains of a model with `total` parameters, with adapters over these layers and `heads` trained whole."""
        raise ConfigError([f"rankwise plan does not cover {self.label} yet."])

    @property
    def mean_rank_share(self) -> float:
        """The mean rank over a run, as a multiple of the one it begins with."""
        return 1.0

    def step_operations(self, layer: Layer, rank: float) -> float:
        """Operations of an optimizer step for a layer's adapter, whatever the number of tokens."""
        return 0.0
