"""Run what was settled: load the model, encode the rows, attach the adapter, train, save.

Nothing is written before everything that can be wrong beforehand has been checked: settings, rows, model, targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankwise.adapters.targets import tables_of_the_head
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import some
from rankwise.methods.method import Method
from rankwise.methods.registry import method_of
from rankwise.objectives.objective import Objective
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.writing import TextWriting
from rankwise.runs.manifest import BackOff, Manifest
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.training.backend import use_products
from rankwise.training.recording import record
from rankwise.training.settling import Settled
from rankwise.training.training import Extra, Session, Training
from rankwise.training.workload import Workload

OWN_HEAD = "the model has a head with as many outputs already, which is trained further and not drawn anew"


def run(
    settled: Settled, session: Session, model: LoadedModel | None, back_offs: tuple[BackOff, ...], *,
    force_memory: bool, force_base: bool,
) -> tuple[Training, Manifest]:  # fmt: skip
    """From what is on the disk to the end; Diverged where it may begin anew. `model` is one that is loaded already."""
    world, callback, start, objective = session.world, session.callback, settled.start, settled.objective
    base = _loaded(settled.settings.base, method_of(settled.settings.adapter), objective, model, callback)
    world.end_turn()  # so that the others load while the first one encodes
    if start is not None:
        settled = settled.with_adapter(start, base, callback, force_base=force_base)
    world.wait_for_turn()
    prepared, loaded = _prepared(settled.settings.data, objective, base, settled.extras, session)
    world.end_turn()
    settled = settled.with_rows(prepared)
    world.check_same_rows(prepared.data_report.model_dump_json())
    training = settled.training(session, loaded, base, prepared, started=bool(back_offs))
    begins = start is None and settled.resumable is None and not loaded.own_head
    if begins and (fitted := objective.fit_head(loaded, prepared.trained_rows)):
        callback(StatusMessage(fitted))
    for extra in settled.extras:
        extra.prepare(training)
    training.trainable = training.method.attach(loaded, replace(training.setup, training=training.config))
    training.setup = replace(training.setup, start=None)  # copied by now, and not kept in memory while it trains
    try:
        training.work = _workload(training)
        for extra in settled.extras:
            extra.attached(training)
        manifest = record(training, settled.extras, back_offs, force_memory=force_memory)
        world.barrier()  # what the first one wrote is there for all
        return training, manifest
    except BaseException:
        training.trainable.remove()  # a model that was given is to be what it was
        use_products(loaded.module, None)
        raise


def _loaded(
    base: ModelConfig, method: Method, objective: Objective, model: LoadedModel | None, callback: Callback
) -> LoadedModel:
    loaded = load(base, callback, objective.kind) if model is None else method.own_copy(model)
    if model is None and loaded.own_head:
        callback(StatusMessage(OWN_HEAD))
    if loaded.quantization is not None:
        use_products(loaded.module, None)  # a model that was given may compute as an earlier run of it
    return loaded


def _prepared(
    data: DataConfig, objective: Objective, base: LoadedModel, extras: Sequence[Extra], session: Session
) -> tuple[Prepared, LoadedModel]:
    """The rows, which the first process of a machine encodes for the others, and the model with the template that they
    are written with."""
    encoding = objective.rows.encoding(base)
    prepared = prepare(data, encoding, session.callback, session.world.check_own_stop)
    refuse_fatal(prepared.data_report)
    if note := objective.words.format_notes.get(prepared.data_report.format):
        session.callback(StatusMessage(note))
    if not isinstance(used := encoding.by(data), TextWriting):
        return prepared, base
    loaded = base.with_template(used.template)
    for extra in extras:
        prepared = extra.rows(prepared, loaded, encoding, session)
    return prepared, loaded


def _workload(training: Training) -> Workload:
    """What each step computes, after a warning where what learns changes more than it seems to."""
    trainable, callback = training.trainable, training.session.callback
    if shared := tables_of_the_head(training.model.module, trainable.names):
        callback(WarningMessage(
            f"{some(shared)} shares its weight with the output head, and the adapter changes the embedding alone. "
            "Other programs that merge it would change both; `rankwise export --format merged` separates them first"
        ))  # fmt: skip
    return Workload.of(
        trainable, training.objective, training.config, training.prepared, training.presentation, callback
    )
