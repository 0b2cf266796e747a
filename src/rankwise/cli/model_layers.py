"""The layers of a model as a table, and what the targets all-linear and all-conv choose of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.errors import some
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import size

if TYPE_CHECKING:
    from rankwise.commands.models import InspectedModel
    from rankwise.planning.parameters import LayerGroup, TargetChoice

MOST_NAMES = 4


def model_lines(inspected: InspectedModel) -> list[str]:
    from rankwise.planning.parameters import RANK

    head = "" if not inspected.head_parameters else ", without a classifier's head"
    layers = table(("layers", "kind", "shape", "parameters", "names", "remark"), list(map(_cells, inspected.layers)),
                   words=(1, 2, 4, 5))  # fmt: skip
    heads = ("targets", "layers", f"trained at rank {RANK}", "share", "adapter")
    targets = table(heads, [_amounts(choice, inspected.parameters) for choice in inspected.targets])
    notes = [f"{choice.target}: {note}" for choice in inspected.targets
             for note in ([choice.refusal] if choice.refusal else choice.notes)]  # fmt: skip
    return [
        f"{inspected.model}: {inspected.family}, {inspected.parameters:,} parameters{head}", "", *lines_of(layers), "",
        *lines_of(targets), *notes, "", f"By default this model's adapters have the targets {inspected.default}.",
    ]  # fmt: skip


def _cells(group: LayerGroup) -> tuple[str, ...]:
    remark = "cannot be adapted" if group.problem else group.remark
    return f"{group.count:,}", group.kind, group.shape, f"{group.parameters:,}", some(group.names, MOST_NAMES), remark


def _amounts(choice: TargetChoice, total: int) -> list[str]:
    amounts = [f"{choice.trainable:,}", f"{choice.trainable / total:.2%}", size(choice.file_bytes)]
    return [choice.target, f"{len(choice.paths):,}", *(["-"] * 3 if choice.refusal else amounts)]
