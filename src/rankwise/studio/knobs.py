"""The fields of the form for a new run: each is one setting, with its flag, and its help is the setting's docstring.

A method card is a choice that several settings make together: DoRA is LoRA with `adapter.dora`. A field that belongs to
some cards has no effect with the others, and is left out there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast, get_args

from pydantic_core import PydanticUndefined

from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.base import Config
from rankwise.config.data import Format, Reasoning, ValidationDataConfig
from rankwise.config.descriptions import descriptions_of
from rankwise.config.experiment import OBJECTIVES, Experiment
from rankwise.config.head import HeadConfig

Kind = Literal["text", "long", "number", "choice", "switch"]
ADAPTERS = ("lora", "dora", "eva", "adalora")
_SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z`])")
OF_LORA = ("lora", "dora", "eva")


@dataclass(frozen=True)
class Card:
    """A method in one sentence."""

    name: str
    title: str
    sentence: str
    settings: Mapping[str, Any] = field(default_factory=dict)


CARDS = (
    Card("lora", "LoRA", "Trains two small matrices beside each layer; the usual choice, small and quick.",
         {"adapter.method": "lora"}),
    Card("dora", "DoRA", "LoRA that trains the length of each weight vector apart from its direction; a little slower.",
         {"adapter.method": "lora", "adapter.dora": True}),
    Card("eva", "LoRA, started by EVA", "LoRA that begins with the main directions of your rows, and gives more rank "
         "to layers that need it.", {"adapter.method": "lora", "adapter.start": "eva"}),
    Card("adalora", "AdaLoRA", "Begins with more rank than the budget and prunes what matters least, layer by layer.",
         {"adapter.method": "adalora"}),
    Card("full", "Full fine-tuning", "Trains every weight in float32: the most memory, and a whole model as its "
         "result.", {"adapter.method": "full"}),
    Card("head", "Head only", "Trains only the new head of a classifier and leaves the model as it is.",
         {"adapter.method": "head"}),
)  # fmt: skip
CARD_OF = {card.name: card for card in CARDS}


@dataclass(frozen=True)
class Knob:
    """`flag` is that of `rankwise train`, None where only --set gives it; `cards` are those that it belongs to."""

    setting: str
    flag: str | None
    label: str
    group: str
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    cards: tuple[str, ...] = ()
    off: bool = False
    """Whether the feature is off unless a value is given."""

    @property
    def help(self) -> str:
        return help_of(self.setting)

    @property
    def hint(self) -> str:
        """The first sentence of its help."""
        return _SENTENCE.split(self.help, maxsplit=1)[0]

    @property
    def more(self) -> str:
        """The others."""
        return self.help[len(self.hint) :].strip()

    @property
    def default(self) -> str:
        """As the form shows it where nothing is given."""
        if self.off:
            return "off"
        found = _field(self.setting)
        value = None if found is None else found[0].model_fields[found[1]].default
        if value is None or value is PydanticUndefined or isinstance(value, bool | tuple | dict):
            return ""
        return f"{value:g}" if isinstance(value, int | float) else str(value)


def _knobs() -> Sequence[Knob]:
    return (
        Knob("model.name", "--model", "Model", "model"),
        Knob("model.quantize", "--quantize", "Weights in fewer bits", "memory", "choice", ("none", "nf4", "int8")),
        Knob("model.memory", "--memory", "Memory limit", "memory"),
        Knob("training.auto_batch", "--auto-batch", "Smaller batches when memory runs out", "memory", "switch"),
        Knob("training.max_batch_tokens", None, "Tokens at once", "memory", "number"),
        Knob("data.path", "--data", "Rows on this machine", "data"),
        Knob("data.prompt", "--prompt", "Prompt", "columns", "long"),
        Knob("data.completion", "--completion", "Answer", "columns", "long"),
        Knob("data.ignore_columns", "--ignore-columns", "Columns to ignore", "columns"),
        Knob("data.format", "--format", "Row format", "rows", "choice", get_args(Format)[1:]),
        Knob("data.system", "--system", "System message", "rows", "long"),
        Knob("data.max_length", "--max-length", "Longest row in tokens", "rows", "number"),
        Knob("data.on_bad_row", "--on-bad-row", "A row that cannot be used", "rows", "choice", ("skip",)),
        Knob("data.reasoning", "--reasoning", "Reasoning in answers", "rows", "choice", get_args(Reasoning)[1:]),
        Knob("objective", "--objective", "What is learned", "rows", "choice", OBJECTIVES[1:]),
        Knob("data.held_out", "--held-out", "Validation rows", "validation", "number"),
        Knob("data.validation.path", "--validation-data", "Or a file of validation rows", "validation"),
        Knob("data.group", "--group", "Column of groups", "validation"),
        Knob("validation.steps", "--validate-every", "Steps between validations", "validation", "number"),
        Knob("validation.keep", "--keep", "Checkpoint to keep", "validation", "choice", ("best",)),
        Knob("validation.patience", "--patience", "Stop early after", "validation", "number"),
        Knob("adapter.rank", "--rank", "Rank", "knobs", "number", cards=OF_LORA),
        Knob("adapter.alpha", "--alpha", "Alpha", "more", "number", cards=OF_LORA),
        Knob("adapter.budget", "--budget", "Budget", "knobs", cards=("adalora",)),
        Knob("adapter.dropout", "--dropout", "Dropout", "more", "number", cards=ADAPTERS),
        Knob("adapter.targets", "--targets", "Layers to adapt", "more", cards=ADAPTERS),
        Knob("adapter.start_from", "--from", "Begin with an adapter", "more", cards=("lora",)),
        Knob("training.epochs", "--epochs", "Epochs", "knobs", "number"),
        Knob("training.steps", "--steps", "Or steps", "knobs", "number"),
        Knob("training.batch_size", "--batch-size", "Rows in a step", "knobs", "number"),
        Knob("training.learning_rate", "--learning-rate", "Learning rate", "knobs", "number"),
        Knob("training.anchor.weight", "--anchor", "Hold to the base", "more", "number", cards=(*ADAPTERS, "head"),
             off=True),
        Knob("training.replay.share", "--replay", "Share of replay rows", "more", "number", off=True),
        Knob("training.seed", "--seed", "Seed", "more", "number"),
        Knob("preference.loss", "--preference-loss", "Preference loss", "preference", "choice", ("orpo",)),
        Knob("preference.beta", "--beta", "Beta", "preference", "number"),
        Knob("images.size", "--image-size", "Image size", "images", "number"),
        Knob("images.augmentation", "--augmentation", "Augmentation", "images", "choice", ("flip", "crop", "trivial")),
        Knob("run", "--run", "Name", "run"),
    )  # fmt: skip


KNOBS: dict[str, Knob] = {knob.setting: knob for knob in _knobs()}
METHODS: tuple[type[Config], ...] = (LoraConfig, AdaLoraConfig, HeadConfig, FullConfig)


def help_of(setting: str) -> str:
    """The docstring of a setting."""
    if (found := _field(setting)) is None:
        return ""
    config, name = found
    return _descriptions(cast("type", config)).get(name, "")


@cache
def _descriptions(config: type) -> dict[str, str]:
    """Read once: each reading parses the source of a class."""
    return descriptions_of(config)


def _field(setting: str) -> tuple[type[Config], str] | None:
    """The class that has a setting, and the name of its field there."""
    if setting.startswith("data.validation."):
        return ValidationDataConfig, setting.rpartition(".")[2]
    *parents, name = setting.split(".")
    several: list[type[Config]] = [Experiment]
    for part in parents:
        several = METHODS if part == "adapter" else [
            inside for one in several if part in one.model_fields for inside in _configs(one.model_fields[part])
        ]  # fmt: skip  # pyright: ignore[reportAssignmentType]
    return next(((one, name) for one in several if name in one.model_fields), None)


def _configs(info: Any) -> list[type[Config]]:
    options = (info.annotation, *get_args(info.annotation))
    return [one for one in options if isinstance(one, type) and issubclass(one, Config)]
