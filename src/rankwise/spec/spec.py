"""The common ancestor of all specs: frozen, unknown keys refused, every problem told at once.

A spec is what was asked, not a thing that computes, so nothing here imports torch. Constructing a spec with
wrong values raises SpecError; nested specs are validated by the outermost one, which reports for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import ErrorDetails

from rankwise.errors import SpecError, did_you_mean

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
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
    location = tuple(part for part in item["loc"] if not _names_a_union_branch(part))
    key = ".".join(map(str, location))
    if item["type"] == "extra_forbidden":
        known = _fields_at(spec, location[:-1])
        listed = f" Known here: {', '.join(known)}." if known else ""
        return f'unknown setting "{key}".{did_you_mean(str(location[-1]), known)}{listed}'
    if item["type"] == "missing":
        return f'setting "{key}" is required and was not given.'
    message = item["msg"].removeprefix("Value error, ")
    return f'setting "{key}" is {item["input"]!r}: {message[:1].lower()}{message[1:]}.'


def _names_a_union_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in _BRANCHES or "[" in part or "-" in part)


_BRANCHES = {"str", "int", "float", "constrained-str", "constrained-int"}


def _fields_at(spec: type[BaseModel], location: Location) -> list[str]:
    current: Any = spec
    for part in location:
        field = current.model_fields.get(part) if _is_model(current) else None
        current = field.annotation if field else None
    return list(current.model_fields) if _is_model(current) else []


def _is_model(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
