"""Nobody outside `methods/` asks which method a training has: settings and trainables answer for themselves."""

from __future__ import annotations

import ast

import pytest

from kit.sources import TREES

KINDS = {
    "LoraConfig", "AdaLoraConfig", "FullConfig", "AdapterConfig", "MethodConfig", "LoraMethod", "AdaLoraMethod",
    "FullMethod", "TrainableLoRA", "TrainableAdaLora", "FullFineTuning", "AdapterTrainable", "AdapterSet", "HeadConfig",
    "HeadMethod", "TrainableHead",
}  # fmt: skip
COMPARED = {"method", "artifact"}


def branches_in(tree: ast.Module) -> list[str]:
    """`line: code` of every question for the method."""
    return [f"{node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree) if _asks(node)]


def _asks(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
        return bool(names & KINDS)
    if isinstance(node, ast.Compare):
        sides = [part for side in (node.left, *node.comparators) for part in getattr(side, "elts", [side])]
        identity = isinstance(node.ops[0], ast.Is | ast.IsNot)
        return not identity and any(map(_names_a_method, sides))
    if isinstance(node, ast.MatchClass):
        return isinstance(node.cls, ast.Name) and node.cls.id in KINDS
    return isinstance(node, ast.Match) and isinstance(node.subject, ast.Attribute) and node.subject.attr in COMPARED


def _names_a_method(side: ast.AST) -> bool:
    return (isinstance(side, ast.Attribute) and side.attr in COMPARED) or (
        isinstance(side, ast.Constant) and side.value in ("lora", "adalora", "head")
    )


def asking_files() -> dict[str, list[str]]:
    branches = {name: branches_in(tree) for name, tree in TREES.items()}
    return {name: lines for name, lines in branches.items() if lines and not name.startswith("methods/")}


def test_no_file_outside_methods_asks_for_the_method():
    assert asking_files() == {}


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(experiment.adapter, LoraConfig)",
        "isinstance(spec, FullConfig | AdaLoraConfig)",
        "isinstance(tuned, (AdapterSet, int))",
        "job.method == 'full'",
        "'lora' != spec.method",
        "spec.method not in ('lora', 'adalora')",
        "config.artifact == 'model'",
        "method == 'adalora'",
        "match config:\n    case LoraConfig(): pass",
        "match config.method:\n    case 'lora': pass",
    ],
)
def test_the_search_sees_every_kind_of_question(text):
    assert len(branches_in(ast.parse(text))) == 1


def test_the_search_lets_answers_by():
    assert branches_in(ast.parse("method_of(config).save(x)\nprint(spec.method)\nrun.artifact is not None")) == []
