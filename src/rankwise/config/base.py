"""The common ancestor of all specs: frozen, unknown keys refused, every problem told at once.

A spec is what was asked, not a thing that computes, so nothing here imports torch. Constructing a spec with
wrong values raises ConfigError; nested specs are validated by the outermost one, which reports for all of them.

A setting is one field with its docstring. Its `Flag` is the flag of the command line, and its `Label` the field of the
page's form; their help is the docstring (settings.py):

    rank: Annotated[Rank, Flag("--rank"), Label("Rank", "knobs")] = 16
    \"""Number of columns of B and of rows of A. A higher rank trains more parameters.\"""
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from rankwise.errors import DEVICE, ConfigError, did_you_mean


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _parts(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


Separated = BeforeValidator(_parts)
"""A text with commas may stand for a list of texts."""
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Location = tuple[int | str, ...]
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Flag:
    """A flag that gives a setting; or one `key` of a setting that is a mapping, with a `help` of its own."""

    name: str
    default: str = ""
    """What holds where the setting is not given, in words; otherwise the default of the field."""
    key: str = ""
    help: str = ""


@dataclass(frozen=True)
class Label:
    """A field of the page's form for a setting; or for one `key` of a setting that is a mapping."""

    text: str
    group: str
    key: str = ""
    long: bool = False
    """Whether it may have several lines."""


class _ReportsAsSpecError(type(BaseModel)):  # pyright: ignore[reportUntypedBaseClass]  the public name of pydantic's metaclass
    """Only direct construction passes through here; pydantic builds nested models without calling the class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from None  # pyright: ignore[reportArgumentType]


class Config(BaseModel, metaclass=_ReportsAsSpecError):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True,
        regex_engine="python-re",
    )  # fmt: skip

    def changed(self, *names: str) -> list[str]:
        """Which of the named settings differ from their defaults."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].get_default(call_default_factory=True)]


def problems_of(
    error: ValidationError, model_class: type[BaseModel], where: Callable[[Location], str] = lambda _: ""
) -> list[str]:
    """One sentence per problem; `where` gives the file and line (or the flag) of a location. A value that may be a
    number or a word such as 'auto' gets one sentence that names both."""
    found, before = list[str](), None
    for item in error.errors():
        tagged = tuple(item["loc"])
        item["loc"] = without_tags(tagged, model_class)
        written = _written_part(item["loc"], model_class)
        if item["type"] == "literal_error" and written == before:
            found[-1] = f"{found[-1].removesuffix('.')}, or {item.get('ctx', {})['expected']}."
        else:
            found.append(f"{where(item['loc'])}{_sentence(item, model_class, tagged)}")
        before = written
    return found


def without_tags(location: Location, model_class: type[BaseModel]) -> Location:
    """The location of an error as the user wrote it. Where a field may be one of several configs, pydantic adds the
    name of the one that it tried; that is removed."""
    current: Any = model_class
    said: list[int | str] = []
    for part in location:
        inside = _inside(current, part)
        if not _is_tag(current, part):
            said.append(part)
        current = inside
    return tuple(said)


def _is_tag(current: Any, part: int | str) -> bool:
    options = configs_in(current)
    return len(options) > 1 and part in map(_tag, options)


