"""The models that `rankwise plan` knows by name."""

from __future__ import annotations

from typing import Any

from rankwise.planning.catalogue import CATALOGUE
from rankwise.planning.reading import shape_of


def known_models() -> list[dict[str, Any]]:
    return [
        {
            "name": known.name, "parameters": f"{(shape := shape_of(known.name)).parameters:,}",
            "family": shape.family, "hub": " ".join(known.hub),
        }
        for known in CATALOGUE.values()
    ]  # fmt: skip
