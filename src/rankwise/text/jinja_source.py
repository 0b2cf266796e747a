"""The words of a Jinja template's source."""

from __future__ import annotations

import ast
from functools import lru_cache


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
