"""The settings of classifiers, and those of preference tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from rankwise.config.base import Config, Flag, Label, Number
from rankwise.config.incompatible import Compatible

PairLoss = Literal["dpo", "orpo"]
Weight = Annotated[Number, Field(gt=0, le=1e6)]
ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("name")] | Annotated[dict[str, Weight], Tag("weights")],
    Discriminator(lambda value: "weights" if isinstance(value, dict) else "name"),
]


class ClassificationConfig(Compatible):
    """What a classifier predicts. These settings have an effect only with the objectives sequence-classification and
    image-classification."""

    sections = ("classification",)
    targets: Literal["auto", "classes", "numbers", "several"] = "auto"
    """What the labels are: names of `classes`, `numbers` on a scale (regression), or `several` names for a row, also
    none (multi-label). `auto` takes lists as several names, and labels as numbers if all of them are and at least one
    has decimals."""
    pooling: Literal["auto", "own", "mean", "cls", "max"] = "auto"
    """What the head of a classifier of texts reads: `mean` and `max` are the mean and the largest values of the hidden
    states of all tokens, and `cls` is the hidden state of the first token, each scaled to mean 0 and variance 1. `own`
    is what the model's own code reads, such as BERT's pooler or the last token. `auto` is the pooling that a
    sentence-transformers model was trained with (modules.json), and `own` for other models."""
    class_weights: ClassWeights | None = None
    """Weight of each class in the loss: `balanced` gives every class the same total weight, and `{label: weight}` names
    them; classes that are not named weigh 1. By default every row weighs 1."""
    sampling: Literal["rows", "balanced"] = "rows"
    """Which rows a pass shows: `rows` shows each once, and `balanced` shows every class equally often, so rows of rare
    classes several times and those of frequent classes in turn. The number of steps stays the same."""


class PreferenceConfig(Config):
    """How pairs of answers are learned. These settings have an effect only with the objective preference."""

    loss: Annotated[PairLoss, Flag("--preference-loss"), Label("Preference loss", "preference")] = "dpo"
    """Preference loss: `dpo`, relative to the model before training, or `orpo`, without a reference model. `dpo`
    (arXiv 2305.18290) makes the chosen answer more likely than the rejected one, compared with the model before
    training. `orpo` (arXiv 2403.07691) trains on the chosen answer as usual and adds the odds ratio of the two answers
    to the loss."""
    beta: Annotated[Number, Field(gt=0, le=100), Flag("--beta"), Label("Beta", "preference")] = 0.1
    """For `dpo`, how strongly the model is kept close to the reference; for `orpo`, the weight of the odds ratio in
    the loss. With `dpo`, a lower value lets the model move further away."""
