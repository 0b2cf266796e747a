"""Several adapters over one base model in memory: the first brings its base, the others are laid beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.adapters.formats.peft import lay_peft
from rankwise.adapters.set import AdapterSet
from rankwise.config.models import Dtype
from rankwise.errors import RunError
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable, check_trained_on
from rankwise.methods.artifact import Artifact
from rankwise.methods.registry import method_of
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback


@dataclass(frozen=True)
class Together:
    """`names` are those of the artifacts' adapters in the set, in their order; a model whose own weights learned has no
    set, and stands alone."""

    model: LoadedModel
    adapters: AdapterSet | None
    names: tuple[str | None, ...]


def load_together(
    artifacts: Sequence[Artifact], callback: Callback, *, dtype: Dtype = "auto", force_base: bool = False
) -> Together:
    """RunError where they cannot be in memory over one base. With `dtype` auto, that of the first one's training."""
    first, *others = artifacts
    for one in artifacts if others else ():
        _check_shares(one)
    method = method_of(first.config)
    spec = method.model_of(first)
    spec = spec if dtype == "auto" else spec.model_copy(update={"dtype": dtype})
    model, trainable = method.load(first, spec, callback, force_base=force_base)
    if not isinstance(trainable, AdapterTrainable):
        return Together(model, None, (None,))
    adapters, names = trainable.adapters, [trainable.name]
    for number, other in enumerate(others, start=2):
        names.append(f"adapter-{number}")
        _lay_beside(other, first, model, adapters, names[-1], callback, force_base=force_base)
    return Together(model, adapters, tuple(names))


def _lay_beside(
    other: Artifact, first: Artifact, model: LoadedModel, adapters: AdapterSet, name: str, callback: Callback, *,
    force_base: bool,
) -> None:  # fmt: skip
    if other.trained_on is None:
        _check_named_alike(other, first, force=force_base)
    check_trained_on(model, other, f"lay it over the base of {first.described}", callback, force=force_base)
    lay_peft(model.module, other.result, name=name, into=adapters, callback=callback)


def _check_named_alike(other: Artifact, first: Artifact, *, force: bool) -> None:
    """RunError where the files name other bases; which weights they were trained on, nobody recorded."""
    names = [one.base_named.name for one in (other, first) if one.base_named is not None]
    if len(names) == 2 and names[0] != names[1] and not _are_one_folder(*names) and not force:
        raise RunError(
            f'{other.described} names the base model "{names[0]}", and {first.described} names "{names[1]}". Serve '
            "them apart, or use --force-base if these are the same weights."
        )


def _are_one_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def _check_shares(artifact: Artifact) -> None:
    """RunError where an artifact needs a model, or a tokenizer, of its own."""
    if not isinstance(method_of(artifact.config), AdapterMethod):
        raise RunError(f"{artifact.described} is no adapter but a model of its own. Use it alone.")
    if artifact.base_named is not None and artifact.base_named.new_tokens:
        raise RunError(f"{artifact.described} added tokens to its base's tokenizer, which others lack. Use it alone.")
