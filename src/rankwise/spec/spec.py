"""The common ancestor of all specs: frozen, unknown keys refused, every problem told at once.

A spec is what was asked, not a thing that computes, so nothing here imports torch. Constructing a spec with
wrong values raises SpecError; nested specs are validated by the outermost one, which reports for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import ErrorDetails

from rankwise.errors import SpecError, did_you_mean


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is wanted")
    return value


PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Location = tuple[int | str, ...]


class _ReportsAsSpecError(ModelMetaclass):
    """Only direct construction passes through here; pydantic builds nested models without calling the class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise SpecError(problems_of(error, cls)) from None  # pyright: ignore[reportArgumentType]


class Spec(BaseModel, metaclass=_ReportsAsSpecError):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def problems_of(
    error: ValidationError, spec: type[BaseModel], where: Callable[[Location], str] = lambda _: ""
) -> list[str]:
    """One sentence per problem; `where` gives the file and line (or the flag) of a location."""
    return [f"{where(tuple(item['loc']))}{_sentence(item, spec)}" for item in error.errors()]


def _sentence(item: ErrorDetails, spec: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        *inside, unknown = item["loc"]
        known = _fields_at(spec, tuple(inside))
        listed = f" Known here: {', '.join(known)}." if known else ""
        key = shown(".".join(map(str, item["loc"]))).strip("'\"")
        return f'unknown setting "{key}".{did_you_mean(str(unknown), known)}{listed}'
    key = ".".join(map(str, _written_part(tuple(item["loc"]), spec)))
    if item["type"] == "missing":
        return f'setting "{key}" is required and was not given.'
    message = item["msg"].removeprefix("Value error, ")
    problem = f"{message[:1].lower()}{message[1:]}."
    if not key:
        return f"{problem[:1].upper()}{problem[1:]}"
    return f'setting "{key}" is {shown(item["input"])}: {problem}'


def shown(value: object) -> str:
    """A value for a message: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written_part(location: Location, spec: type[BaseModel]) -> list[int | str]:
    """What the user wrote of a location: pydantic adds the branch of a union that it tried."""
    written: list[int | str] = []
    current: Any = spec
    for part in location:
        if _is_model(current) and part in current.model_fields:
            current = _without_none(current.model_fields[str(part)].annotation)
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


def _fields_at(spec: type[BaseModel], location: Location) -> list[str]:
    current: Any = spec
    for part in location:
        field = current.model_fields.get(part) if _is_model(current) else None
        current = field.annotation if field else None
    return list(current.model_fields) if _is_model(current) else []


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
