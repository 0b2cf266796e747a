"""The plan of a training: the shape of its model, found or built, and the arithmetic on it (planning/plan.py).

torch and transformers come in only for a model that neither the catalogue nor the cache of shapes has. The head that a
classifier gets is known before its model is loaded: it has an output for each class of the rows, or one for a number. A
pooler that the model's weights lack belongs to it: an encoder that was pretrained on masked tokens alone has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwise.config.experiment import Planned
from rankwise.config.images import ImagesConfig
from rankwise.config.objectives import OBJECTIVES
from rankwise.errors import ConfigError, ModelError
from rankwise.planning.devices import Device
from rankwise.planning.plan import Plan, plan_for
from rankwise.planning.pooling import pooling_of
from rankwise.planning.processes import ALONE, Processes
from rankwise.planning.reading import PlannedBase
from rankwise.planning.shape import ModelShape, NewHead
from rankwise.planning.time import Probe
from rankwise.rows.classes import holds_tags, read_tags, read_targets

TWO_CLASSES = 2
"""Outputs where no rows are given."""
POOLER = "pooler."


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
    base = base_of(config.model.name, config.model.revision)
    training = config.training.model_copy(update=config.objective_settings.planned)
    config = config.model_copy(update={"training": training})
    shape = shape_planned(config, base, outputs).with_new_tokens(len(config.model.new_tokens))
    return plan_for(
        shape, base.tokens, config, device=device, price=price, measured=measured, on=on, processes=processes
    )


def shape_planned(config: Planned, base: PlannedBase, outputs: int | None = None) -> ModelShape:
    """The shape of the model as it is trained, with a new head where it is to classify. An encoder whose objective and
    rows are not given is only counted. ConfigError where a setting has no effect with the objective."""
    if problems := config.misfits:
        raise ConfigError(problems)
    return SHAPES.get(config.objective, _own)(config, base, outputs)


def _own(config: Planned, base: PlannedBase, outputs: int | None) -> ModelShape:
    """ConfigError where such a model is not trained with the objective."""
    own = base.shape()
    if problem := config.objective_settings.problem(own.nature, f"{base.name} ({own.family})"):
        raise ConfigError([problem])
    return own


def _decided(config: Planned, base: PlannedBase, outputs: int | None) -> ModelShape:
    """The shape of the model for the objective that the model and the rows decide. Without rows and without a need for
    a new head it is the shape of the base."""
    own, data = base.shape(), config.data
    decided = config.objective_settings.decided(own.nature, lambda: data is not None and holds_tags(data))
    config = config.model_copy(update={"objective": decided.name})
    unmet = config.adapter.needs.keys() - OBJECTIVES["causal-lm"].gives  # without a new head
    if data is not None or config.images != ImagesConfig() or unmet:
        return shape_planned(config, base, outputs)
    if problems := config.misfits:
        raise ConfigError(problems)
    return own


def _of_words(config: Planned, base: PlannedBase, outputs: int | None) -> ModelShape:
    _own(config, base, outputs)
    return base.shape(new_head(config, base, outputs, words=True))


def _of_images(config: Planned, base: PlannedBase, outputs: int | None) -> ModelShape:
    own = _own(config, base, outputs)
    assert own.image is not None, "models of texts are refused"
    return base.shape(new_head(config, base, outputs, side_of(config, base, own.image)))


SHAPES: Mapping[str, Callable[[Planned, PlannedBase, int | None], ModelShape]] = {
    "auto": _decided,
    "sequence-classification": lambda config, base, outputs: base.shape(new_head(config, base, outputs)),
    "token-classification": _of_words, "image-classification": _of_images,
}  # fmt: skip
"""By the objective; of language models it is their own."""


def side_of(config: Planned, base: PlannedBase, own: int) -> int:
    """Pixels a side of the images that a model is trained on: those of the setting, else of the model's own image
    processor, else `own`, the size that its config.json has."""
    size = config.images.size
    if size != "auto":
        return size
    try:
        return base.image_side(own)
    except ModelError:  # training says what is wrong with it
        return own


def new_head(
    config: Planned, base: PlannedBase, outputs: int | None = None, image: int | None = None, *, words: bool = False
) -> NewHead:
    """`outputs` saves reading the rows. `image` is the side of the images that a model of images is trained on.
    `words`: each word has a class, and no pooler is needed for it."""
    if outputs is None:
        rows, read = config.data, read_tags if words else read_targets
        outputs = TWO_CLASSES if rows is None else read(rows, config.classification).outputs
    pooled = not words and image is None and pooling_of(base.folder, config.classification)[0] != "own"
    return NewHead(outputs, not words and not pooled and _lacks_pooler(base), image, words, pooled)


def _lacks_pooler(base: PlannedBase) -> bool:
    """By the names of its weights; by its architecture where these are not here."""
    if base.folder is None:
        return False
    files = sorted(base.folder.glob("*.safetensors"))
    if not files:
        named = base.config[0].get("architectures")
        return isinstance(named, list) and any("MaskedLM" in str(one) for one in named)
    return not any(POOLER in name for file in files for name in _names(file))


def _names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError):  # training says what is wrong with it
        return [POOLER]


def shape_of(name: str, revision: str | None = None) -> ModelShape:
    """The shape of the model that `rankwise plan --model` means by `name`."""
    return base_of(name, revision).shape()


def base_of(name: str, revision: str | None = None) -> PlannedBase:
    """The model itself, whose shape is built where nobody knows it."""
    return PlannedBase(name, revision, _built)


def shape_to_adapt(name: str) -> ModelShape:
    """The shape that an adapter is laid over: of a model of images that of a classifier, which has no second tower and
    no pooler. Where no forward pass can be made, that of the whole model."""
    base = base_of(name)
    own = base.shape()
    if own.image is None:
        return own
    try:
        return base.shape(NewHead(TWO_CLASSES, image=own.image))
    except ModelError:
        return own


def _built(config: dict[str, Any], name: str, where: str, head: NewHead | None) -> ModelShape:
    from rankwise.forward.model_shape import shape_of_config

    return shape_of_config(config, name, where, head)
