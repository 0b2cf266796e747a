"""Several adapters over one base model in memory: the first brings its base, the others are laid beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import lay
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights, reported
from rankwise.base.loaded import LoadedModel
from rankwise.base.sources import Source
from rankwise.config.models import Dtype, ModelConfig
from rankwise.errors import RunError, some
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.runs.records import Callback


@dataclass(frozen=True)
class SharedBase:
    """`names` are those of the artifacts' adapters in the set, in their order; a model whose own weights learned has
    none, and stands alone."""

    model: LoadedModel
    adapters: AdapterSet
    names: tuple[str | None, ...]


def load_base(name: str, callback: Callback, *, dtype: Dtype = "auto", trust_code: str | None = None) -> SharedBase:
    """A base model with no adapter yet."""
    model = CAUSAL_LM.load(ModelConfig(name=name, dtype=dtype, trust_code=trust_code), callback, checked=False)
    return SharedBase(model, AdapterSet(model.module), ())


def load_together(artifacts: Sequence[Artifact], callback: Callback, *, dtype: Dtype = "auto") -> SharedBase:
    """RunError where they cannot be in memory over one base. With `dtype` auto, that of the first one's training."""
    first, *others = artifacts
    for one in artifacts if others else ():
        check_shares(one)
    method = method_of(first.config)
    spec = method.model_of(first)
    spec = spec if dtype == "auto" else spec.model_copy(update={"dtype": dtype})
    model, trainable = method.load(first, spec, callback)
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
    if not isinstance(method_of(artifact.config), AdapterMethod):
        raise RunError(f"{artifact.described} is no adapter but a model of its own. Use it alone.")
    if artifact.base_named is not None and artifact.base_named.new_tokens:
        raise RunError(f"{artifact.described} added tokens to its base's tokenizer, which others lack. Use it alone.")
