"""The words of a Jinja template's source, and its rendering by plain Jinja, as engines beside transformers do it."""

from __future__ import annotations

import ast
import json
from datetime import datetime
from functools import lru_cache, partial
from typing import Any


@lru_cache(8)
def _tokens(source: str) -> tuple[tuple[str, str], ...]:
    from jinja2 import Environment

    return tuple((kind, value) for _, kind, value in Environment().lex(source))


def literals(source: str) -> list[str]:
    """The string literals of a template, each once."""
    texts = [_unquoted(value) for kind, value in _tokens(source) if kind == "string"]
    return list(dict.fromkeys(texts))


def names(source: str) -> frozenset[str]:
    """All names in a template: variables, fields, filters and functions."""
    return frozenset(value for kind, value in _tokens(source) if kind == "name")


def _unquoted(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError):  # a line break inside quotes, which Jinja allows
        return literal[1:-1]


def rendered(source: str, **values: Any) -> str:
    """Render in a sandbox by the rules of llama-cpp-python 0.3.36: Jinja with loop controls, with JSON as Python writes
    it, and with the date."""
    return _compiled(source).render(strftime_now=lambda form: datetime.now().astimezone().strftime(form), **values)


@lru_cache(8)
def _compiled(source: str) -> Any:
    from jinja2 import BaseLoader
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(source)
