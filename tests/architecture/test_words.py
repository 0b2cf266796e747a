"""Names say what they hold: words that fit everything, such as `found` or `made`, are refused as names in the source.

They are refused for parameters, attributes, methods and whatever a module defines, with a leading underscore too. Local
variables are free, because their whole life is on one screen.
"""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from kit.sources import FILES, TREES

REFUSED = {
    "found", "told", "asked", "said", "held", "kept", "made", "place", "wanted", "given", "own", "one", "others",
    "whole", "apart", "beside", "measured", "dealt", "heed", "settled", "foreseen", "host", "spec", "writing",
    "written", "desk", "together", "alone",
}  # fmt: skip
STAY = (
    {"runs/evaluations.py": {"measured"}, "exporting/extracting.py": {"whole"}}
    | {name: {"host"} for name in FILES if name.startswith(("cli/", "serving/", "studio/"))}
    | {name: {"settled"} for name in ("training/settling.py", "training/run.py")}
)
"""Words that a module needs as names all the same: keys of files and of --json, network addresses, and the value that
stands between the two halves of a training."""
FRAGMENTS = ("Of ", "The same", "Those ", "Its ", "Their ")
"""How a docstring begins that cannot be read without its neighbours."""


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
    offences = [
        f"{name}:{line}: {word}" for name, tree in TREES.items() for line, word in names_defined(tree)
        if word.strip("_").lower() in REFUSED - STAY.get(name, set())
    ]  # fmt: skip
    assert offences == []


def test_one_name_is_one_class():
    """But for the same part of two packages of one table, such as an engine's answer."""
    homes = Counter(node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in homes.items() if count > 1] == []


def docstrings(tree: ast.Module):
    """`(line, text)` of every docstring, of fields and constants too."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def test_a_docstring_can_be_read_alone():
    assert [f"{name}:{line}" for name, tree in TREES.items() for line, text in docstrings(tree)
            if text.startswith(FRAGMENTS)] == []  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "def f(found): ...",
        "def f(*, _told=1): ...",
        "def f(*said): ...",
        "first = lambda made: 1",
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
