"""JSON Schemas: checked before they are used, and answers checked by them.

A schema is bounded in size and refers to itself alone: nothing is fetched. jsonschema-rs says whether it is a schema,
and what an answer breaks; llguidance (matcher.py) whether answers can be written by it. A keyword that neither of them
knows would be ignored, so one that looks like a known keyword is refused.

Where an object lists its properties and says nothing of others, answers have no others, though others are valid:

    {"properties": {"a": …}}    is written by    {"properties": {"a": …}, "additionalProperties": false}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rankwise.config.base import JsonObject
from rankwise.config.data import Constraint
from rankwise.errors import ConfigError, did_you_mean, one_line, some
from rankwise.system.extras import need_extra
from rankwise.system.foreign_json import loads

MOST_CHARACTERS = 200_000
"""The longest schema, regular expression, grammar or list of choices that is read."""
MOST_REMAINDERS, LARGEST, FARTHEST = 100_000, 10**15, Fraction(2**64)
INSIDE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
"""Keywords whose value is a schema; of the next two lines, a list of schemas, and schemas by name."""
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
KEYWORDS = (
    *INSIDE, *LISTS, *NAMED, "type", "enum", "const", "required", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems",
    "uniqueItems", "minProperties", "maxProperties", "minContains", "maxContains", "dependentRequired",
    "unevaluatedItems", "unevaluatedProperties", "title", "description", "default", "examples", "$schema", "$id",
    "$ref", "$anchor", "$comment", "$dynamicRef", "$dynamicAnchor", "deprecated", "readOnly", "writeOnly",
    "nullable", "strict", "additionalItems", "example", "contentEncoding", "contentMediaType", "dependencies",
)  # fmt: skip


def read_schema(text: str, where: str) -> str:
    """Check a schema, and return it on one line. ConfigError where it is none."""
    try:
        schema = json_in(text, loads)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{where}: the schema is not JSON ({one_line(str(error), 200)})."]) from None
    if not isinstance(schema, dict):
        raise ConfigError([f"{where}: a schema is a JSON object, and this is a {type(schema).__name__}."])
    problems = [
        f'{where}: the schema has the keyword "{key}"{path}, which JSON Schema does not know; rename it.{hint}'
        for key, path, hint in unknown_keywords(schema)
    ]
    if any("x-guidance" in one for _, one in every_schema(schema)):
        problems.append(f'{where}: the schema has "x-guidance", which would change how it is read; leave it out.')
    if problems:
        raise ConfigError(problems)
    text = json.dumps(schema, ensure_ascii=False)
    validator_of(text, where)
    numbers = list[str]()
    json.loads(text, parse_int=numbers.append, parse_float=numbers.append)
    if far := [one for one in numbers if float(one) and not 1 / FARTHEST < abs(Fraction(one)) < FARTHEST]:
        raise ConfigError(
            [f"{where}: the schema has the number {far[0][:40]}; leave out what is beyond 2^64 or 2^-64."]
        )
    if (place := endless(schema)) is not None:
        raise ConfigError([f"{where}: no answer can end, because each value of {place} needs another one inside."])
    if (states := remainders(schema)) > MOST_REMAINDERS:
        raise ConfigError([f"{where}: the multipleOf of the schema has {states:,} remainders; at most "
                           f"{MOST_REMAINDERS:,} can be followed."])  # fmt: skip
    return text


def json_in(text: str, read: Callable[[str], Any] = json.loads) -> Any:
    """The value of a JSON text. ValueError for NaN and Infinity too, which Python reads."""
    value = read(text)
    json.dumps(value, allow_nan=False)
    return value


def unknown_keywords(schema: JsonObject) -> Iterator[tuple[str, str, str]]:
    """Each key that looks like a keyword and is none, with its place and a proposal."""
    for path, one in every_schema(schema):
        for key in one:
            if key not in KEYWORDS and not key.startswith("x-") and (hint := did_you_mean(key, KEYWORDS)):
                yield key, path and f" at {path}", hint


def every_schema(schema: JsonObject, path: str = "") -> Iterator[tuple[str, JsonObject]]:
    """A schema and all that are inside it, with their paths."""
    yield path, schema
    for name, inside in subschemas(schema):
        yield from every_schema(inside, f"{path}/{name}")


def subschemas(schema: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The schemas directly inside a schema, with their paths."""
    found = [(key, schema.get(key)) for key in INSIDE]
    found += [(f"{key}/{at}", one) for key in LISTS for at, one in enumerate(_if(list, schema.get(key)))]
    found += [(f"{key}/{name}", one) for key in NAMED for name, one in _if(dict, schema.get(key)).items()]
    return ((path, one) for path, one in found if isinstance(one, dict))


