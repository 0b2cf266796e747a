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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rankwise.commands.runs import base_of_start
from rankwise.config.adapters import METHODS
from rankwise.config.base import JsonObject, Label
from rankwise.config.data import OF_HUB, OF_TABLES, DataConfig
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.incompatible import excludes
from rankwise.config.method import MethodConfig
from rankwise.config.reading import SHORTHAND, Setting, parse_setting, read_data, read_experiment, read_planned
from rankwise.config.settings import FLAGS, Declared, marked
from rankwise.config.yaml import dump_yaml
from rankwise.errors import ConfigError, RankwiseError

Kind = Literal["text", "long", "number", "choice", "switch"]


CARDS = tuple(card for config in METHODS.values() for card in config.cards)
CARD_OF = {card.name: card for card in CARDS}
ANCHORED = tuple(
    card.name
    for config in METHODS.values()
    for card in config.cards
    if not excludes("training.anchor", "adapter.method", config.model_fields["method"].default)
)
"""The cards of methods whose model can be held to its base by an anchor."""


@dataclass(frozen=True)
class Knob:
    """A setting as a field of the form: what it is follows from its declaration."""

    declared: Declared
    mark: Label

    @property
    def setting(self) -> str:
        return f"{self.declared.key}.{self.mark.key}" if self.mark.key else self.declared.key

    @property
    def flag(self) -> str | None:
        """That of `rankwise train`; None where only --set gives it."""
        return next((one.flag.name for one in FLAGS.values() if one.setting.key == self.declared.key), None)

    @cached_property
    def kind(self) -> Kind:
        kinds = self.declared.kinds
        if self.mark.long:
            return "long"
        return "switch" if bool in kinds else "number" if kinds & {int, float} else "text" if kinds else "choice"

    @cached_property
    def cards(self) -> tuple[str, ...]:
        """The method cards that the setting belongs to, because their methods have it or what it needs; none where it
        belongs to all."""
        if self.setting in OF_CARDS:
            return OF_CARDS[self.setting]
        section, _, name = self.setting.rpartition(".")
        having = [one for one in METHODS.values() if section == "adapter" and name in one.model_fields]
        return tuple(card.name for one in having for card in one.cards)

    @property
    def default(self) -> str:
        """As the form shows it where nothing is given."""
        usual, depends, _ = self.declared.default.partition(";")
        return "by task and rows" if depends else usual


OF_CARDS = {"adapter.start_from": ("lora",), "training.anchor.weight": ANCHORED}


KNOBS = {one.setting: one for one in (Knob(setting, mark) for mark, setting in marked(Label).items())}


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
    def values(self) -> dict[str, str]:
        """The fields that have an effect with the chosen card."""
        own = {name: value for name, value in self.fields.items() if name in KNOBS and value.strip()}
        return {name: value for name, value in own.items() if not KNOBS[name].cards or self.card in KNOBS[name].cards}

    def settings(self) -> list[Setting]:
        """ConfigError where a line of further settings is not a setting."""
        card = CARD_OF.get(self.card)
        if card is None:
            raise ConfigError([f"{CARD}: there is no method {self.card[:60]!r}."])
        if self.fields.get(TUNE) and "training.learning_rate" in self.values:
            raise ConfigError(
                ["training.learning_rate: a rate is given, but it is to be tuned. Leave one of them out."]
            )
        chosen = [Setting(key, value, CARD) for key, value in card.settings.items() if (key, value) != PLAIN]
        named = [Setting(name, _value(KNOBS[name], value), name) for name, value in self.values.items()]
        tuned = [Setting("training.learning_rate", "tune", TUNE)] if self.fields.get(TUNE) else []
        return [*chosen, *named, *tuned, *self._remaining()]

    def _remaining(self) -> Iterator[Setting]:
        for line in filter(str.strip, self.fields.get(OTHER, "").splitlines()):
            setting = parse_setting(line.strip())
            yield Setting(setting.key, setting.value, OTHER)

    def experiment(self) -> Experiment:
        """ConfigError with all problems."""
        return read_experiment(None, self.settings(), base_of_start)

    def planned(self, *, without: tuple[str, ...] = (), only: tuple[str, ...] = ("",)) -> Planned:
        """Read the settings for a plan, leaving out those that begin with one of `without`, and keeping only those that
        begin with one of `only`."""
        return read_planned(
            None, [one for one in self.settings() if not one.key.startswith(without) and one.key.startswith(only)],
            base_of_start,
        )  # fmt: skip

    def table(self) -> DataConfig:
        """The rows as they lie in their files, whatever they are to mean."""
        return read_data(
            [self.values["data.path"]], [one for one in self.settings() if one.key.removeprefix("data.") in OF_FILES]
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


_FLAG = re.compile(r"--set (?=\S*=)|(?<!\w)(--[a-z][a-z-]+)(?: COLUMN\b)?")
LABELS = {one.flag: one.mark.text for one in KNOBS.values() if one.flag} | {"--text": "text", "--label": "answer"}
"""The label of the field that a flag has; the columns of `--text` and `--label` are chosen as text and answer."""


def with_labels(text: str, labels: Mapping[str, str] = LABELS) -> str:
    """A message of a command with the labels of fields in place of flags."""
    return _FLAG.sub(lambda match: f"“{labels[match[1]]}”" if match[1] in labels else
                     match[0] if match[1] else "“Any other setting” ", text)  # fmt: skip


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
        return Problem(origin, with_labels(f"{rest[:1].upper()}{rest[1:]}"))
    return Problem(_named_in(text), with_labels(text))


def _named_in(text: str) -> str:
    """The field of a setting that a sentence names, whole or by its last part."""
    whole = [name for name in KNOBS if re.search(rf"\b{re.escape(name)}\b", text)]
    words = set(re.findall(r"[a-z_]+", text))
    part = match[1] if (match := re.match(r'setting "([\w.]+)"', text)) else ""
    inside = [name for name in KNOBS if name.startswith(part)]
    named = max(whole, key=len, default="") or next((name for name in inside if name.split(".")[-1] in words), "")
    return named or (f"{part}.{SHORTHAND[part]}" if part in SHORTHAND and text.endswith(MISSING) else "")


def fields_of(settings: JsonObject) -> dict[str, str]:
    """The form that gives these settings of a run, its name left empty. Settings at their defaults are left out, unless
    another setting, such as a recipe, brings other ones."""
    experiment = Experiment(**settings)
    card = _card_of(experiment.adapter)
    short = _fields(experiment.model_dump(mode="json", exclude_defaults=True, exclude_none=True), card)
    with suppress(RankwiseError):  # an adapter to begin with may be gone
        if SettingsForm(short | {"run": experiment.run}).experiment() == experiment:
            return short
    return _fields(experiment.model_dump(mode="json", exclude_none=True), card)


def _fields(values: JsonObject, card: str) -> dict[str, str]:
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


def _card_of(method: MethodConfig) -> str:
    """The most particular card whose settings it has."""
    adapter = {f"adapter.{name}": value for name, value in dict(method).items()}
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
    return text if is_plain and (knob.kind != "choice" or text in knob.declared.choices) else None
