"""The numbers of an adapter as lines: what it declares, who applies it rightly, the rank it uses, what stands out."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rankwise.cli.rank_map import WIDTH
from rankwise.errors import some

if TYPE_CHECKING:
    from rankwise.commands.inspect import AdapterFacts

HINT = "a hint of a change that was planted by hand, and no proof"
MOST_PLANTED = 5
MOST_KINDS = 8


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
