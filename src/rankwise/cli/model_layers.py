"""The layers of a model as a table, and what the targets all-linear and all-conv choose of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.errors import some
from rankwise.reporting.quantities import size

if TYPE_CHECKING:
    from rankwise.commands.inspect_model import InspectedModel
    from rankwise.planning.parameters import LayerGroup, TargetChoice

MOST_NAMES = 4
TARGET, COUNT, TRAINED, SHARE, FILE = 12, 7, 22, 10, 14
"""Widths of the columns of the second table."""


def model_lines(inspected: InspectedModel) -> list[str]:
    from rankwise.planning.parameters import RANK

    head = "" if not inspected.head_parameters else ", without a classifier's head"
    lines = [f"{inspected.model}: {inspected.family}, {inspected.parameters:,} parameters{head}", ""]
    rows = [("layers", "kind", "shape", "parameters", "names"), *map(_cells, inspected.layers)]
    lines += _table(rows)
    trained = f"trained at rank {RANK}"
    lines += ["", f"{'targets':<{TARGET}}{'layers':>{COUNT}}{trained:>{TRAINED}}{'share':>{SHARE}}{'adapter':>{FILE}}"]
    for choice in inspected.targets:
        lines += _target_lines(choice, inspected)
    return [*lines, "", f"By default this model's adapters have the targets {inspected.default}."]


def _cells(group: LayerGroup) -> tuple[str, str, str, str, str]:
    names = some(group.names, MOST_NAMES)
    remark = "cannot be adapted" if group.problem else group.remark
    names += f" ({remark})" if remark else ""
    return f"{group.count:,}", group.kind, group.shape, f"{group.parameters:,}", names


def _table(rows: list[tuple[str, str, str, str, str]]) -> Iterator[str]:
    """Numbers at the right of their columns, words at the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for count, kind, shape, parameters, names in rows:
        yield (
            f"{count:>{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {parameters:>{widths[3]}}  {names}"
        ).rstrip()


def _target_lines(choice: TargetChoice, inspected: InspectedModel) -> Iterator[str]:
    share, adapter = choice.trainable / inspected.parameters, size(choice.file_bytes)
    amounts = "" if choice.refusal else f"{choice.trainable:>{TRAINED},}{share:>{SHARE}.2%}{adapter:>{FILE}}"
    yield f"{choice.target:<{TARGET}}{len(choice.paths):>{COUNT},}{amounts}"
    for note in [choice.refusal] if choice.refusal else choice.notes:
        yield f"  {note}"
