"""Build an Experiment from YAML files and `key=value` settings, and report all problems at once with file and line.

yaml.py reads the YAML. Later settings override earlier ones, the file and a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO
from typing import Any, TypeVar

from pydantic import ValidationError

from rankwise.config.base import Config, JsonObject, Location, problems_of, shown
from rankwise.config.data import DataConfig, Reading
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.models import ModelConfig
from rankwise.config.yaml import load_yaml, plain
from rankwise.errors import ConfigError

LARGEST_FILE = 1_000_000
_Kind = TypeVar("_Kind", bound=Config)
BaseNamedBy = Callable[[str, Any], ModelConfig]
"""The adapter to begin with, and the run's name as it was given, to the base model."""
SHORTHAND = {"model": "name", "data": "path"}


@dataclass(frozen=True)
class Setting:
    """A dotted key, its value, and the flag that gave it."""

    key: str
    value: Any
    origin: str


@dataclass
class _Tree:
    """Nested settings, and for each of them the file and line or flag it came from."""

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
                raise ConfigError([f"{wrong}, and {setting.origin} is inside it."])
            here[part] = here = child or {}
        here[last] = setting.value
        self.origins[(*location, last)] = setting.origin

    def name_base(self, base_named_by: BaseNamedBy) -> None:
        """Fill in the model that the adapter to begin with was trained on, unless one is named."""
        adapter, model, run = (self.values.get(name) for name in ("adapter", "model", "run"))
        start_from = adapter.get("start_from") if isinstance(adapter, dict) else None
        named = isinstance(model, dict) and "name" in model
        if isinstance(start_from, str) and start_from and (model is None or (isinstance(model, dict) and not named)):
            self.values["model"] = base_named_by(start_from, run).model_dump(exclude_unset=True) | (model or {})


def parse_setting(text: str) -> Setting:
    """Parse the `a.b=c` of --set. The value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError([f'--set "{text}" is not of the form key=value, for example --set training.epochs=3.'])
    if not value.strip():
        raise ConfigError([f'--set "{text}" has no value. For the default, leave it out; for none, write {key}=null.'])
    return Setting(key.strip(), plain(load_yaml(value, f"--set {key}"), {}, ""), f"--set {key}")


OF_ROWS = (".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx", ".parquet", ".arrow")
"""Endings of files that are no settings."""


def read_experiment(
    file: Path | None, settings: Iterable[Setting] = (), base_named_by: BaseNamedBy | None = None
) -> Experiment:
    """`base_named_by` gives the base model of the adapter that a training begins with, where none is named."""
    return _read_under(file, settings, Experiment, base_named_by)


def read_planned(
    file: Path | None, settings: Iterable[Setting] = (), base_named_by: BaseNamedBy | None = None
) -> Planned:
    return _read_under(file, settings, Planned, base_named_by)


def _read_under(
    file: Path | None, settings: Iterable[Setting], kind: type[_Kind], base_named_by: BaseNamedBy | None = None
) -> _Kind:
    if file is not None and file.suffix.lower() in OF_ROWS:
        raise ConfigError(
            [f"{file}: is a file of rows. Give it with --data; a file without a flag has settings (YAML)."]
        )
    tree = _read_file(file) if file else _Tree()
    for setting in settings:
        tree.put(setting)
    if base_named_by is not None:
        tree.name_base(base_named_by)
    try:
        return kind.model_validate(tree.values)
    except ValidationError as error:
        raise ConfigError(problems_of(error, kind, tree.origin)) from None


def with_settings(values: JsonObject, *texts: str) -> Planned:
    """A plan of these settings of an experiment, with some of them changed, each given as `a.b=c`."""
    tree = _Tree(values)
    for setting in map(parse_setting, texts):
        if setting.key == "adapter.method":  # the settings of the old method do not apply to the new one
            values["adapter"] = {}
        tree.put(setting)
    return Planned.model_validate(tree.values)


def read_settings(
    file: Path, kind: type[_Kind], over: Mapping[str, Any], default: Mapping[str, Any] | None = None
) -> _Kind:
    """Read one config from a file. Values in `over` override the file, and the file overrides `default`."""
    tree = _read_file(file)
    try:
        return kind.model_validate({**(default or {}), **tree.values, **over})
    except ValidationError as error:
        raise ConfigError(problems_of(error, kind, tree.origin)) from None


def read_values(file: Path) -> dict[str, Any]:
    """Read a YAML file of another program as plain values. Tags and directives are refused."""
    return _read_file(file).values


def read_data(files: Iterable[str], settings: Iterable[Setting]) -> DataConfig:
    """The data settings of a command line that names one or more files. Settings of reading apply to each file."""
    tree, named = _Tree(), list(files)
    for setting in settings:
        if not setting.key.startswith("data."):
            raise ConfigError(
                [f'{setting.origin}: "{setting.key.split(".")[0]}" is not a setting of the data (data.…).']
            )
        if setting.key.split(".")[1] in ("path", "sources"):
            raise ConfigError([f"{setting.origin}: the file of rows is already given ({named[0]})."])
        tree.put(setting)
    given = tree.values.get("data", {})
    how = {key: given.pop(key) for key in list(given) if key in Reading.model_fields} if len(named) > 1 else {}
    rows = {"sources": [{"path": name, **how} for name in named]} if len(named) > 1 else {"path": named[0]}
    try:
        return DataConfig.model_validate({**rows, **given})
    except ValidationError as error:
        problems = problems_of(error, DataConfig, lambda location: tree.origin(("data", *_inside_source(location))))
        raise ConfigError([_with_flag(problem, tree) for problem in problems]) from None


def _inside_source(location: Location) -> Location:
    """The location of a setting that was given once and copied into each of several sources."""
    return location[2:] if location[:1] == ("sources",) else location


def _with_flag(problem: str, tree: _Tree) -> str:
    """Prefix a problem with the flag that caused it. If several settings caused it, take the first."""
    if problem.startswith("--"):
        return problem
    words = problem.replace(",", " ").replace(";", " ").split()
    return next((tree.origin(location) for location in tree.origins if location[-1] in words), "") + problem


def _read_file(file: Path) -> _Tree:
    try:
        status = file.stat()
        size = status.st_size
        if S_ISFIFO(status.st_mode) or S_ISCHR(status.st_mode):  # which may never end
            raise ConfigError([f"{file}: is a pipe or a device. Give a file of settings."])
        if size > LARGEST_FILE:
            raise ConfigError(
                [f"{file}: {size:,} bytes is too large for a file of settings ({LARGEST_FILE:,} at most)."]
            )
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read ({error.strerror})."]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: is not UTF-8 text (byte {error.start})."]) from None
    loaded = load_yaml(text, str(file))
    if not isinstance(loaded, dict):
        content = "nothing" if loaded is None else "a list" if isinstance(loaded, list) else shown(loaded)
        raise ConfigError([f"{file}: contains {content}, not settings of the form key: value."])
    tree = _Tree()
    tree.values = plain(loaded, tree.origins, str(file))
    if file.suffix == ".json":  # a run's own
        as_named_now(tree.values)
    return tree


def as_named_now(stored: JsonObject) -> JsonObject:
    """Settings that an earlier version stored, with today's names."""
    training = stored.get("training")
    if isinstance(training, dict) and "products" in training:
        training["matmul"] = training.pop("products")
    return stored
