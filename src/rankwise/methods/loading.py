"""What was learned, in memory again: of one run or adapter, or several adapters over one base model.

A training writes one of two things, an adapter or a whole model; what differs between them is behind `result_of`. Of
several adapters the first brings its base, and the others are laid beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from rankwise.adapters.formats.dialects import detect, read_adapter
from rankwise.adapters.formats.peft import as_lora, lay, lay_peft
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights, reported
from rankwise.base.loaded import LoadedModel, base_weights
from rankwise.base.loading import load_unchecked
from rankwise.base.saving import numbers_in
from rankwise.base.sources import Source, find
from rankwise.config.adapters import LoraConfig
from rankwise.config.method import MethodConfig
from rankwise.config.models import Dtype, ModelConfig
from rankwise.errors import ModelError, RunError, some
from rankwise.methods.adapter import AdapterTrainable
from rankwise.methods.artifact import Artifact, stored_weights
from rankwise.methods.full import FullFineTuning
from rankwise.methods.lora import TrainableLoRA
from rankwise.methods.trainable import Trainable
from rankwise.runs.records import Callback, silent


@dataclass(frozen=True)
class Contents:
    """What a folder of results holds, without loading a model."""

    parameters: int
    bytes: int
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    """By the path of the layer; none where there are no adapters."""
    dialect: str = "PEFT"
    """Whose format it is."""
    notes: list[str] = field(default_factory=list[str])
    """Sentences about the files that a user should read."""


class Result(Protocol):
    def load(self, artifact: Artifact, config: ModelConfig, callback: Callback) -> tuple[LoadedModel, Trainable]:
        """Load what was learned. `config` is the artifact's `model`, in the number format and on the device you
        choose."""
        ...

    def after_training(self, model: LoadedModel, folder: Path) -> LoadedModel:
        """The model that was trained, as it is known from now on: what it learned lies in `folder`."""
        ...

    def adapter_over(self, source: Source, artifact: Artifact, callback: Callback) -> AdapterWeights | None:
        """The LoRA to export over the artifact's `model`, which must be the one that it was trained on; None where that
        model holds all."""
        ...

    def contents(self, folder: Path) -> Contents: ...


class AdapterResult(Result):
    def load(self, artifact: Artifact, config: ModelConfig, callback: Callback) -> tuple[LoadedModel, Trainable]:
        """However it was trained, it is a LoRA from here on."""
        model = _load_base(artifact, config, callback)
        artifact.check_base(model.source, "apply the adapter", callback)
        adapters = lay_peft(model.module, artifact.result, callback=callback)
        check_tokens(adapters, model, artifact)
        return model, TrainableLoRA(adapters, artifact.config if isinstance(artifact.config, LoraConfig) else None)

    def after_training(self, model: LoadedModel, folder: Path) -> LoadedModel:
        return model

    def adapter_over(self, source: Source, artifact: Artifact, callback: Callback) -> AdapterWeights:
        artifact.check_base(source, "export", callback)
        return as_lora(stored_weights(artifact, callback))

    def contents(self, folder: Path) -> Contents:
        dialect = detect(folder)
        weights = dialect.read()
        size = dialect.source.tensors.stat().st_size
        return Contents(weights.parameters, size, weights.ranks, dialect.label, weights.notes)


class ModelResult(Result):
    def load(self, artifact: Artifact, config: ModelConfig, callback: Callback) -> tuple[LoadedModel, Trainable]:
        """The base is not looked for until somebody needs it."""
        load, base = partial(load_unchecked, kind=artifact.objective.kind), artifact.base_named
        model = load(config, callback)
        assert base is not None, "a run records its base"
        check = partial(artifact.check_base, use="use it", callback=callback)
        return model, FullFineTuning(model.module, partial(base_weights, load, base, check, callback))

    def after_training(self, model: LoadedModel, folder: Path) -> LoadedModel:
        """A model whose own weights have learned is no longer the one that was loaded, but the one that was written."""
        spec = model.config.model_copy(update={"name": str(folder), "revision": None})
        return replace(model, config=spec, source=find(spec, silent))

    def adapter_over(self, source: Source, artifact: Artifact, callback: Callback) -> None:
        return None

    def contents(self, folder: Path) -> Contents:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Contents(numbers_in(folder).total(), size)


RESULTS: dict[str, Result] = {"adapter": AdapterResult(), "model": ModelResult()}
"""By what a method's config has as `artifact`."""


