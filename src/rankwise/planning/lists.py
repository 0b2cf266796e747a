"""What plans know by heart: models by name, and the counts of two papers beside our own."""

from __future__ import annotations

from typing import Any

from rankwise.planning.catalogue import CATALOGUE
from rankwise.planning.papers import ROWS
from rankwise.planning.parameters import parameters_of
from rankwise.planning.reading import shape_of


def known_models() -> list[dict[str, Any]]:
    return [
        {
            "name": known.name, "parameters": f"{(shape := shape_of(known.name)).parameters:,}",
            "family": shape.family, "hub": " ".join(known.hub),
        }
        for known in CATALOGUE.values()
    ]  # fmt: skip


def counts_of_papers() -> list[dict[str, Any]]:
    rows = []
    for row in ROWS:
        counted = parameters_of(shape_of(row.model), row.spec)
        rows.append({
            "paper": row.paper, "table": row.table, "model": row.model, "rank": row.rank,
            "paper_says": row.said, "ours": row.ours(counted), "exactly": f"{counted.trainable:,}",
            "agrees": "yes" if row.agrees(counted) else "no", "remark": row.remark,
        })  # fmt: skip
    return rows
