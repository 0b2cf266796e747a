"""Models that plans know by name, so that nothing has to be fetched or built: their config.json and their shape.

`catalogue.json` holds a line for each: our name, the names of the hub that mean it, the settings that decide its shape,
and the shape that transformers built of them (`lab/make_catalogue.py` writes it). GPT-3's weights were never given out;
it is laid out like OPT. A test compares the parameters of each with what was published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from rankwise.planning.shape import ModelShape
from rankwise.planning.shape_file import shape_from_json

FILE = "catalogue.json"


@dataclass(frozen=True)
class CatalogueModel:
    name: str
    hub: tuple[str, ...]
    """The names of models on the hub that have this shape."""
    config: Mapping[str, Any]
    stored: Mapping[str, Any]
    """The shape, as `shape_file.py` writes it."""
    image: int | None = None
    """Side in pixels that its image processor makes, where that is another than its config.json has."""

    @property
    def family(self) -> str:
        return self.config["model_type"]

    @property
    def shape(self) -> ModelShape:
        return shape_from_json(dict(self.stored), self.name)


@cache
def catalogue() -> dict[str, CatalogueModel]:
    text = files("rankwise.planning").joinpath(FILE).read_text(encoding="utf-8")
    rows = json.loads(text)
    models = (
        CatalogueModel(row["name"], tuple(row["hub"]), row["config"], row["shape"], row.get("image")) for row in rows
    )
    return {model.name: model for model in models}


@cache
def catalogue_names() -> dict[str, CatalogueModel]:
    """By every name in small letters, the hub's among them."""
    return {name.lower(): model for model in catalogue().values() for name in (model.name, *model.hub)}


def catalogue_model(name: str) -> CatalogueModel | None:
    return catalogue_names().get(name.lower())
