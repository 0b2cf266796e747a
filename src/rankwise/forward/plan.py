"""The plan of a training: the shape of its model, found or built, and the arithmetic on it (planning/plan.py).

torch and transformers come in only for a model that neither the catalogue nor the cache of shapes has.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankwise.config.experiment import Planned
from rankwise.config.images import ImagesConfig
from rankwise.config.misfits import misfits
from rankwise.data.tag_classes import holds_tags
from rankwise.errors import ConfigError, ModelError
from rankwise.planning.devices import Device
from rankwise.planning.image_rows import side_of
from rankwise.planning.new_head import TWO_CLASSES, new_head
from rankwise.planning.new_tokens import with_new_tokens
from rankwise.planning.plan import Plan, plan_for
from rankwise.planning.processes import ALONE, Processes
from rankwise.planning.reading import read_shape
from rankwise.planning.shape import ModelShape, NewHead
from rankwise.planning.time import Probe

TEXTS, WORDS, IMAGES = "sequence-classification", "token-classification", "image-classification"
SEQUENCES = "sequence-to-sequence"


def plan(
    config: Planned, *, device: str | None = None, price: float | None = None, measured: Probe | None = None,
    on: Device | None = None, outputs: int | None = None, processes: Processes = ALONE,
) -> Plan:  # fmt: skip
    """What a training by `config` would take. `device` is one of the list (`rtx-4090`) or `cpu`; by default the card or
    the processor that is here. `on` is a device that is known to be used, and `outputs` are those of a classifier whose
    rows were read already. Several `processes` have a device each, or share a processor."""
    if config.model.sharded:
        raise ConfigError([
            "model.sharded: a plan is made of whole bases. Leave it out; with --processes N a line says what "
            "a base takes that is split over them."
        ])  # fmt: skip
    shape = with_new_tokens(shape_planned(config, outputs), len(config.model.new_tokens))
    return plan_for(shape, config, device=device, price=price, measured=measured, on=on, processes=processes)


def shape_planned(config: Planned, outputs: int | None = None) -> ModelShape:
    """The shape of the model as it is trained, with a new head where it is to classify. An encoder whose objective and
    rows are not given is only counted. ConfigError where a setting has no effect with the objective."""
    name, revision, objective = config.model.name, config.model.revision, config.objective
    base = None
    if objective == "auto":
        base = shape_of(name, revision)
        objective = _decided(base, config)
        if (
            objective in (TEXTS, IMAGES)
            and config.data is None
            and config.images == ImagesConfig()
            and config.adapter.misfit("causal-lm") is None
        ):
            return base
    if problems := misfits(config.model_copy(update={"objective": objective})):
        raise ConfigError(problems)
    if objective == TEXTS:
        return read_shape(name, revision, _built, new_head(config, outputs))
    base = base or shape_of(name, revision)
    _refuse_misfit(objective, base, name)
    if objective == WORDS:
        return read_shape(name, revision, _built, new_head(config, outputs, words=True))
    if objective != IMAGES:
        return base
    if base.image is None:
        raise ConfigError([f"the objective is {IMAGES}, but {name} ({base.family}) is a model of texts."])
    return read_shape(name, revision, _built, new_head(config, outputs, side_of(config, base.image)))


def _decided(base: ModelShape, config: Planned) -> str:
    """As a training decides it (objectives/registry.py)."""
    if base.image is not None:
        return IMAGES
    if config.data is not None and holds_tags(config.data):
        return WORDS
    if base.is_encoder_decoder:
        return SEQUENCES
    return TEXTS if base.is_encoder else "causal-lm"


def _refuse_misfit(objective: str, base: ModelShape, name: str) -> None:
    """Of encoders with decoders, as a training refuses it (objectives/registry.py)."""
    if objective == SEQUENCES and not base.is_encoder_decoder:
        raise ConfigError([
            f"the objective is {SEQUENCES}, but {name} ({base.family}) is not an encoder with a decoder, as T5 and "
            "BART are. Choose another model with --model, or leave out --objective."
        ])  # fmt: skip
    if base.is_encoder_decoder and objective not in (SEQUENCES, IMAGES):
        raise ConfigError([f"the objective is {objective}, but {name} ({base.family}) is an encoder with a decoder, "
                           f"which rankwise trains with the objective {SEQUENCES}. Choose another model."])  # fmt: skip


def shape_of(name: str, revision: str | None = None) -> ModelShape:
    """The shape of the model that `rankwise plan --model` means by `name`."""
    return read_shape(name, revision, _built)


def shape_to_adapt(name: str) -> ModelShape:
    """The shape that an adapter is laid over: of a model of images that of a classifier, which has no second tower and
    no pooler. Where no forward pass can be made, that of the whole model."""
    base = shape_of(name)
    if base.image is None:
        return base
    try:
        return read_shape(name, None, _built, NewHead(TWO_CLASSES, image=base.image))
    except ModelError:
        return base


def _built(config: dict[str, Any], name: str, where: str, head: NewHead | None) -> ModelShape:
    with _without_collection():
        from rankwise.forward.model_shape import shape_of_config

        return shape_of_config(config, name, where, head)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's garbage collector, which would search the many lasting objects of torch and transformers again and
    again while they are imported (0.7 s of 4.9)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
