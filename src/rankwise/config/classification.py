"""Settings of sequence classification: what the labels are, and how much each class counts in the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from rankwise.config.base import Config, Number

Weight = Annotated[Number, Field(gt=0, le=1e6)]
ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("name")] | Annotated[dict[str, Weight], Tag("weights")],
    Discriminator(lambda value: "weights" if isinstance(value, dict) else "name"),
]


class ClassificationConfig(Config):
    """What a classifier predicts. These settings have an effect only with the objective sequence-classification."""

    targets: Literal["auto", "classes", "numbers"] = "auto"
    """What the labels are: names of `classes`, or `numbers` on a scale (regression). `auto` takes them as numbers if
    all of them are and at least one has decimals."""
    class_weights: ClassWeights | None = None
    """Weight of each class in the loss: `balanced` gives every class the same total weight, and `{label: weight}` names
    them; classes that are not named weigh 1. By default every row weighs 1."""
