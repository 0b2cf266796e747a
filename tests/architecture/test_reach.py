"""How much of the house a door can reach: what it names, what that names, and so on.

Size costs its author once; reach is what each reader pays. Objectives, methods, and what a training may do besides
learning are named by strings in tables, and imported when they are used: these names are not reached, and a table of
them elsewhere would only hide what hangs together.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from test_ceilings import FILES, TREES

REACH = {
    "commands.train:train": 339_431, "commands.predict:predict": 216_682, "commands.plan:plan": 106_733,
    "serving.app:Server": 80_275, "training.trainer:Trainer": 16_976,
}  # fmt: skip
TABLES = {
    "objectives.registry:CLASSES": 164_871, "methods.registry:METHODS": 67_061, "commands.train:train": 413_414,
}  # fmt: skip
"""With all that the tables of names lead to."""
WITH_NAMES = {
    "", "commands.demo", "config.recipe", "methods.registry", "objectives.registry", "rows.instructions", "sklearn",
    "sklearn.tuned", "training.extras", "training.extras.budgets", "training.validation",
}  # fmt: skip
"""Modules that hold the dotted name of another; of those that are no table, it is the name of a resource."""
EXPERIMENT, POSITIONAL, WIDE, WIDEST = 8, 7, 29, 38
"""Functions that take a whole `Experiment` or `Settled`; calls with over six arguments by place; classes with over
twelve methods; methods of the widest."""
Name = tuple[str, str]
"""A module, and a name at its top."""


@cache
def tops(module: str) -> dict[str, list[ast.stmt]]:
    """What a module defines, by name."""
    found: dict[str, list[ast.stmt]] = {}
    ahead: list[ast.stmt] = list(TREES[module].body)
    for node in ahead:
        if isinstance(node, ast.If | ast.Try):
            ahead += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for one in (one for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)):
                found.setdefault(one.id, []).append(node)
    return found


@cache
def imports(module: str) -> dict[str, Name]:
    """Our own names that a module imports anywhere; a module has the empty name."""
    nodes = [one for one in ast.walk(TREES[module]) if isinstance(one, ast.ImportFrom) and one.module in FILES]
    pairs = ((one, alias) for one in nodes for alias in one.names)
    return {
        alias.asname or alias.name: (whole, "") if (whole := f"{one.module}.{alias.name}") in FILES
        else (str(one.module), alias.name)
        for one, alias in pairs
    }  # fmt: skip


def resolved(module: str, name: str) -> Name | None:
    if name in tops(module):
        return module, name
    where, what = imports(module).get(name, ("", ""))
    return resolved(where, what) if what and (where, what) != (module, name) else None


def strings(node: ast.AST) -> Iterator[Name]:
    """Modules that a string names whole, and the name in it."""
    texts = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))
    for module, _, name in (text.partition(":") for text in texts):
        if module != "rankwise" and module in FILES:
            yield module, name


def named(module: str, node: ast.AST, *, tables: bool) -> Iterator[Name]:
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and (found := resolved(module, one.id)):
            yield found
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            where, what = imports(module).get(one.value.id, ("", "none"))
            if not what and (found := resolved(where, one.attr)):
                yield found
    for where, name in strings(node) if tables else ():
        yield from [(where, name)] if name else ((where, one) for one in tops(where))


def reach(door: str, *, tables: bool) -> int:
    """Nodes of the syntax trees."""
    module, _, name = door.partition(":")
    seen, ahead = set[Name](), [(f"rankwise.{module}", name)]
    while ahead:
        if (one := ahead.pop()) not in seen:
            seen.add(one)
            for node in tops(one[0]).get(one[1], ()):
                ahead += named(one[0], node, tables=tables)
    nodes = {id(node): node for module, name in seen for node in tops(module).get(name, ())}
    return sum(1 for node in nodes.values() for _ in ast.walk(node))


@pytest.mark.parametrize(("door", "most"), REACH.items())
def test_no_door_reaches_more(door: str, most: int) -> None:
    assert reach(door, tables=False) <= most


@pytest.mark.parametrize(("door", "most"), TABLES.items())
def test_no_table_leads_to_more(door: str, most: int) -> None:
    assert reach(door, tables=True) <= most


def test_names_of_modules_stand_in_few_tables() -> None:
    holding = {name.removeprefix("rankwise").removeprefix(".") for name, tree in TREES.items() if any(strings(tree))}
    assert holding == WITH_NAMES


def test_few_functions_know_everything_and_few_things_have_no_name() -> None:
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    functions = [one for one in nodes if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    whole = [
        one.name for one in functions
        for given in [*one.args.args, *one.args.kwonlyargs]
        if given.annotation and {"Experiment", "Settled"} & set(ast.unparse(given.annotation).split(" | "))
    ]  # fmt: skip
    methods = [
        sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
        for node in nodes if isinstance(node, ast.ClassDef)
    ]  # fmt: skip
    positional = [ast.unparse(one.func) for one in nodes if isinstance(one, ast.Call) and len(one.args) > 6]
    assert len(whole) <= EXPERIMENT, whole
    assert len(positional) <= POSITIONAL, positional
    assert sum(one > 12 for one in methods) <= WIDE and max(methods) <= WIDEST
