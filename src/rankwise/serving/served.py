"""What a server answers with: adapters by the names that requests give, and their base by its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.adapters.by_row import AdaptersByRow
from rankwise.adapters.set import AdapterSet
from rankwise.config.models import Dtype
from rankwise.errors import ConfigError, RunError, some
from rankwise.inference.growing_batch import ByRow, can_grow
from rankwise.inference.tuned_model import with_own_template
from rankwise.methods.artifact import Artifact, open_artifact
from rankwise.methods.together import load_together
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback
from rankwise.system.files import sha256_of
from rankwise.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class Served:
    """`adapter` is its name in the set, None for the base; `sha256` is of the file of its weights."""

    name: str
    adapter: str | None
    template: ChatTemplate
    system: str | None
    sha256: str | None
    created: int
    parent: str | None
    """The name of the base, where this is an adapter."""

    def as_json(self) -> dict[str, Any]:
        own = {"id": self.name, "object": "model", "created": self.created, "owned_by": "rankwise"}
        return own | {"parent": self.parent, "sha256": self.sha256}


@dataclass(frozen=True)
class Serving:
    """`models` by name, the base first."""

    model: LoadedModel
    models: dict[str, Served]
    by_row: ByRow
    mixes: bool
    adapters: AdapterSet | None = None
    """None where the model's own weights learned."""


def load_serving(
    names: Sequence[str], callback: Callback, *, dtype: Dtype = "auto", force_base: bool = False,
    trust_code: str | None = None,
) -> Serving:  # fmt: skip
    """The runs and adapters of these names over their base; a RankwiseError where one cannot be served."""
    artifacts = [open_artifact(name, callback, trust_code=trust_code) for name in names]
    _check(artifacts)
    together = load_together(artifacts, callback, dtype=dtype, force_base=force_base)
    model = together.model
    if not can_grow(model.module):
        raise RunError(
            f"{model.source.name} keeps more than keys and values of what it has read, so its answers cannot be "
            "written together. Use rankwise chat, or an export in another server."
        )
    base = model.source.name
    served = [] if together.adapters is None else [
        Served(_own_name(base), None, model.template, None, None, _created(Path(model.source.folder)), None)
    ]  # fmt: skip
    for artifact, adapter in zip(artifacts, together.names, strict=True):
        report = artifact.data_report
        served.append(Served(
            _own_name(artifact.name), adapter, _template(artifact, model, callback),
            None if report is None else report.system, _hash_of(artifact.result), _created(artifact.result),
            None if adapter is None else _own_name(base),
        ))  # fmt: skip
    if twice := {one.name for one in served if [other.name for other in served].count(one.name) > 1}:
        raise ConfigError([f"several models would be served under the name {some(sorted(twice))}. Rename a run."])
    by_row = AdaptersByRow(together.adapters) if together.adapters is not None else None
    models = {one.name: one for one in served}
    if by_row is None:
        return Serving(model, models, lambda names: nullcontext(), mixes=True)
    return Serving(model, models, by_row.of, by_row.mixes, together.adapters)


def _check(artifacts: Sequence[Artifact]) -> None:
    for artifact in artifacts:
        if artifact.targets is not None:
            raise RunError(f"{artifact.described} is a classifier, which generates no text. Use rankwise predict.")
        if artifact.encoder_decoder:
            raise RunError(f"{artifact.described} is an encoder with a decoder, which this server does not serve.")


def _template(artifact: Artifact, model: LoadedModel, callback: Callback) -> ChatTemplate:
    """The one that it was trained with."""
    report = artifact.data_report
    if report is not None and report.template is not None:
        return ChatTemplate.of_data_report(model.tokenizer, report.template)
    return with_own_template(artifact.folder, model.tokenizer, model.source.folder, model.template, callback)


def _own_name(name: str) -> str:
    """Without the folders before it."""
    return Path(name).name if Path(name).exists() else name


def _hash_of(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    return sha256_of(files[0]) if len(files) == 1 else None


def _created(folder: Path) -> int:
    return int(folder.stat().st_mtime)
