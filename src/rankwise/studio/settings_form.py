"""What the form for a new run says, as settings: the same that flags of `rankwise train` or a YAML file would give.

    fields  ->  settings, each with its field as its origin  ->  Experiment, or all problems, each with its field
            ->  the command and the file that equal it
    a run   ->  fields  (duplicate with changed settings)

Nothing is read or computed here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, cast, get_args

from pydantic_core import PydanticUndefined

from rankwise.commands.starting import base_of_start
from rankwise.config.adapters import METHODS
from rankwise.config.base import Config, descriptions_of
from rankwise.config.data import OF_HUB, OF_TABLES, DataConfig, Format, Reasoning, ValidationDataConfig
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.objectives import OBJECTIVES
from rankwise.config.reading import Setting, parse_setting, read_data, read_experiment, read_planned
from rankwise.config.yaml import dump_yaml
from rankwise.errors import ConfigError, RankwiseError

Kind = Literal["text", "long", "number", "choice", "switch"]
_SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z`])")


CARDS = tuple(card for config in METHODS.values() for card in config.cards)
CARD_OF = {card.name: card for card in CARDS}
ANCHORED = tuple(card.name for config in METHODS.values() for card in config.cards if config.no_anchor is None)
"""Those of methods that leave a base to be held to."""


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


def _with(setting: str) -> tuple[str, ...]:
    """The cards of the methods that have this setting."""
    return tuple(card.name for one in METHODS.values() if setting in one.model_fields for card in one.cards)


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
        Knob("objective", "--objective", "What is learned", "rows", "choice", tuple(OBJECTIVES)[1:]),
        Knob("data.held_out", "--held-out", "Validation rows", "validation", "number"),
        Knob("data.validation.path", "--validation-data", "Or a file of validation rows", "validation"),
        Knob("data.group", "--group", "Column of groups", "validation"),
        Knob("validation.steps", "--validate-every", "Steps between validations", "validation", "number"),
        Knob("validation.keep", "--keep", "Checkpoint to keep", "validation", "choice", ("best",)),
        Knob("validation.patience", "--patience", "Stop early after", "validation", "number"),
        Knob("adapter.rank", "--rank", "Rank", "knobs", "number", cards=_with("rank")),
        Knob("adapter.alpha", "--alpha", "Alpha", "more", "number", cards=_with("rank")),
        Knob("adapter.budget", "--budget", "Budget", "knobs", cards=_with("budget")),
        Knob("adapter.dropout", "--dropout", "Dropout", "more", "number", cards=_with("targets")),
        Knob("adapter.targets", "--targets", "Layers to adapt", "more", cards=_with("targets")),
        Knob("adapter.start_from", "--from", "Begin with an adapter", "more", cards=("lora",)),
        Knob("training.epochs", "--epochs", "Epochs", "knobs", "number"),
        Knob("training.steps", "--steps", "Or steps", "knobs", "number"),
        Knob("training.batch_size", "--batch-size", "Rows in a step", "knobs", "number"),
        Knob("training.learning_rate", "--learning-rate", "Learning rate", "knobs", "number"),
        Knob("training.anchor.weight", "--anchor", "Hold to the base", "more", "number", cards=ANCHORED, off=True),
        Knob("training.replay.share", "--replay", "Share of replay rows", "more", "number", off=True),
        Knob("training.seed", "--seed", "Seed", "more", "number"),
        Knob("preference.loss", "--preference-loss", "Preference loss", "preference", "choice", ("orpo",)),
        Knob("preference.beta", "--beta", "Beta", "preference", "number"),
        Knob("images.size", "--image-size", "Image size", "images", "number"),
        Knob("images.augmentation", "--augmentation", "Augmentation", "images", "choice", ("flip", "crop", "trivial")),
        Knob("run", "--run", "Name", "run"),
    )  # fmt: skip


KNOBS: dict[str, Knob] = {knob.setting: knob for knob in _knobs()}


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
        several = [*METHODS.values()] if part == "adapter" else [
            inside for one in several if part in one.model_fields for inside in _configs(one.model_fields[part])
        ]  # fmt: skip  # pyright: ignore[reportAssignmentType]
    return next(((one, name) for one in several if name in one.model_fields), None)


def _configs(info: Any) -> list[type[Config]]:
    options = (info.annotation, *get_args(info.annotation))
    return [one for one in options if isinstance(one, type) and issubclass(one, Config)]


CARD, OTHER, TUNE = "card", "other", "tune"
"""Fields that are not settings: the method card, further settings line by line, and --tune."""
READING = ("model.", "data.", "objective", "images.", "classification.", "preference.", "adapter.start_from")
"""Beginnings of the settings that say what a row is and how it is encoded."""
OF_FILES = (*OF_HUB, *OF_TABLES, "split")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Problem:
    """`field` is empty where it belongs to none of the form."""

    field: str
    text: str


@dataclass(frozen=True)
class SettingsForm:
    """`fields` by name; one that is empty is not given."""

    fields: Mapping[str, str]

    @property
    def card(self) -> str:
        return self.fields.get(CARD) or "lora"

    @cached_property
    def given(self) -> dict[str, str]:
        """The fields that have an effect with the chosen card."""
        own = {name: value for name, value in self.fields.items() if name in KNOBS and value.strip()}
        return {name: value for name, value in own.items() if not KNOBS[name].cards or self.card in KNOBS[name].cards}

    def settings(self) -> list[Setting]:
        """ConfigError where a line of further settings is not a setting."""
        card = CARD_OF.get(self.card)
        if card is None:
            raise ConfigError([f"{CARD}: there is no method {self.card[:60]!r}."])
        if self.fields.get(TUNE) and "training.learning_rate" in self.given:
            raise ConfigError(
                ["training.learning_rate: a rate is given, but it is to be tuned. Leave one of them out."]
            )
        chosen = [Setting(key, value, CARD) for key, value in card.settings.items() if (key, value) != PLAIN]
        named = [Setting(name, _value(KNOBS[name], value), name) for name, value in self.given.items()]
        tuned = [Setting("training.learning_rate", "tune", TUNE)] if self.fields.get(TUNE) else []
        return [*chosen, *named, *tuned, *self._others()]

    def _others(self) -> Iterator[Setting]:
        for line in filter(str.strip, self.fields.get(OTHER, "").splitlines()):
            setting = parse_setting(line.strip())
            yield Setting(setting.key, setting.value, OTHER)

    def experiment(self) -> Experiment:
        """ConfigError with all problems."""
        return read_experiment(None, self.settings(), base_of_start)

    def planned(self, *, without: tuple[str, ...] = (), only: tuple[str, ...] = ("",)) -> Planned:
        """The same to plan, without the settings that begin so, or with those alone."""
        return read_planned(
            None, [one for one in self.settings() if not one.key.startswith(without) and one.key.startswith(only)],
            base_of_start,
        )  # fmt: skip

    def table(self) -> DataConfig:
        """The rows as they lie in their files, whatever they are to mean."""
        return read_data(
            [self.given["data.path"]], [one for one in self.settings() if one.key.removeprefix("data.") in OF_FILES]
        )

    def command(self) -> str:
        """The command line of `rankwise train` that does the same."""
        words = ["rankwise", "train"]
        for setting in self.settings():
            words += _words(setting)
        return shlex.join(words)

    def yaml(self) -> str:
        """The settings file that does the same."""
        nested: dict[str, Any] = {}
        for setting in self.settings():
            *parents, last = setting.key.split(".")
            here = nested
            for part in parents:
                child = here.setdefault(part, {})
                if not isinstance(child, dict):
                    raise ConfigError([f'{setting.origin}: "{part}" has a value of its own already.'])
                here = child
            here[last] = setting.value
        return dump_yaml(nested)


MISSING = "is required and was not given."
PLAIN = ("adapter.method", "lora")
"""The default of a training."""


def _value(knob: Knob, text: str) -> Any:
    """As YAML would read a number; a text stays as it was typed."""
    text = text.replace("\r\n", "\n").strip()
    if knob.kind == "switch":
        return text == "true"
    if knob.kind != "number" or not _NUMBER.fullmatch(text):
        return text
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)


def _words(setting: Setting) -> list[str]:
    if setting.origin == TUNE:
        return ["--tune"]
    knob, value = KNOBS.get(setting.key), setting.value
    if setting.key == "adapter.method":
        return ["--method", str(value)]
    if setting.origin == OTHER or knob is None or knob.flag is None:
        return ["--set", f"{setting.key}={json.dumps(value, ensure_ascii=False)}"]
    if knob.kind == "switch":
        return [knob.flag] if value else []
    text = str(value)
    return [f"{knob.flag}={text}"] if text.startswith("-") else [knob.flag, text]


def problems_of(error: ConfigError) -> list[Problem]:
    """Each with the field that gave the setting, or with one that it names."""
    return [_placed(text) for text in error.problems]


def _placed(text: str) -> Problem:
    origin, colon, rest = text.partition(": ")
    if colon and (origin in KNOBS or origin in (CARD, OTHER, TUNE)):
        return Problem(origin, f"{rest[:1].upper()}{rest[1:]}")
    return Problem(_named_in(text), text)


def _named_in(text: str) -> str:
    """The field of a setting that a sentence names, whole or by its last part."""
    whole = [name for name in KNOBS if re.search(rf"\b{re.escape(name)}\b", text)]
    words = set(re.findall(r"[a-z_]+", text))
    part = match[1] if (match := re.match(r'setting "([\w.]+)"', text)) else ""
    inside = [name for name in KNOBS if name.startswith(part)]
    named = max(whole, key=len, default="") or next((name for name in inside if name.split(".")[-1] in words), "")
    return named or (inside[0] if part and inside and text.endswith(MISSING) else "")


def fields_of(experiment: Experiment) -> dict[str, str]:
    """The form that gives this experiment, its name left empty. Settings at their defaults are left out, unless another
    setting, such as a recipe, brings other ones."""
    short = _fields(experiment, whole=False)
    try:
        if SettingsForm(short | {"run": experiment.run}).experiment() == experiment:
            return short
    except RankwiseError:  # an adapter to begin with may be gone
        pass
    return _fields(experiment, whole=True)


def _fields(experiment: Experiment, *, whole: bool) -> dict[str, str]:
    values = experiment.model_dump(mode="json", exclude_defaults=not whole, exclude_none=True)
    card = _card_of(experiment)
    adapter = {key: value for key, value in values.pop("adapter", {}).items()
               if f"adapter.{key}" not in CARD_OF[card].settings and key != "method"}  # fmt: skip
    fields, others = {CARD: card}, list[str]()
    for key, value in _leaves(values | ({"adapter": adapter} if adapter else {})):
        text = _as_field(key, value, card)
        if key == "training.learning_rate" and value == "tune":
            fields[TUNE] = "true"
        elif text is not None:
            fields[key] = text
        elif value not in ([], {}):
            others.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    return {name: text for name, text in fields.items() if name != "run"} | {OTHER: "\n".join(others)}


def _card_of(experiment: Experiment) -> str:
    """The most particular card whose settings it has."""
    adapter = {f"adapter.{name}": value for name, value in dict(experiment.adapter).items()}
    own = [card for card in CARDS if card.settings.items() <= adapter.items()]
    return max(own, key=lambda card: len(card.settings)).name


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, as deep as the form has fields."""
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and value and any(knob.startswith(f"{key}.") for knob in KNOBS):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _as_field(key: str, value: Any, card: str) -> str | None:
    """What is typed into the field to give this value; None where it takes a further setting."""
    knob = KNOBS.get(key)
    if knob is None or (knob.cards and card not in knob.cards):
        return None
    if isinstance(value, list):
        is_typed = all(isinstance(one, int) or (one == str(one).strip() and "," not in one) for one in value)
        return ",".join(map(str, value)) if value and is_typed else None
    if isinstance(value, bool):
        return "true" if value else None
    text = str(value)
    is_plain = not isinstance(value, dict) and text == text.strip() and "\r" not in text and text
    return text if is_plain and (knob.kind != "choice" or text in knob.choices) else None
