"""Every setting of an experiment under its dotted name, with the flag, the form field and the help that follow from it.

A setting is declared once, by its field (base.py). The command line (cli/settings.py), keywords of Python
(python/train.py), the form of the page (studio/settings_form.py) and docs/configuration.md read it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from keyword import iskeyword
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rankwise.config.base import Config, Flag, Label, configs_in, descriptions_of
from rankwise.config.experiment import Experiment

_Mark = TypeVar("_Mark", Flag, Label)
SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z`])")


@dataclass(frozen=True)
class Declared:
    """A field of one of the configs that an experiment is made of; `key` is its dotted name."""

    key: str
    owner: type[Config]
    field: FieldInfo

    @property
    def help(self) -> str:
        """The docstring of the field, and of its type."""
        return descriptions_of(self.owner)[self.key.rpartition(".")[2]]

    @property
    def hint(self) -> str:
        """The first sentence of its help."""
        return SENTENCE.split(self.help, maxsplit=1)[0]

    @property
    def more(self) -> str:
        """What follows it."""
        return self.help[len(self.hint) :].strip()

    @property
    def kinds(self) -> set[Any]:
        return kinds_of(self.field.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be, but the one that it is by default."""
        return tuple(word for word in words_of(self.field.annotation) if word != self.field.default)

    @property
    def default(self) -> str:
        """What holds where it is not given."""
        flags = [mark for mark in self.field.metadata if isinstance(mark, Flag) and mark.default]
        if flags:
            return flags[0].default
        value = self.field.default
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return ""
        return value if isinstance(value, str) else f"{value:g}"


def kinds_of(annotation: Any) -> set[Any]:
    """The types that a value may have, but none and words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set[Any]().union(*map(kinds_of, get_args(annotation)))
    return set() if origin is Literal or annotation is NoneType else {origin or annotation}


def words_of(annotation: Any) -> list[Any]:
    """The words of a type."""
    if get_origin(annotation) is Literal:
        return [*get_args(annotation)]
    return [] if get_origin(annotation) is tuple else [
        word for argument in get_args(annotation) for word in words_of(argument)
    ]  # fmt: skip


def settings_of(config: type[Config], before: str = "") -> Iterator[Declared]:
    """All settings of a config and of the configs nested in its fields."""
    for name, field in config.model_fields.items():
        yield Declared(f"{before}{name}", config, field)
        for inside in configs_in(field.annotation):
            yield from settings_of(inside, f"{before}{name}.")


@dataclass(frozen=True)
class FlagOf:
    """A flag of a setting. `key` is what it sets."""

    setting: Declared
    flag: Flag

    @property
    def key(self) -> str:
        return f"{self.setting.key}.{self.flag.key}" if self.flag.key else self.setting.key

    @property
    def name(self) -> str:
        """As a keyword of Python."""
        name = self.flag.name.removeprefix("--").replace("-", "_")
        return self.setting.key.rpartition(".")[2] if iskeyword(name) else name

    @property
    def kind(self) -> type:
        """What follows the flag: a number, or a text; nothing, where it is yes or no."""
        kinds = self.setting.kinds
        return kinds.pop() if len(kinds) == 1 and kinds <= {bool, int, float} else str

    @property
    def help(self) -> str:
        return self.flag.help or f"{self.setting.hint} {self.setting.field.description or ''}".rstrip()

    @property
    def default(self) -> str:
        return "" if self.flag.help else self.setting.default


def marked(kind: type[_Mark]) -> dict[_Mark, Declared]:
    """The setting of each flag or label. Validation rows and replay rows have settings of the training rows, and a mark
    means the first, which is that of the latter."""
    first: dict[_Mark, Declared] = {}
    for setting in settings_of(Experiment):
        for mark in setting.field.metadata:
            if isinstance(mark, kind):
                first.setdefault(mark, setting)
    return first


FLAGS = {one.name: one for one in (FlagOf(setting, mark) for mark, setting in marked(Flag).items())}
"""By keyword."""
SECTIONS = {name: configs_in(field.annotation) for name, field in Experiment.model_fields.items()}
"""The configs that each part of an experiment can be, by the name of the part."""