def _if(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else kind()


@lru_cache(maxsize=16)
def validator_of(text: str, where: str = "the schema") -> Any:
    """What checks answers. ConfigError where the text is no schema, or refers to anything outside of it."""
    need_extra("jsonschema_rs", "a schema", "schema", ConfigError)
    from jsonschema_rs import FancyRegexOptions, ValidationError, validator_for

    bounded = FancyRegexOptions(backtrack_limit=1_000_000, size_limit=10_000_000)
    try:
        return validator_for(json.loads(text), validate_formats=True, offline=True, pattern_options=bounded)
    except ValidationError as error:
        place = "/".join(map(str, error.instance_path))
        inside = f" at {place}" if place else ""
        raise ConfigError([f"{where}: the schema is not valid{inside}: {one_line(error.message, 200)}."]) from None
    except ValueError as error:
        raise ConfigError([f"{where}: the schema cannot be used: {one_line(str(error), 200)}."]) from None


def schema_problem(constraint: Constraint, answer: str) -> str | None:
    """What an answer breaks, with the path in it; None where it is valid."""
    try:
        value = json_in(answer)
    except (ValueError, RecursionError):
        return f"is not JSON: {one_line(answer)!r}"
    broken = [
        f"{'.'.join(map(str, error.instance_path))}: {one_line(error.message, 120)}".removeprefix(": ")
        for error in validator_of(constraint.text).iter_errors(value)
    ]
    return f"breaks the schema: {some(broken, 3)}" if broken else None


def closed(schema: JsonObject) -> JsonObject:
    """The schema that answers are written by: objects have no other properties than those that they list. Where
    schemas are put together for one object, each lists only its own, and nothing is closed."""
    return schema if _puts_together(schema) else _close(deepcopy(schema))


def _puts_together(schema: JsonObject) -> bool:
    return any(
        "allOf" in one or ("properties" in one and not {"$ref", "anyOf", "oneOf"}.isdisjoint(one))
        for _, one in every_schema(schema)
    )


def remainders(schema: JsonObject) -> int:
    """How many remainders numbers may have by `multipleOf`, each of which the engine has a state for: several of them
    may apply to one number where schemas refer to others."""
    numbers = [one["multipleOf"] for _, one in every_schema(schema) if isinstance(one.get("multipleOf"), int | float)]
    states = [Fraction(str(number)).numerator for number in numbers]
    together = any({"allOf", "anyOf", "oneOf", "$ref"} & one.keys() for _, one in every_schema(schema))
    return max(sum(states), math.prod(set(states)) if together else 0)


def endless(schema: JsonObject) -> str | None:
    """A reference whose values need others of it without end, where no value of the schema ends; else None."""
    places = {f"#{path}": one for path, one in every_schema(schema)}
    left = {ref: None for one in places.values() if isinstance(ref := one.get("$ref"), str) and ref in places}

    def ends(schema: Any) -> bool:
        if not isinstance(schema, dict):
            return True
        several = [any(map(ends, schema[key])) for key in ("anyOf", "oneOf") if schema.get(key)]
        if schema.get("$ref") in left or not all((*several, *map(ends, schema.get("allOf", ())))):
            return False
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        items = [*schema.get("prefixItems", []), schema.get("items")][: int(schema.get("minItems", 0))]
        needed = {"object": [fields.get(name, others) for name in schema.get("required", ())], "array": items}
        kinds = schema.get("type", "any")
        every = kinds if isinstance(kinds, list) else [kinds]
        return not {"enum", "const"}.isdisjoint(schema) or any(all(map(ends, needed.get(kind, ()))) for kind in every)

    while more := [ref for ref in left if ends(places[ref])]:
        left = {ref: None for ref in left if ref not in more}
    return None if ends(schema) else next(iter(left), None)


def _close(schema: JsonObject) -> JsonObject:
    for _, inside in subschemas(schema):
        _close(inside)
    if "number" in schema.get("type", ()) and not {"enum", "const"} & schema.keys():  # else 1e999, which is infinite
        bounds = {"minimum": -LARGEST, "maximum": LARGEST}
        given = {name.lower().removeprefix("exclusive") for name in schema}
        schema.update({name: bound for name, bound in bounds.items() if name not in given})
    listed = schema.get("properties", {}).keys()
    if listed and set(schema.get("required", ())) <= listed and "patternProperties" not in schema:
        schema.setdefault("additionalProperties", False)
    return schema
