"""What a server answers with: adapters by the names that requests give, and their base by its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

from rankwise.adapters.by_row import AdaptersByRow
from rankwise.adapters.set import AdapterSet
from rankwise.base.loaded import LoadedModel
from rankwise.base.starters import STARTERS
from rankwise.config.data import Constraint
from rankwise.config.models import Dtype
from rankwise.constraints.constraint import JSON_OBJECT
from rankwise.errors import ConfigError, RunError, some
from rankwise.inference.batch import can_grow
from rankwise.inference.generate import matcher_of
from rankwise.inference.tuned_model import with_own_template
from rankwise.methods.artifact import Artifact, Opening, open_artifact
from rankwise.methods.loading import load_base, load_together
from rankwise.rows.asking import settings_of
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.runs.records import Callback
from rankwise.system.files import sha256_of

_Listed = TypeVar("_Listed", bound="Listed")


@dataclass(frozen=True)
class Listed:
    """`sha256` is of the file of its weights."""

    name: str
    sha256: str | None
    created: int
    parent: str | None
    """The name of the base, where this is an adapter over one that is served too."""

    def as_json(self) -> dict[str, Any]:
        own = {"id": self.name, "object": "model", "created": self.created, "owned_by": "rankwise"}
        return own | {"parent": self.parent, "sha256": self.sha256}


@dataclass(frozen=True)
class Served(Listed):
    """`adapter` is its name in the set, None for the base."""

    adapter: str | None
    template: ChatTemplate
    system: str | None = None
    constraint: Constraint | None = None
    """What its rows were held to."""
    prompt: str = ""
    """What its rows were put into, such as "Question: {question}"."""


@dataclass
class Serving:
    """`models` by name, the base first: it is replaced as a whole, so that who reads it sees it as it was at once."""

    model: LoadedModel
    models: dict[str, Served]
    adapters: AdapterSet
    rows: AdaptersByRow
    unconstrained: bool = False
    """Whether answers are not held to what the rows of their run were held to."""

    @property
    def base_names(self) -> tuple[str, str]:
        """The names that adapter files know the base by."""
        return self.model.source.name, self.model.source.name_for_peft


def load_serving(
    names: Sequence[str | Artifact], callback: Callback, *, base: str | None = None, aliases: Sequence[str] = (),
    dtype: Dtype = "auto", unconstrained: bool = False, **opening: Unpack[Opening],
) -> Serving:  # fmt: skip
    """The runs and adapters of these names over their base, or the model `base` alone; a RankwiseError where one cannot
    be served."""
    artifacts = [one if isinstance(one, Artifact) else open_artifact(one, callback, **opening) for one in names]
    for artifact in artifacts:
        artifact.refuse("served")
    if artifacts:
        together = load_together(artifacts, callback, dtype=dtype)
    else:
        assert base is not None, "the command asks for one of them"
        together = load_base(base, callback, dtype=dtype, trust_code=opening.get("trust_code"))
    model, adapters = together.model, together.adapters
    if not can_grow(model.module):
        raise RunError(
            f"{model.source.name} keeps more than keys and values of what it has read, so its answers cannot be "
            "written together. Use rankwise chat, or an export in another server."
        )
    created = created_at(Path(model.source.folder))
    base_itself = Served(own_name(model.source.name), None, created, None, adapter=None, template=model.template)
    served = [] if None in together.names else [base_itself]
    parent = served[0].name if served else None
    if aliases and not served:
        raise ConfigError([f"--alias {aliases[0]}: the base is not served beside a model whose own weights learned."])
    short = [one.name for one in STARTERS.values() if one.hub_id == model.source.name]
    taken = {*aliases, *(own_name(one.name) for one in artifacts)}
    every = [*aliases, *(one for one in short if served and one not in taken)]
    served += [replace(served[0], name=alias) for alias in every]
    for artifact, adapter in zip(artifacts, together.names, strict=True):
        served.append(served_as(own_name(artifact.name), artifact, adapter, model, parent, callback))
    models = by_name(served)
    for one in served:  # which looks at each token of the vocabulary: later, answers would have to wait for it
        with suppress(ConfigError) if unconstrained or one.constraint is None else nullcontext():
            matcher_of(model.with_template(one.template), one.constraint or JSON_OBJECT)
    return Serving(model, models, adapters, AdaptersByRow(adapters), unconstrained)


def served_as(
    name: str, artifact: Artifact, adapter: str | None, model: LoadedModel, parent: str | None, callback: Callback
) -> Served:
    """`adapter` is its name in the set, and `parent` that of the base."""
    report = artifact.data_report
    system = None if report is None else report.system
    sha256, created = hash_of(artifact.result), created_at(artifact.result)
    constraint = None if report is None else report.constraint
    prompt = ""
    with suppress(ConfigError):  # sources that were read in several ways
        prompt = settings_of(artifact.run).get("prompt", "")
    template = _template(artifact, model, callback)
    return Served(name, sha256, created, parent, adapter, template, system=system, constraint=constraint, prompt=prompt)


def _template(artifact: Artifact, model: LoadedModel, callback: Callback) -> ChatTemplate:
    """The one that it was trained with."""
    report = artifact.data_report
    if report is not None and report.template is not None:
        return ChatTemplate.of_data_report(model.tokenizer, report.template)
    return with_own_template(artifact.folder, model.tokenizer, model.source.folder, model.template, callback)


def by_name(served: Sequence[_Listed]) -> dict[str, _Listed]:
    """ConfigError where two have the same name."""
    names = [one.name for one in served]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError([f"several models would be served under the name {some(sorted(twice))}. Rename a run."])
    return dict(zip(names, served, strict=True))


def own_name(name: str) -> str:
    """Without the folders before it."""
    return Path(name).name if Path(name).exists() else name


def hash_of(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    return sha256_of(files[0]) if len(files) == 1 else None


def created_at(folder: Path) -> int:
    return int(folder.stat().st_mtime)
