"""Facts of the data report that are taken from the counts and the files as they are."""

from __future__ import annotations

from typing import Any

from rankwise.data.hub import Part
from rankwise.data.licences import UNKNOWN, find_licence, normalised
from rankwise.data.report import Tally
from rankwise.data.sources import Reading
from rankwise.runs.data_report import PartFacts, ValidationFacts


def counts_of(tally: Tally, encodes: bool, classifies: bool) -> dict[str, Any]:
    """What the report takes from the tally as it is; counts of tokens only where rows were encoded."""
    counts: dict[str, Any] = {
        "rows": tally.rows,
        "used": tally.used,
        "skipped": sum(tally.skipped.values()),
        "skipped_why": dict(tally.skipped),
        "skipped_rows": tuple(tally.skipped_rows),
        "lengths": tally.length_facts(),
        "masks": dict(tally.masks),
        "template_parity": tally.unlike_asked == 0 if tally.sequences else None,
        "unknown_special_tokens": dict(tally.unknown_special),
        "replacement_characters": tally.replacements,
        "system": tally.system,
    }
    of_tokens: dict[str, int | None] = {
        "sequences": tally.sequences,
        "tokens": tally.tokens,
        "loss_tokens": tally.loss_tokens,
        "eos_in_loss": tally.ended,
        "truncated": tally.truncated,
        "without_loss_tokens": tally.without_loss_tokens,
        "template_parity_broken": tally.unlike_asked,
        "double_start": tally.double_start,
        "control_tokens_as_text": tally.control_tokens,
    }
    if classifies:  # no answer is written, so none is located or ended
        counts["template_parity"] = None
        of_tokens |= {"eos_in_loss": None, "template_parity_broken": None}
    return counts | (of_tokens if encodes else dict.fromkeys(of_tokens))


def validation_of(apart: Tally, encodes: bool) -> ValidationFacts:
    return ValidationFacts(
        rows=apart.rows,
        used=apart.used,
        skipped=sum(apart.skipped.values()),
        skipped_why=dict(apart.skipped),
        skipped_rows=tuple(apart.skipped_rows),
        truncated=apart.truncated if encodes else None,
        loss_tokens=apart.loss_tokens if encodes else None,
    )


def part_facts(reading: Reading, part: Part) -> PartFacts:
    given = reading.source.licence or part.licence
    found = find_licence(part.folder) if given is None and part.folder is not None else UNKNOWN
    licence = normalised(given) if given is not None else found
    return PartFacts(
        name=part.name, sha256=part.identity(), format=part.format, rows=part.rows, licence=licence, layout=part.layout
    )
