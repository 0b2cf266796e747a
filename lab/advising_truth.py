"""One cell of lab/advising.py: advice, or a whole run whose verdict needs no advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankwise.base.loading import load
from rankwise.commands.advise import advise
from rankwise.config.experiment import Experiment
from rankwise.objectives.registry import decided, objective_of
from rankwise.rows.preparing import prepare
from rankwise.runs.records import silent
from rankwise.training.advising import ADVISING, AdviceSide, margin_of

STEPS, BATCH, LABELLED_BATCH = 100, 8, 16
SIDES = ("base", "untrained", "adapter", "unrelated")


def experiment_of(model: str, trained: Path, measured: Path) -> Experiment:
    labelled = model == "minilm"
    language = {} if labelled else {"system": "Answer."}
    return Experiment(
        model=model, run="advise", data={"path": str(trained), "validation": str(measured), **language},
        training={"steps": STEPS, "batch_size": LABELLED_BATCH if labelled else BATCH},
    )  # fmt: skip


def advised(model: str, trained: Path, measured: Path) -> dict[str, Any]:
    advice = advise(experiment_of(model, trained, measured))
    return advice.model_dump(mode="json") | {"share": advice.cost.share}


def whole_run(model: str, trained: Path, measured: Path) -> dict[str, Any]:
    """All steps in memory, by the loop of every training, and the sides on all held-out rows."""
    experiment = decided(experiment_of(model, trained, measured), silent)
    objective = objective_of(experiment.objective, experiment.rows, silent)
    loaded = load(experiment.base, silent, objective.kind)
    prepared = prepare(experiment.data, objective.rows.encoding(loaded), silent)
    rows = len(prepared.trained)
    config = experiment.training.resolved(rows, loaded.width, experiment.auto_rate)
    advising = objective.among(ADVISING)(experiment, config, loaded, objective, prepared)
    advising.rows, base = list(prepared.measured_rows), advising.base()
    untrained = advising.untrained().side
    with advising.short(STEPS, prepared, silent) as made:
        each = (base, untrained, advising.adapter(), advising.unrelated())
    sides = {name: vars(side) for name, side in zip(SIDES, each, strict=True) if side is not None}
    return {"classifies": objective.targets is not None, "sides": sides, "step_seconds": made.seconds}


def verdict_of_run(full: dict[str, Any], control: dict[str, Any] | None) -> tuple[str, list[float | None]]:
    """The verdict of a whole run and its control, and the losses: base, without training, full, control. Without a
    control run, the whole run's loss on swapped pairs is in its place."""
    base, untrained, adapter = (AdviceSide(**full["sides"][name]) for name in SIDES[:3])
    sums = full["sides"].get("unrelated") if control is None else control["sides"]["adapter"]
    shuffled = None if sums is None else AdviceSide(**sums)
    losses = [None if side is None else side.loss.value for side in (base, untrained, adapter, shuffled)]
    margin = margin_of(min(base.loss.value, untrained.loss.value))
    if shuffled is not None and shuffled.against(adapter).low <= 0:
        return "neither", losses

    def pays(side: AdviceSide, than: AdviceSide) -> bool:
        change = side.against(than)
        return change.high < 0 and change.difference <= -margin

    if full["classifies"]:  # its head is trained in either way
        return "train" if pays(adapter, base) else "neither", losses
    if pays(adapter, base if base.loss.value <= untrained.loss.value else untrained):
        return "train", losses
    return "prompt" if pays(untrained, base) else "neither", losses
