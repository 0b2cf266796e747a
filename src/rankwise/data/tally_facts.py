"""Tallies of parts of the data: joined in the order of the rows they are one tally of all, and they can be stored.

    tally of all = empty tally, joined with that of part 0, 1, 2, …

Whatever a tally has is a sum, a count of each of several words, a list whose beginning matters, or an array.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankwise.data.report import Tally
from rankwise.runs.data_report import MOST_LISTED, Skipped

SUMS = (
    "rows", "used", "sequences", "tokens", "loss_tokens", "ended", "truncated", "without_loss_tokens",
    "answers_too_long", "unlike_asked", "double_start", "control_tokens", "replacements", "looks_rendered",
)  # fmt: skip
COUNTERS = ("skipped", "masks", "unknown_special")
LISTS = ("unread", "unwritten")
TAG_SUMS = ("words", "strays", "widened", "unlearned", "cut")


def join(tally: Tally, other: Tally) -> None:
    """Count the rows of `other`, which follow those of `tally`."""
    for name in SUMS:
        setattr(tally, name, getattr(tally, name) + getattr(other, name))
    for name in COUNTERS:
        getattr(tally, name).update(getattr(other, name))
    for name in LISTS:
        getattr(tally, name).extend(getattr(other, name))
    tally.skipped_rows.extend(other.skipped_rows[: max(0, MOST_LISTED - len(tally.skipped_rows))])
    shortest = [one.shortest_left_out for one in (tally, other) if one.shortest_left_out]
    tally.shortest_left_out = min(shortest, default=None)
    tally.add_systems(sorted(other.systems, key=str))
    tally.lengths.extend(other.lengths)
    tally.texts.extend(other.texts.digests, other.texts.signatures)
    tally.pairs.seen.extend(other.pairs.seen.view().array)
    tally.pairs.chosen.extend(other.pairs.chosen)
    tally.pairs.rejected.extend(other.pairs.rejected)
    tally.pairs.ties += other.pairs.ties
    for name in TAG_SUMS:
        setattr(tally.tags, name, getattr(tally.tags, name) + getattr(other.tags, name))
    tally.meaning.join(other.meaning)
    tally.tags.spans.update(other.tags.spans)
    tally.tags.example = tally.tags.example or other.tags.example


def facts_of(tally: Tally) -> dict[str, Any]:
    """What JSON can hold of a tally; `arrays_of` has the rest."""
    return {
        **{name: getattr(tally, name) for name in (*SUMS, *COUNTERS, *LISTS, "shortest_left_out")},
        "skipped_rows": [(row.where, row.why) for row in tally.skipped_rows],
        "systems": sorted(tally.systems, key=str),
        "ties": tally.pairs.ties,
        "meaning": tally.meaning.facts(),
        "tags": {name: getattr(tally.tags, name) for name in (*TAG_SUMS, "spans", "example")},
    }


def arrays_of(tally: Tally) -> dict[str, np.ndarray]:
    return {
        "lengths": np.array(tally.lengths, np.int32),
        "text_digests": tally.texts.digests,
        "text_signatures": tally.texts.signatures,
        "exchanges": tally.meaning.exchanges.view().array,
        "characters": tally.meaning.lengths.view().array,
        "pairs_seen": tally.pairs.seen.view().array,
        "pairs_chosen": np.array(tally.pairs.chosen, np.int32),
        "pairs_rejected": np.array(tally.pairs.rejected, np.int32),
    }


def restore(tally: Tally, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Tally:
    """Fill an empty tally with what was stored of another."""
    for name in (*SUMS, *LISTS, "shortest_left_out"):
        setattr(tally, name, facts[name])
    for name in COUNTERS:
        setattr(tally, name, Counter(facts[name]))
    tally.skipped_rows = [Skipped(where=where, why=why) for where, why in facts["skipped_rows"]]
    tally.systems = set(facts["systems"])
    tally.pairs.ties = facts["ties"]
    for name, value in facts["tags"].items():
        setattr(tally.tags, name, Counter(value) if name == "spans" else value)
    tally.lengths = array("i", arrays["lengths"].tobytes())
    tally.texts.extend(arrays["text_digests"], arrays["text_signatures"])
    tally.meaning.restore(facts["meaning"], arrays["exchanges"], arrays["characters"])
    tally.pairs.seen.extend(arrays["pairs_seen"])
    tally.pairs.chosen = array("i", arrays["pairs_chosen"].tobytes())
    tally.pairs.rejected = array("i", arrays["pairs_rejected"].tobytes())
    return tally
