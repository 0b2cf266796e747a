"""The words of a Jinja template's source."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(8)
def _tokens(source: str) -> tuple[tuple[str, str], ...]:
    from jinja2 import Environment

    return tuple((kind, value) for _, kind, value in Environment().lex(source))


def names(source: str) -> frozenset[str]:
    """All names in a template: variables, fields, filters and functions."""
    return frozenset(value for kind, value in _tokens(source) if kind == "name")
