"""Names say what they hold: words that fit everything, such as `found` or `made`, are refused as names in the source.

They are refused for parameters, attributes, methods and whatever a module defines, with a leading underscore too. Local
variables are free, because their whole life is on one screen.
"""

from __future__ import annotations

import ast

import pytest

from kit.sources import TREES

REFUSED = {"found", "told", "asked", "said", "held", "kept", "made", "place", "wanted"}


def names_defined(tree: ast.Module):
    """`(line, name)` of every parameter, attribute, method and module-level definition of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ClassDef | ast.Module):
            yield from (definition for statement in node.body for definition in _definitions(statement))


def _definitions(statement: ast.stmt):
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.lineno, statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for target in targets:
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        yield from ((name.lineno, name.id) for name in names if isinstance(name, ast.Name))


def refused_in(tree: ast.Module) -> list[str]:
    return [f"{line}: {name}" for line, name in names_defined(tree) if name.strip("_").lower() in REFUSED]


def test_no_name_is_one_of_the_words_that_fit_everything():
    offences = [f"{name}:{offence}" for name, tree in TREES.items() for offence in refused_in(tree)]
    assert offences == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(found): ...",
        "def f(*, _told=1): ...",
        "def f(*said): ...",
        "one = lambda made: 1",
        "class A:\n    kept: int",
        "class A:\n    kept = 1",
        "class A:\n    def place(self): ...",
        "class Held: ...",
        "def _asked(): ...",
        "async def asked(): ...",
        "WANTED = 1",
        "wanted: int = 1",
        "a, told = 1, 2",
        "class A:\n    def f(self):\n        self.found = 1",
    ],
)
def test_the_search_sees_every_kind_of_name(text):
    assert len(refused_in(ast.parse(text))) == 1


def test_the_search_lets_local_variables_and_longer_names_by():
    text = "def f(items, found_at):\n    found = [made for made in items]\n    return x.kept, found"
    assert refused_in(ast.parse(text)) == []
