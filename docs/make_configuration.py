"""Print docs/configuration.md: every setting with its type, default, bounds and description, from the config classes.

    python docs/make_configuration.py            # write docs/configuration.md
    python docs/make_configuration.py --check    # exit 1 if the page is out of date

The description of a setting is the docstring below its field, and its flag is a mark of its type.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rankwise.config.base import Config, Flag, configs_in, descriptions_of
from rankwise.config.data import DataConfig, Reading
from rankwise.config.experiment import Experiment
from rankwise.config.tasks import TaskConfig
from rankwise.config.validation import GenerationConfig

PAGE = Path(__file__).with_name("configuration.md")
OPENING = """\
# Configuration reference

<!-- Made by `python docs/make_configuration.py` from the classes in src/rankwise/config. Edit the docstrings there. -->

Every setting of a run has a dotted name, such as `training.epochs`. There are three ways to give it:

- in a YAML file: `rankwise train my-first.yaml`
- on the command line: `--set training.epochs=3`; common settings also have flags, named at their end (`--epochs 3`)
- from Python: `rankwise.Experiment(training={"epochs": 3}, …)`

A value on the command line overrides the file, and the file overrides a recipe. An unknown name is an error.
"""
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def page() -> str:
    nested = sections("", Experiment, "the run")
    return "\n".join([OPENING, *nested, section("Files of evaluation tasks", "", TaskConfig, DataConfig),
                      section("Text generation", "", GenerationConfig)])  # fmt: skip


def sections(prefix: str, config: type[Config], heading: str, listed: type[Config] | None = None) -> list[str]:
    """The section of a class, and those of the classes that its fields hold."""
    made = [section(heading, prefix, config, listed)]
    for name, field in config.model_fields.items():
        inside = f"{prefix}.{name}" if prefix else name
        options = configs_in(field.annotation)
        for option in options:
            reads_rows = issubclass(option, Reading) and option is not DataConfig
            first = options[0] if option is not options[0] else DataConfig if reads_rows else None
            method = f", with method: {option.model_fields['method'].default}" if len(options) > 1 else ""
            many = "[]" if get_origin(field.annotation) is tuple else ""
            made += sections(inside + many, option, f"{inside}{method}", first)
    return made


def section(heading: str, prefix: str, config: type[Config], listed: type[Config] | None = None) -> str:
    """The settings of one class. Those that `listed` describes in the same words are named and not repeated."""
    lines = [
        f"## {heading[0].upper()}{heading[1:]}" if not prefix else f"## {heading}",
        "",
        inspect.getdoc(config) or "",
        "",
    ]
    descriptions, elsewhere = descriptions_of(config), descriptions_of(listed) if listed else {}
    repeated = [name for name in config.model_fields if name != "method" and elsewhere.get(name) == descriptions[name]]
    for name, field in config.model_fields.items():
        if name not in repeated:
            dotted = f"{prefix}.{name}" if prefix else name
            flags = " ".join(f"`{mark.name}`" for mark in field.metadata if isinstance(mark, Flag))
            lines.append(
                f"- **`{dotted}`** ({_type(field.annotation, field.metadata)}{_default(field)}): {descriptions[name]}"
                + (f" On the command line: {flags}." if flags else "")
            )
    if repeated:
        names = ", ".join(f"`{name}`" for name in repeated)
        lines.append(f"- {names}: as in {'[data](#data)' if issubclass(config, Reading) else 'method: lora'}")
    return "\n".join(lines) + "\n"


def _type(annotation: Any, metadata: list[Any]) -> str:
    """A type in words, with its bounds."""
    if configs_in(annotation):
        return "list of settings, see below" if get_origin(annotation) is tuple else "settings, see below"
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, [*more, *metadata])
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type(argument, metadata) for argument in arguments)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if get_origin(annotation) is tuple:
        return f"list of {_type(arguments[0], [])}"
    if get_origin(annotation) is dict:
        return f"mapping of text to {_type(arguments[1], [])}"
    return NAMES[annotation] + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """The limits of a number, which may be wrapped in further annotations."""
    parts = [part for item in metadata for part in getattr(item, "metadata", None) or [item]]
    limits = [
        f"{sign} {_number(getattr(part, name))}" for name, sign in BOUNDS for part in parts if hasattr(part, name)
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:,.10g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}) or isinstance(value, Config):
        return ""
    shown = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return f", default `{shown}`"


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
