"""`rankwise inspect`: the ranks of an adapter's layers, how AdaLoRA arrived at them and what the numbers say; or the
layers of a model.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

from rankwise.cli.display import Display, print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import ForceResult, Json, argument
from rankwise.errors import some
from rankwise.reporting.document import table
from rankwise.reporting.markup import lines_of
from rankwise.reporting.quantities import size
from rankwise.runs.lineage import described

if TYPE_CHECKING:
    from rankwise.commands.inspect import AdapterFacts, Inspected
    from rankwise.runs.integrity import Integrity
    from rankwise.runs.records import RankRecord


WIDTH, MOST_PLANS = 79, 8
HINT = "a hint of a change that was planted by hand, and no proof"
MOST_PLANTED = 5
MOST_KINDS = 8


def inspect(
    name: Annotated[
        str,
        argument(
            "A finished run (its name or folder), an adapter's folder or file, or a model: a starter, hub id, "
            "folder or .gguf file.",
            metavar="RUN|MODEL",
        ),
    ],
    force_result: ForceResult = False,
    as_json: Json = False,
) -> None:
    """Show what is inside an adapter: ranks, scales by engine, the rank that is used. Or the layers of a model."""
    with report_failures(as_json), Display() as display:
        from rankwise.commands.inspect_model import means_model

        if means_model(name):
            _inspect_model(name, as_json)
            return
        from rankwise.commands.inspect import inspect as inspect_command

        inspected = inspect_command(name, force_result=force_result, callback=display)
        print_result(as_json, inspected.summary(), *_lines(inspected))


def _inspect_model(name: str, as_json: bool) -> None:
    from rankwise.cli.model_layers import model_lines
    from rankwise.commands.inspect_model import inspect_model

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


def adapter_lines(facts: AdapterFacts) -> list[str]:
    """Lines below the table of ranks, as wide as it may be."""
    lines = [_declared(facts.declared), _present(facts), _base(facts)]
    if facts.spectra:
        lines += ["", *_engines(facts), "", *_ranks(facts), *_planted(facts)]
    lines += [f"warning: {warning}" for warning in facts.warnings]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """Paths are never broken."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def _declared(declared: dict[str, Any]) -> str:
    return "declares " + ", ".join(f"{key} {_short(value)}" for key, value in declared.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return some(map(str, value), 8)
    if isinstance(value, dict):
        return f"with {len(value):,} entries"
    return str(value)


def _present(facts: AdapterFacts) -> str:
    layers = some((f"{count} x {kind}" for kind, count in facts.kinds.items()), MOST_KINDS)
    heads = f"; trained whole: {some(facts.heads, 4)}" if facts.heads else ""
    return f"contains {layers or 'no factors'}{heads}"


def _base(facts: AdapterFacts) -> str:
    if facts.base is None:
        return "names no base model"
    recorded = facts.base_recorded
    if recorded is None:
        return f"base model: {facts.base}; its weights are not recorded, so another model would not be noticed"
    return f"base model: {facts.base}; its weights are recorded ({recorded.fingerprint}) and checked when it is loaded"


def _engines(facts: AdapterFacts) -> list[str]:
    scales = {f"{scale:.6g}" for scale in facts.scales.values()}
    least, most = min(facts.scales.values()), max(facts.scales.values())
    scale = f"{most:.6g}" if len(scales) == 1 else f"{least:.6g} to {most:.6g}"
    wrong = [verdict for verdict in facts.engines.values() if verdict is not None]
    return [
        f"scale {scale}; by their rules, these apply the trained change: {', '.join(facts.right) or 'none'}",
        *(f"  {verdict}" for verdict in wrong),
    ]


def _ranks(facts: AdapterFacts) -> list[str]:
    total = sum(len(spectrum.values) for spectrum in facts.spectra.values())
    enough = " and ".join(
        f"{rank:,} (at most {largest} in a layer) for an error of {error:.0%}"
        for error, (rank, largest) in facts.ranks_at.items()
    )
    of_all = ", with each expert's own," if len(facts.spectra) > sum(facts.kinds.values()) else ","
    return [f"total rank {total:,}{of_all} of which {facts.total_used:,} is used; {enough} of each layer's change"]


def _planted(facts: AdapterFacts) -> list[str]:
    if not facts.planted:
        return [f"no layer's first direction stands out from those of other layers (one would be {HINT})"]
    return [
        f"the first direction of {len(facts.planted):,} layers stands out ({HINT}):",
        *(
            f"  {one.path}: {one.dominance:.3g} times the second; {one.usual:.3g} is usual (score {one.score:.1f})"
            for one in facts.planted[:MOST_PLANTED]
        ),
    ]