def result_of(config: MethodConfig) -> Result:
    return RESULTS[config.artifact]


def _load_base(artifact: Artifact, config: ModelConfig, callback: Callback) -> LoadedModel:
    try:
        return load_unchecked(config, callback, artifact.objective.kind)
    except ModelError as error:
        if type(error) is not ModelError:
            raise
        raise ModelError(
            f"{error} It is the base model of {artifact.described}; use --base-model to name another one."
        ) from None


def check_tokens(adapters: AdapterSet, model: LoadedModel, artifact: Artifact) -> None:
    """RunError where a tokenizer gave the new tokens other ids than those whose rows were trained."""
    trained = {number for rows in adapters.token_rows().values() for number in rows.ids}
    new = model.tokenizer.new if model.text is not None else None
    if new is not None and (other := set(new.ids.values()) - trained):
        raise RunError(
            f"{artifact.described} trained the rows of {len(trained)} new tokens, but {model.source.name} from "
            f"{model.source.where} gives them other ids ({some(map(str, sorted(other)), 4)}). Use the base model that "
            "it was trained on."
        )


@dataclass(frozen=True)
class SharedBase:
    """`names` are those of the artifacts' adapters in the set, in their order; a model whose own weights learned has
    none, and stands alone."""

    model: LoadedModel
    adapters: AdapterSet
    names: tuple[str | None, ...]


def load_base(name: str, callback: Callback, *, dtype: Dtype = "auto", trust_code: str | None = None) -> SharedBase:
    """A base model with no adapter yet."""
    model = load_unchecked(ModelConfig(name=name, dtype=dtype, trust_code=trust_code), callback)
    return SharedBase(model, AdapterSet(model.module), ())


def load_together(artifacts: Sequence[Artifact], callback: Callback, *, dtype: Dtype = "auto") -> SharedBase:
    """RunError where they cannot be in memory over one base. With `dtype` auto, that of the first one's training."""
    first, *others = artifacts
    for one in artifacts if others else ():
        check_shares(one)
    spec = first.model if dtype == "auto" else first.model.model_copy(update={"dtype": dtype})
    model, trainable = result_of(first.config).load(first, spec, callback)
    if not isinstance(trainable, AdapterTrainable):
        return SharedBase(model, AdapterSet(model.module), (None,))
    adapters, names = trainable.adapters, [trainable.name]
    base = () if first.base_named is None else (first.base_named.name,)
    for number, other in enumerate(others, start=2):
        names.append(f"adapter-{number}")
        weights = read_beside(other, model.source, host_view(model.module), base, callback)
        lay(model.module, weights, name=names[-1], into=adapters)
    return SharedBase(model, adapters, tuple(names))


def read_beside(
    other: Artifact, source: Source, modules: Mapping[str, nn.Module], base: Collection[str], callback: Callback
) -> AdapterWeights:
    """The weights of an adapter, once it has proved to belong over the model from `source`, which is known by the names
    `base` and has these modules without its adapters."""
    check_shares(other)
    if other.trained_on is None:
        _check_named_alike(other, base)
    other.check_base(source, f"lay it over {source.name}", callback)
    return reported(read_adapter(other.result, modules), callback)


def _check_named_alike(other: Artifact, base: Collection[str]) -> None:
    """RunError where the files name another base; which weights they were trained on, nobody recorded."""
    if other.base_named is None or not base or other.force_base:
        return
    name = other.base_named.name
    if name not in base and not any(_are_one_folder(name, one) for one in base):
        raise RunError(
            f'{other.described} names the base model "{name}", and {some(list(base))} is served. Serve them apart, or '
            "use --force-base if these are the same weights."
        )


def _are_one_folder(first: str, other: str) -> bool:
    return Path(first).is_dir() and Path(other).is_dir() and Path(first).samefile(other)


def check_shares(artifact: Artifact) -> None:
    """RunError where an artifact needs a model, or a tokenizer, of its own."""
    if artifact.config.artifact == "model":
        raise RunError(f"{artifact.described} is no adapter but a model of its own. Use it alone.")
    if artifact.base_named is not None and artifact.base_named.new_tokens:
        raise RunError(f"{artifact.described} added tokens to its base's tokenizer, which others lack. Use it alone.")
