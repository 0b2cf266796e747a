"""The plan of a training: the shape of its model, found or built, and the arithmetic on it (planning/plan.py).

torch and transformers come in only for a model that neither the catalogue nor the cache of shapes has. The head that a
classifier gets is known before its model is loaded: it has an output for each class of the rows, or one for a number. A
pooler that the model's weights lack belongs to it: an encoder that was pretrained on masked tokens alone has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from rankwise.base.inspection import pooling_of
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Planned
from rankwise.config.images import ImagesConfig
from rankwise.config.incompatible import excludes
from rankwise.config.incompatible import problems as problems_of
from rankwise.errors import ConfigError, ModelError
from rankwise.planning.devices import Device
from rankwise.planning.plan import Plan, plan_for
from rankwise.planning.processes import ONE_PROCESS, Processes
from rankwise.planning.reading import PlannedBase
from rankwise.planning.shape import ModelShape, NewHead
from rankwise.planning.time import Probe
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.classes import holds_tags, read_tags, read_targets
from rankwise.runs.row_facts import TargetFacts

TWO_CLASSES = 2
"""Outputs where no rows are given."""
POOLER = "pooler."


def plan(
    config: Planned, *, device: str | None = None, price: float | None = None, probe: Probe | None = None,
    on: Device | None = None, outputs: int | None = None, processes: Processes = ONE_PROCESS,
) -> Plan:  # fmt: skip
    """Estimate memory, time and cost of training with `config`. `device` is a name from the device list (`rtx-4090`)
    or `cpu`; the default is this machine's GPU or processor. `on` is a device already known to be used, and `outputs`
    are a classifier's outputs if its rows were read already. Several `processes` have one device each, or share a
    processor."""
    if config.model.sharded:
        raise ConfigError([
            "model.sharded: a plan is made of whole bases. Leave it out; with --processes N a line says what "
            "a base takes that is split over them."
        ])  # fmt: skip
    base = base_of(config.model.name, config.model.revision)
    config, shape = _decided(config, base, outputs)
    training = config.training.model_copy(update=config.objective_settings.planned)
    config = config.model_copy(update={"training": training})
    return plan_for(
        shape.with_new_tokens(len(config.model.new_tokens)),
        TokenCounter() if config.data is None else base.tokens,
        config,
        device=device,
        price=price,
        probe=probe,
        on=on,
        processes=processes,
    )


def _decided(config: Planned, base: PlannedBase, outputs: int | None) -> tuple[Planned, ModelShape]:
    """With the objective that the model and the rows decide. Without rows and without a need for a new head, a model
    whose objective is not given is only counted. ConfigError where a setting has no effect with the objective, or where
    such a model is not trained with it."""
    own, data = base.shape(), config.data
    decided = config.objective_settings.decided(own.nature, lambda: data is not None and holds_tags(data))
    unmet = excludes(f"adapter.method={config.adapter.method}", "objective", "causal-lm")  # without a new head
    if data is not None or config.images != ImagesConfig() or unmet:
        config = config.model_copy(update={"objective": decided.name})
    if problems := problems_of(config, "objective"):
        raise ConfigError(problems)
    if problem := config.objective_settings.problem(own.nature, f"{base.name} ({own.family})"):
        raise ConfigError([problem])
    head = HEADS.get(config.objective)
    return config, own if head is None else base.shape(head(config, base, outputs))


def side_of(config: Planned, base: PlannedBase) -> int:
    """Pixels a side of the images that a model is trained on: those of the setting, else of the model's own image
    processor, else the size that its config.json has."""
    size, own = config.images.size, base.shape().image
    assert own is not None, "models of texts are refused"
    if size != "auto":
        return size
    try:
        return base.image_side(own)
    except ModelError:  # training says what is wrong with it
        return own


def _of_rows(config: Planned, base: PlannedBase, outputs: int | None) -> NewHead:
    outputs = outputs or _outputs(config, read_targets)
    pooled = pooling_of(base.folder, config.classification)[0] != "own"
    return NewHead(outputs, new_pooler=not pooled and _lacks_pooler(base), pooled=pooled)


def _of_words(config: Planned, base: PlannedBase, outputs: int | None) -> NewHead:
    """No pooler is needed for it."""
    return NewHead(outputs or _outputs(config, read_tags), words=True)


def _of_images(config: Planned, base: PlannedBase, outputs: int | None) -> NewHead:
    return NewHead(outputs or _outputs(config, read_targets), _lacks_pooler(base), side_of(config, base))


def _outputs(config: Planned, read: Callable[[DataConfig, ClassificationConfig], TargetFacts]) -> int:
    return TWO_CLASSES if config.data is None else read(config.data, config.classification).outputs


HEADS: Mapping[str, Callable[[Planned, PlannedBase, int | None], NewHead]] = {
    "sequence-classification": _of_rows, "token-classification": _of_words, "image-classification": _of_images,
}  # fmt: skip
"""By the objective; the last argument is the number of outputs where the rows were read already."""


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


def base_of(name: str, revision: str | None = None) -> PlannedBase:
    """The model itself, whose shape is built where nobody knows it."""
    return PlannedBase(name, revision, lambda *about: _with_torch().shape_of_config(*about), _tokenizer_of)


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


def _tokenizer_of(file: Path) -> Path | None:
    """None where it cannot be read: training says what is wrong with it."""
    try:
        return _with_torch().tokenizer_folder(file) if file.suffix.lower() == ".gguf" else None
    except ModelError:
        return None


def _with_torch() -> ModuleType:
    from rankwise.forward import model_shape

    return model_shape
