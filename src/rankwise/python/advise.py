"""Before training: `rankwise.plan(model="smollm2-135m", data=rows)` and `rankwise.advise(model=…, data=…)`.

    rankwise.plan(model="smollm2-135m", data=rows, steps=300).summary()  # memory, time and cost
    advice = rankwise.advise(model="smollm2-135m", data=rows, steps=300)
    advice.verdict, advice.text

Rows and settings are those of `rankwise.train`; they describe the full run that advice is wanted on.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.cli.display import Display
from rankwise.config.experiment import Experiment, Planned
from rankwise.config.reading import read_planned
from rankwise.errors import ConfigError
from rankwise.python.train import experiment_of, experiment_with, rows_of
from rankwise.runs.records import Callback, silent

if TYPE_CHECKING:
    from rankwise.planning.plan import Plan
    from rankwise.runs.advice import Advice


def advise(
    experiment: Experiment | None = None, *, model: Any = None, data: Any = None, examples: int = 5,
    out: str | Path | None = None, progress: bool = True, callback: Callback | None = None, force_memory: bool = False,
    **settings: Any,
) -> Advice:  # fmt: skip
    """Compare the base model, few-shot prompting and a short fine-tuning run on held-out rows, and recommend one.

    Give an `Experiment`, or `model` and `data` with settings as keyword arguments, as for `rankwise.train`. `model`
    may come from `rankwise.load`; it isn't changed. Nothing is written unless `out` names a folder, except that rows
    in memory are stored in runs/.rows, where `train` finds them too.
    """
    from rankwise.base.loaded import LoadedModel
    from rankwise.commands.advise import advise as advise_command

    loaded = model if isinstance(model, LoadedModel) else None
    with Display() if progress and callback is None else nullcontext(callback or silent) as events:
        if experiment is None:
            named = model if loaded is None else loaded.config
            experiment = experiment_with(named, data, "advise", settings, events, "advise")
        elif data is not None or settings or (model is not None and loaded is None):
            raise ConfigError(
                ["advise was given an experiment and other settings. Put the settings into the experiment."]
            )
        return advise_command(
            experiment, examples=examples, out=None if out is None else Path(out), callback=events, model=loaded,
            force_memory=force_memory,
        )  # fmt: skip


def plan(
    config: Planned | None = None, *, model: Any = None, data: Any = None, device: str | None = None,
    price: float | None = None, **settings: Any,
) -> Plan:  # fmt: skip
    """Forecast the memory, time and cost of a run, without loading the model.

    Give a `Planned`, or `model` with the keyword arguments of `rankwise.train`; `data` may be left out. `device` is a
    name such as "rtx-4090", and by default this machine. `price` is what an hour of it costs.
    """
    from rankwise.base.loaded import LoadedModel
    from rankwise.forward.plan import plan as plan_of

    if config is None:
        if model is None and "start_from" not in settings:
            raise ConfigError(['plan needs model, for example plan(model="smollm2-135m", data=rows).'])
        if isinstance(model, LoadedModel):
            model = model.config
        config = experiment_of(model, rows_of(data), "plan", settings, read_planned)
    return plan_of(config, device=device, price=price)
