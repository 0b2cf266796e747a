"""Settle, then run: everything about a training that can be decided, or refused, before its model is loaded.

    settings, config.json of the base, the adapter to begin with, heads of the rows  --settle-->  Settled  --run-->  ...

`settle` is the one function that knows the whole experiment. A run that is resumed goes on with the settings that it
stored. Whatever comes after reads the sections that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.reading import with_settings
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.methods.starting import Start, start_of
from rankwise.objectives.objective import Objective
from rankwise.objectives.registry import objective_of
from rankwise.rows.preparation import Prepared
from rankwise.runs.lineage import Round
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.resumable import Resumable
from rankwise.runs.row_facts import TargetFacts
from rankwise.training.extras import EXTRAS
from rankwise.training.preflight import Foresight, foresee, within_limit
from rankwise.training.resume import ranks_before_training, settings_of
from rankwise.training.training import Extra, Session, Training
from rankwise.training.validation import scorer_of
from rankwise.training.workload import Presentation

NO_ROWS = (
    "validation.{0} has no effect without validation rows, and {1} rows are too few to hold out some by default. Give "
    "--held-out N or --validation-data FILE."
)
NO_SAMPLES = "no sample answers are written, since the base is split over several processes (model.sharded)"


@dataclass(frozen=True)
class Settled:
    """`settings` are stored as the run's config.json; `computed` are its settings of training as they are computed
    here, which under a limit of memory differ in what changes no result."""

    settings: Experiment
    computed: TrainingConfig
    objective: Objective
    start: Start | None = None
    """The adapter to begin with."""
    resumable: Resumable | None = None
    forecast: Foresight | None = None
    extras: tuple[Extra, ...] = ()

    @property
    def lineage(self) -> tuple[Round, ...]:
        """The rounds behind it."""
        if self.resumable is not None:
            return self.resumable.manifest.lineage
        return self.start.lineage if self.start is not None else ()

    def with_adapter(self, start: Start, model: LoadedModel, callback: Callback, *, force_base: bool) -> Settled:
        """With the settings of the adapter to begin with, which some formats tell only beside the loaded model."""
        adapter = start.final_settings(self.settings.adapter, model, callback, force_base=force_base)
        return replace(self, settings=self.settings.model_copy(update={"adapter": adapter}))

    def with_rows(self, prepared: Prepared) -> Settled:
        """With the defaults that follow from the rows, once they are encoded. ConfigError where a setting needs
        validation rows and there are none; of few rows none are held out by default."""
        if self.resumable is not None:
            return self
        measured, validation = bool(len(prepared.validation)), self.settings.validation
        if not measured and (needing := validation.needing_rows):
            raise ConfigError([NO_ROWS.format(needing[0], prepared.data_report.used)])
        rows, best_by = len(prepared.trained), self.objective.score.best_by
        settings = self.settings.with_defaults(rows=rows, has_validation=measured, by=best_by)
        computed = self.computed.model_copy(update={"epochs": settings.training.epochs})
        return replace(self, settings=settings, computed=computed)

    def training(
        self, session: Session, model: LoadedModel, base: LoadedModel, prepared: Prepared, *, started: bool
    ) -> Training:
        """Over these rows, once the model is loaded. `started`: the run began before, and begins again."""
        settings, resumable, objective = self.settings, self.resumable, self.objective
        measured, rows = settings.validation, prepared.rows_in_pass
        if settings.model.sharded and measured.prompts != ():  # the first process would write them alone
            measured = measured.model_copy(update={"prompts": ()})
            if settings.data.held_out or settings.data.validation is not None:
                session.callback(StatusMessage(NO_SAMPLES))
        config = self.computed.resolved(rows, model.width, settings.auto_rate)
        setup = Setup(
            config, config.total_steps(rows), prepared.trained_rows, described=f'run "{settings.run}"',
            callback=session.callback, heads=objective.heads(model), load=partial(load, kind=objective.kind),
            start=None if self.start is None else self.start.numbers(model.module),
            resumed_ranks=partial(ranks_before_training, resumable) if resumable is not None else None,
        )  # fmt: skip
        return Training(
            session=session, model=model, base=base, objective=objective, method=method_of(settings.adapter),
            adapter=settings.adapter, config=config, validation=settings.validation, auto_rate=settings.auto_rate,
            presentation=Presentation(settings.data.packing, settings.images), prepared=prepared, setup=setup,
            scorer=scorer_of(objective, measured, model, prepared),
            earliest=settings.objective_settings.earliest, stored=settings.model_dump(mode="json"),
            resumable=resumable, lineage=self.lineage, forecast=self.forecast,
            begun=resumable.manifest if resumable is not None else session.run.manifest() if started else None,
        )  # fmt: skip


def settle(
    experiment: Experiment, resumable: Resumable | None, model: LoadedModel | None, callback: Callback, *,
    force_memory: bool,
) -> Settled:  # fmt: skip
    """ConfigError and others where the training can't be what was asked for, or its rows mean something else than the
    adapter to begin with or the given `model`; ResourceError where it can't fit into memory, unless `force_memory`."""
    start = None
    if resumable is not None:
        experiment = settings_of(resumable, experiment)
    elif (start := start_of(experiment.adapter.start_from, callback)) is not None:
        experiment = experiment.model_copy(update={"adapter": start.planned_settings(experiment.adapter)})
    begun = start.source if start is not None else resumable and resumable.checkpoint.data_report
    pooling = None if begun is None else (begun.targets or TargetFacts()).pooling
    objective = objective_of(experiment.objective, experiment.rows, callback, pooling)
    if start is not None:
        start.check_targets(objective.rows.learned, callback)
    if model is not None and (problem := _misfit(model.config, experiment.base, model.quantization, objective)):
        raise ConfigError([problem])
    sections_of = {name: sections(experiment) for name, sections in EXTRAS.items()}
    extras = tuple(resolve_name(name)(*sections) for name, sections in sections_of.items() if sections is not None)
    forecast = foresee(with_settings(experiment.explicit), callback, objective.head_size)
    computed, forecast = within_limit(experiment.training, forecast, callback)
    if forecast is not None and resumable is None:
        forecast.check(callback, force=force_memory)
    return Settled(experiment, computed, objective, start=start, resumable=resumable, forecast=forecast, extras=extras)


def _misfit(loaded: ModelConfig, base: ModelConfig, quantization: object, objective: Objective) -> str | None:
    """Why a model that is loaded already, with the settings `loaded`, cannot be trained in place of `base`."""
    if refusal := objective.words.cannot.get("trained from a loaded model"):
        return refusal
    if base.new_tokens != loaded.new_tokens:
        return "the given model has other new tokens than the training has (model.new_tokens); give the model's name."
    full = loaded if quantization is not None else loaded.model_copy(update={"quantize": "none"})
    if base not in (loaded, full):  # weights in full are the same by either setting
        return f'the given model is "{loaded.name}", but the experiment names another one: {base}.'
    return None
