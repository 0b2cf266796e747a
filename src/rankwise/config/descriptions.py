"""What each setting means: the docstring below its field, which the page of settings and the studio's form show."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from textwrap import dedent

from rankwise.config.base import Config


def descriptions_of(config: type[Config]) -> dict[str, str]:
    """The docstring of each field, from the class that declares it."""
    descriptions: dict[str, str] = {}
    for owner in reversed([cls for cls in config.__mro__ if issubclass(cls, Config) and cls is not Config]):
        [body] = (
            node.body for node in ast.parse(dedent(inspect.getsource(owner))).body if isinstance(node, ast.ClassDef)
        )
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                assert isinstance(text.value, ast.Constant), ast.unparse(text)
                descriptions[field.target.id] = " ".join(str(text.value.value).split())
    return descriptions
