"""YAML files and `key=value` settings into an Experiment; every problem at once, each with file and line.

YAML is read by version 1.2's rules, so `1e-4` is a number and `on` a word; a key given twice is an error, and a
tag that asks for an object is one too. Later settings win over earlier ones and over the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from rankwise.errors import SpecError
from rankwise.spec.experiment import Experiment
from rankwise.spec.spec import Location, problems_of, shown

LARGEST_FILE = 1_000_000
MOST_VALUES = 10_000
PLAIN_TAGS = {"str", "int", "float", "bool", "null", "map", "seq"}
SHORTHAND = {"model": "name", "data": "path"}


@dataclass(frozen=True)
class Setting:
    """One dotted key and its value, with the flag it came by."""

    key: str
    value: Any
    origin: str


@dataclass
class _Tree:
    """Nested settings, and for each location where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, str] = field(default_factory=dict)

    def origin(self, location: Location) -> str:
        for length in range(len(location), 0, -1):
            if location[:length] in self.origins:
                return f"{self.origins[location[:length]]}: "
        return ""

    def put(self, setting: Setting) -> None:
        *parents, last = setting.key.split(".")
        here: dict[str, Any] = self.values
        location: Location = ()
        for part in parents:
            location = (*location, part)
            child = here.get(part)
            if isinstance(child, str) and part in SHORTHAND:
                child = {SHORTHAND[part]: child}
            if child is not None and not isinstance(child, dict):
                wrong = f'{self.origin(location)}setting "{".".join(location)}" is {shown(child)}'
                raise SpecError([f"{wrong}, and {setting.origin} is inside it."])
            here[part] = here = child or {}
        here[last] = setting.value
        self.origins[(*location, last)] = setting.origin


def parse_setting(text: str) -> Setting:
    """`a.b=c` as given to --set; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise SpecError([f'--set "{text}" is not of the form key=value, for example --set training.epochs=3.'])
    return Setting(key.strip(), _plain(_load_yaml(value, f"--set {key}"), {}, ""), f"--set {key}")


def read_experiment(file: Path | None, settings: Iterable[Setting] = ()) -> Experiment:
    tree = _read_file(file) if file else _Tree()
    for setting in settings:
        tree.put(setting)
    try:
        return Experiment.model_validate(tree.values)
    except ValidationError as error:
        raise SpecError(problems_of(error, Experiment, tree.origin)) from None


def _read_file(file: Path) -> _Tree:
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise SpecError([f"{file}: {size:,} bytes is too large for a file of settings ({LARGEST_FILE:,} at most)."])
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError([f"{file}: cannot be read ({error.strerror})."]) from None
    except UnicodeDecodeError as error:
        raise SpecError([f"{file}: is not UTF-8 text (byte {error.start})."]) from None
    loaded = _load_yaml(text, str(file))
    if not isinstance(loaded, CommentedMap):
        raise SpecError([f"{file}: holds {type(loaded).__name__}, not settings of the form key: value."])
    tree = _Tree()
    tree.values = _plain(loaded, tree.origins, str(file))
    return tree


def _load_yaml(text: str, name: str) -> Any:
    if text.lstrip().startswith("%"):
        raise SpecError([f"{name}: begins with a directive (%…); settings are YAML 1.2 and need none."])
    try:
        return YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or str(error)).splitlines()[0]
        raise SpecError([f"{name}{line}: {problem}."]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise SpecError(
            [f"{name}: is not YAML ({str(error).splitlines()[0] if str(error) else type(error).__name__})."]
        ) from None


def _plain(
    node: Any, origins: dict[Location, str], name: str, location: Location = (), count: _Count | None = None
) -> Any:
    """Ruamel's annotated nodes as plain Python values; notes the line of every key on the way."""
    count = count or _Count()
    count.up(name)
    _refuse_tag(node, name)
    if isinstance(node, CommentedMap):
        for key in node:
            line = node.lc.data.get(key)  # a key that was merged in has none of its own
            if name and line:
                origins[(*location, str(key))] = f"{name}:{line[0] + 1}"
        return {str(key): _plain(item, origins, name, (*location, str(key)), count) for key, item in node.items()}
    if isinstance(node, list):
        return [_plain(item, origins, name, (*location, index), count) for index, item in enumerate(node)]
    if isinstance(node, bool | ScalarBoolean):
        return bool(node)
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return None if node is None else str(node)


@dataclass
class _Count:
    """Aliases of aliases can stand for more values than there is memory."""

    values: int = 0

    def up(self, name: str) -> None:
        self.values += 1
        if self.values > MOST_VALUES:
            raise SpecError([f"{name or '--set'}: stands for more than {MOST_VALUES:,} values."])


def _refuse_tag(node: Any, name: str) -> None:
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(tag, str) and tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise SpecError([f'{name or "--set"}: the tag "{tag}" asks for an object; only plain values are read.'])
