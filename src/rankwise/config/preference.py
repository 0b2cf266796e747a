"""Settings of preference tuning: how a model learns which of two answers to a prompt is the better one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rankwise.config.base import Config, Flag, Label, Number
from rankwise.config.data import DataConfig

PairLoss = Literal["dpo", "orpo"]


class PreferenceConfig(Config):
    """How pairs of answers are learned. These settings have an effect only with the objective preference."""

    loss: Annotated[PairLoss, Flag("--preference-loss"), Label("Preference loss", "preference")] = "dpo"
    """Loss of preference pairs: `dpo`, compared with the model before training, or `orpo`, without a reference. `dpo`
    (arXiv 2305.18290) raises the probability of the chosen answer over that of the rejected one, both compared with the
    model before training. `orpo` (arXiv 2403.07691) needs no such reference: it learns the chosen answer as ordinary
    training does, and adds the odds ratio of the two answers to the loss."""
    beta: Annotated[Number, Field(gt=0, le=100), Flag("--beta"), Label("Beta", "preference")] = 0.1
    """For `dpo`, how strongly the model is held to the reference; for `orpo`, the weight of the odds ratio in the loss.
    With `dpo` a lower value lets it move further away."""


def as_pairs(data: DataConfig) -> DataConfig:
    """The same settings, with every row read as a pair of answers to one prompt."""
    pairs: dict[str, Any] = {"format": "preference"}
    sources = tuple(source.model_copy(update=pairs) for source in data.sources)
    apart = data.validation and data.validation.model_copy(update=pairs)
    own = pairs if data.path is not None else {}
    return data.model_copy(update=own | {"sources": sources, "validation": apart})


def not_of_pairs(data: DataConfig) -> list[str]:
    """The settings given here that have no effect where a row is a pair of answers."""
    given = ["packing"] * data.packing + ["answers apart"] * (data.answers == "apart")
    given += [f"too_long {data.too_long}"] * (data.too_long in ("cut-prompt", "split"))
    rows = [source for source in (*data.all_sources, data.measured_source) if source is not None]
    given += [
        name for name in ("prompt", "completion", "labels", "alternatives")
        if any(getattr(source, name) != type(source).model_fields[name].default for source in rows)
    ]  # fmt: skip
    formats = {source.format for source in rows} - {"auto", "preference"}
    return given + [f"format {name}" for name in sorted(formats)]
