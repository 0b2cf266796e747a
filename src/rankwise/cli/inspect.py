"""`rankwise inspect`: the ranks of an adapter's layers, how AdaLoRA arrived at them and what the numbers say; or the
layers of a model, and what the targets all-linear and all-conv choose of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ForceResult, Json, argument, runs_and_starters
from rankwise.errors import some
from rankwise.reporting.document import facts, table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import size
from rankwise.runs.lineage import described

if TYPE_CHECKING:
    from rankwise.commands.inspect import AdapterFacts, Inspected
    from rankwise.commands.models import InspectedModel
    from rankwise.planning.parameters import LayerGroup, TargetChoice
    from rankwise.runs.integrity import Integrity
    from rankwise.runs.records import RankRecord


MOST_PLANS = 8
HINT = "a hint of a change that was planted by hand, and no proof"
MOST_PLANTED = 5
MOST_KINDS = 8


def inspect(
    name: Annotated[
        str,
        argument(
            "A finished run (name or folder), an adapter (folder or file), or a model (starter name, Hugging Face id, "
            "folder or .gguf file).",
            metavar="RUN|MODEL",
            autocompletion=runs_and_starters,
        ),
    ],
    force_result: ForceResult = False,
    as_json: Json = False,
) -> None:
    """Show what an adapter contains: each layer's rank, and how engines scale it. Or list a model's layers."""
    with report_failures(as_json), Display() as display:
        from rankwise.commands.models import means_model

        if means_model(name):
            _inspect_model(name, as_json)
            return
        from rankwise.commands.inspect import inspect as inspect_command

        inspected = inspect_command(name, force_result=force_result, callback=display)
        print_result(as_json, inspected.summary(), *_lines(inspected))


def _inspect_model(name: str, as_json: bool) -> None:
    from rankwise.commands.models import inspect_model

    inspected = inspect_model(name)
    print_result(as_json, inspected.summary(), *model_lines(inspected))


def _lines(inspected: Inspected) -> list[str]:
    from rankwise.reporting.training import rank_map

    size_text = f"{inspected.parameters:,} parameters, {size(inspected.bytes)}"
    lines = [f"{inspected.run}: {inspected.label}, no adapters in any layer", size_text]
    if inspected.ranks:
        total = f"total rank {inspected.total_rank:,}, {inspected.mean_rank:.2f} on average"
        layers = f"{inspected.run}: {len(inspected.ranks):,} layers, {total}"
        lines = [*lines_of(rank_map(inspected.ranks)), "", layers, size_text]
    lines += ["", *_plans(inspected.history)] if inspected.history else []
    lines += ["", *adapter_lines(inspected.adapter)] if inspected.adapter is not None else []
    lines += [f"begun with: {described(inspected.lineage)}"] if inspected.lineage else []
    return [*lines, *([] if inspected.integrity is None else [_verified(inspected.integrity)])]


def _verified(integrity: Integrity) -> str:
    if integrity.status == "not recorded":
        return "the run has no hashes of its result files, so changes cannot be detected"
    if integrity.status == "verified":
        return f"{integrity.files:,} result files are unchanged since training (SHA-256)"
    return f"changed since training: {some([*integrity.changed, *integrity.missing, *integrity.added])}"


def _plans(history: list[RankRecord]) -> list[str]:
    """The first and the last step of the pruning, and some between."""
    apart = max(1, -(-(len(history) - 1) // (MOST_PLANS - 1)))
    shown = [*history[:-1:apart], history[-1]]
    rows = [(f"{plan.step:,}", f"{plan.budget:,} of {plan.of:,}", f"{plan.mean_rank:.2f}", "final" * plan.final)
            for plan in shown]  # fmt: skip
    return lines_of(table(("step", history[-1].unit, "mean rank", ""), rows, words=()))


def adapter_lines(adapter: AdapterFacts) -> list[str]:
    """Lines below the table of ranks."""
    declared = ", ".join(f"{key} {_short(value)}" for key, value in adapter.declared.items())
    layers = some((f"{count} x {kind}" for kind, count in adapter.kinds.items()), MOST_KINDS)
    known = [("declares", declared), ("contains", layers or "no factors"), ("base model", _base(adapter))]
    known += [("trained whole", some(adapter.heads, 4))] if adapter.heads else []
    spectra = ["", *_engines(adapter), "", *_ranks(adapter), *_planted(adapter)] if adapter.spectra else []
    return [*lines_of(facts(known)), *spectra, *(f"warning: {warning}" for warning in adapter.warnings)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return some(map(str, value), 8)
    if isinstance(value, dict):
        return f"with {len(value):,} entries"
    return str(value)


def _base(adapter: AdapterFacts) -> str:
    if adapter.base is None:
        return "not named"
    recorded = adapter.base_recorded
    if recorded is None:
        return f"{adapter.base}; its weights are not recorded, so another model would not be noticed"
    return f"{adapter.base}; its weights are recorded ({recorded.fingerprint}) and checked when it is loaded"


def _engines(adapter: AdapterFacts) -> list[str]:
    scales = {f"{scale:.6g}" for scale in adapter.scales.values()}
    least, most = min(adapter.scales.values()), max(adapter.scales.values())
    scale = f"{most:.6g}" if len(scales) == 1 else f"{least:.6g} to {most:.6g}"
    wrong = [verdict for verdict in adapter.engines.values() if verdict is not None]
    return [
        f"scale {scale}; by their rules, these apply the trained change: {', '.join(adapter.right) or 'none'}",
        *(f"  {verdict}" for verdict in wrong),
    ]


def _ranks(adapter: AdapterFacts) -> list[str]:
    total = sum(len(spectrum.values) for spectrum in adapter.spectra.values())
    enough = " and ".join(
        f"{rank:,} (at most {largest} in a layer) for an error of {error:.0%}"
        for error, (rank, largest) in adapter.ranks_at.items()
    )
    of_all = ", with each expert's own," if len(adapter.spectra) > sum(adapter.kinds.values()) else ","
    return [f"total rank {total:,}{of_all} of which {adapter.total_used:,} is used; {enough} of each layer's change"]


def _planted(adapter: AdapterFacts) -> list[str]:
    if not adapter.planted:
        return [f"no layer's first direction stands out from those of other layers (one would be {HINT})"]
    return [
        f"the first direction of {len(adapter.planted):,} layers stands out ({HINT}):",
        *(
            f"  {one.path}: {one.dominance:.3g} times the second; {one.usual:.3g} is usual (score {one.score:.1f})"
            for one in adapter.planted[:MOST_PLANTED]
        ),
    ]


MOST_NAMES = 4


def model_lines(inspected: InspectedModel) -> list[str]:
    from rankwise.planning.parameters import RANK

    head = "" if not inspected.head_parameters else ", without a classifier's head"
    names = ("layers", "kind", "shape", "parameters", "names", "remark")
    layers = table(names, list(map(_group_cells, inspected.layers)), words=(1, 2, 4, 5))
    heads = ("targets", "layers", f"trained at rank {RANK}", "share", "adapter")
    targets = table(heads, [_target_cells(choice, inspected.parameters) for choice in inspected.targets])
    notes = [f"{choice.target}: {note}" for choice in inspected.targets
             for note in ([choice.refusal] if choice.refusal else choice.notes)]  # fmt: skip
    return [
        f"{inspected.model}: {inspected.family}, {inspected.parameters:,} parameters{head}", "", *lines_of(layers), "",
        *lines_of(targets), *notes, "", f"By default this model's adapters have the targets {inspected.default}.",
    ]  # fmt: skip


def _group_cells(group: LayerGroup) -> tuple[str, ...]:
    remark = "cannot be adapted" if group.problem else group.remark
    return f"{group.count:,}", group.kind, group.shape, f"{group.parameters:,}", some(group.names, MOST_NAMES), remark


def _target_cells(choice: TargetChoice, total: int) -> list[str]:
    amounts = [f"{choice.trainable:,}", f"{choice.trainable / total:.2%}", size(choice.file_bytes)]
    return [choice.target, f"{len(choice.paths):,}", *(["-"] * 3 if choice.refusal else amounts)]