def configs_in(annotation: Any) -> list[type[Any]]:
    """The specs that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [config for argument in get_args(annotation) for config in configs_in(argument)]


def _tag(option: type[BaseModel]) -> Any:
    method = option.model_fields.get("method")
    return method.default if method is not None else None


def _inside(current: Any, part: int | str) -> Any:
    if _is_tag(current, part):
        return next(option for option in configs_in(current) if _tag(option) == part)
    holder = next((option for option in configs_in(current) if str(part) in option.model_fields), None)
    return _without_none(holder.model_fields[str(part)].annotation) if holder is not None else None


def _sentence(item: ErrorDetails, model_class: type[BaseModel], tagged: Location) -> str:
    if item["type"] == "extra_forbidden":
        *inside, unknown = tagged
        if (other := _of_another_method(model_class, tagged)) is not None:
            return other
        known = _fields_at(model_class, tuple(inside))
        listed = f" Known here: {', '.join(known)}." if known else ""
        key = shown(".".join(map(str, item["loc"]))).strip("'\"")
        return f'unknown setting "{key}".{did_you_mean(str(unknown), known)}{listed}'
    key = ".".join(map(str, _written_part(tuple(item["loc"]), model_class)))
    if item["type"] == "missing":
        return f'setting "{key}" is required and was not given.'
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        message = re.sub(r"\b(True|False)\b", lambda word: word[0].lower(), message)
    if item.get("ctx", {}).get("pattern") == NAME:
        message = f"a name has {OF_NAMES}"
    problem = f"{message[:1].lower()}{message[1:]}."
    if not key:
        begins_with_setting = set("._") & set(problem.split()[0].rstrip("."))
        return problem if begins_with_setting else f"{problem[:1].upper()}{problem[1:]}"
    return f'setting "{key}" is {shown(item["input"])}: {problem}'


NAME = rf"^(?!{DEVICE})[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}(?<!\.)\Z"
"""The pattern of the names of runs and tasks, which are files on every system."""
OF_NAMES = (
    'at most 64 letters (A-Z), digits, ".", "_" and "-"; the first is a letter or a digit, the last is not "."; and it '
    'is none that Windows has for a device, such as "con", "nul" or "aux.txt"'
)
INSTEAD = {"rank": "budget", "alpha": "scale", "budget": "rank", "scale": "alpha"}
"""What one method has for a setting of another's."""


def listed(names: Iterable[str], word: str = "or") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _of_another_method(model_class: type[BaseModel], tagged: Location) -> str | None:
    """A setting that is known, and not to the method that was asked for."""
    current: Any = model_class
    *inside, name = tagged
    for place, part in enumerate(inside):
        if _is_tag(current, part):
            having = [_tag(option) for option in configs_in(current) if name in option.model_fields]
            if not having:
                return None
            key, fields = (
                ".".join(map(str, (*inside[:place], name))),
                _fields_at(model_class, tuple(inside[: place + 1])),
            )
            instead = INSTEAD.get(str(name))
            hint = f" Use {instead}." if instead in fields else ""
            return f'"{key}" is a setting of {listed(having, "and")}, and the method is {part}.{hint}'
        current = _inside(current, part)
    return None


def shown(value: object) -> str:
    """A value for a message, cut where it is long: nothing, true and false as JSON and YAML write them."""
    try:
        text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written_part(location: Location, model_class: type[BaseModel]) -> list[int | str]:
    """What the user wrote of a location: pydantic adds the branch of a union that it tried."""
    written: list[int | str] = []
    current: Any = model_class
    for part in location:
        holder = next((option for option in configs_in(current) if part in option.model_fields), None)
        if holder is not None:
            current = _without_none(holder.model_fields[str(part)].annotation)
        elif get_origin(current) in (list, tuple) and isinstance(part, int):
            current = get_args(current)[0]
        elif get_origin(current) in (dict, list, tuple):
            current = None
        else:
            break
        written.append(part)
    return written


def _without_none(annotation: Any) -> Any:
    """`X | None` as X."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    return options[0] if get_origin(annotation) in (Union, UnionType) and len(options) == 1 else annotation


def _fields_at(model_class: type[BaseModel], location: Location) -> list[str]:
    current: Any = model_class
    for part in location:
        current = _inside(current, part)
    return list(dict.fromkeys(name for option in configs_in(current) for name in option.model_fields))


def descriptions_of(config: type[Config]) -> dict[str, str]:
    """The docstring of each field, from the class that declares it, and behind it the description of its type."""
    described = dict[str, str]()
    for owner in reversed(config.__mro__):
        if issubclass(owner, Config) and owner is not Config:
            described |= _docstrings(owner)  # pyright: ignore[reportArgumentType]  a class, which is hashable
    fields = config.model_fields  # what else has a docstring is of the class
    return {name: f"{text} {fields[name].description or ''}".strip() for name, text in described.items()
            if name in fields}  # fmt: skip


@cache
def _docstrings(owner: type[Any]) -> dict[str, str]:
    """The docstrings of the fields that the class itself declares, by field name."""
    [body] = (node.body for node in ast.parse(dedent(inspect.getsource(owner))).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(str(ast.literal_eval(text.value)).split()) for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }  # fmt: skip
