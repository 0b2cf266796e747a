"""What a merge is made of: adapters with their weights, and the base that they are for, opened and compared.

Every problem is collected, so that a user sees all of them at once and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from rankwise.adapters.combining import Combining, Weighted
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights, reported
from rankwise.base.skeleton import Skeleton, skeleton
from rankwise.base.sources import Source, find
from rankwise.config.models import ModelConfig, PackedFormat
from rankwise.errors import AdapterError, RankwiseError, RunError, some
from rankwise.exporting.trained_base import Onto, TrainedBase, format_for
from rankwise.methods.artifact import Artifact, check_trained_on, open_artifact
from rankwise.objectives.objective import Objective
from rankwise.runs.records import Callback, StatusMessage

NEW_TOKENS = (
    "has trained rows of new tokens (model.new_tokens), which a merge file by file has no place for. Use rankwise "
    "export --format merged."
)

EXPERTS = (
    "has factors of experts that lie in one parameter, which a merge file by file has no place for. Use rankwise "
    "export --format merged."
)


@dataclass(frozen=True)
class Part:
    """One adapter, and how much of its change is taken."""

    artifact: Artifact
    weight: float
    adapter: AdapterWeights


@dataclass(frozen=True)
class Inputs:
    parts: tuple[Part, ...]
    source: Source
    base: Skeleton
    objective: Objective
    combining: Combining
    strength: float
    trained: TrainedBase
    """The base's quantised weights, where the change is added to them."""
    warnings: tuple[str, ...] = ()

    @cached_property
    def hosts(self) -> dict[str, nn.Module]:
        return host_view(self.base.module)

    @cached_property
    def layers(self) -> dict[str, Weighted]:
        """Factors of rank 1 or more by the layer's path, in the model's order."""
        return {path: factors for path in self.hosts if (factors := self._factors(path))}

    def _factors(self, path: str) -> Weighted:
        every = ((part.adapter.factors.get(path), part.weight) for part in self.parts)
        return [(one, weight) for one, weight in every if one is not None and one.rank]


@dataclass
class Options:
    """What a user asked for. Without `weights` a single adapter is taken whole."""

    adapters: Sequence[str]
    weights: Sequence[float] | None = None
    combining: Combining = field(default_factory=Combining)
    strength: float = 1.0
    base_model: str | None = None
    force_base: bool = False
    force_result: bool = False
    onto: Onto = "trained"


def open_inputs(options: Options, callback: Callback) -> Inputs:
    """Open all; AdapterError or ModelError with every problem that there is."""
    problems: list[str] = []
    artifacts = list(_artifacts(options, callback, problems))
    _refuse(problems)
    named = _base_named(artifacts, problems)
    _refuse(problems)
    source = find(named.model_copy(update={"quantize": "none"}), callback)  # of a GGUF file its copy in full
    source.refuse_packed("which a change is not merged into file by file")
    problems += _other_bases(artifacts, source, callback, force=options.force_base)
    objective = _objective(artifacts, problems)
    _refuse(problems)
    base = skeleton(source.folder, objective.kind)
    format = _format(artifacts, options.onto, problems)
    adapters = list(_read(artifacts, base, callback, problems))
    _refuse(problems)
    weights = options.weights or [1.0] * len(artifacts)
    parts = tuple(Part(*one) for one in zip(artifacts, weights, adapters, strict=True))
    problems += _cannot_be_joined(parts, options)
    _refuse(problems)
    trained = TrainedBase(source.folder, objective.kind, format, callback)
    return Inputs(
        parts, source, base, objective, options.combining, options.strength, trained,
        tuple(_trained_otherwise(artifacts, format)),
    )  # fmt: skip


def _refuse(problems: list[str]) -> None:
    if problems:
        raise AdapterError("\n".join(problems))


def _artifacts(options: Options, callback: Callback, problems: list[str]) -> Iterable[Artifact]:
    for name in options.adapters:
        try:
            artifact = open_artifact(
                name, callback, force_result=options.force_result, base_model=options.base_model
            )  # fmt: skip
        except RankwiseError as error:
            problems.append(str(error))
            continue
        if (why := artifact.why_not("merged by files")) is not None:
            problems.append(why)
        if artifact.runs_own_code:
            problems.append(
                f"{artifact.described} was trained on a model with its own Python code, which cannot be merged."
            )
        yield artifact


def _base_named(artifacts: Sequence[Artifact], problems: list[str]) -> ModelConfig:
    bases: list[ModelConfig] = []
    for artifact in artifacts:
        try:
            bases.append(artifact.base)
        except RankwiseError as error:
            problems.append(str(error))
    return bases[0] if bases else ModelConfig(name="none")


def _other_bases(artifacts: Sequence[Artifact], source: Source, callback: Callback, *, force: bool) -> list[str]:
    """Adapters that were trained on weights other than these."""
    callback(StatusMessage(f"Base model: {source.name} in {source.folder}"))
    problems: list[str] = []
    for artifact in artifacts:
        try:
            check_trained_on(source, artifact, "merge", callback, force=force)
        except RunError as error:
            problems.append(f"{error} --base-model names another base.")
    return problems


def _format(artifacts: Sequence[Artifact], onto: Onto, problems: list[str]) -> PackedFormat | None:
    try:
        return format_for(onto, {artifact.described: artifact.base for artifact in artifacts})
    except AdapterError as error:
        problems.append(str(error))
        return None


def _trained_otherwise(artifacts: Sequence[Artifact], format: PackedFormat | None) -> Iterable[str]:
    for artifact in artifacts:
        own = artifact.base.packed_format
        if own not in (None, format):
            yield (
                f"{artifact.described} was trained over {own} weights, and is merged into "
                f"{f'{format} ones' if format else 'the full ones'}: the result is not the model that was trained and "
                "measured"
            )


def _objective(artifacts: Sequence[Artifact], problems: list[str]) -> Objective:
    """What the merged model is for."""
    kinds = [(one.objective.targets, one.objective.kind.processing) for one in artifacts]
    if any(kind != kinds[0] for kind in kinds):
        names = some(artifact.described for artifact in artifacts)
        problems.append(f"these adapters were trained for different objectives or classes: {names}.")
    return artifacts[0].objective


def _read(
    artifacts: Sequence[Artifact], base: Skeleton, callback: Callback, problems: list[str]
) -> Iterable[AdapterWeights]:  # fmt: skip
    modules = host_view(base.module)
    for artifact in artifacts:
        if artifact.base_named is not None and artifact.base_named.new_tokens:
            problems.append(f"{artifact.described} {NEW_TOKENS}")
            continue  # the base's tables are too small to read it over them
        try:
            yield reported(read_adapter(artifact.result, modules), callback)
        except RankwiseError as error:
            problems.append(str(error))


def unjoinable(opened: Sequence[tuple[Artifact, AdapterWeights]], *, alone: bool) -> list[str]:
    """Why these adapters cannot be put together; `alone` says that there is one, whose change is taken as it is."""
    problems = [f"{artifact.described} {NEW_TOKENS}" for artifact, adapter in opened if adapter.tokens]
    problems += [f"{artifact.described} {EXPERTS}" for artifact, adapter in opened if adapter.has_experts]
    dora = [artifact.described for artifact, adapter in opened if adapter.is_dora]
    if dora and not alone:
        problems.append(
            f"{some(dora)} is DoRA, which rescales whole weights, so it can be neither combined with others nor cut to "
            "a lower rank. Merge it into its base model alone."
        )
    owners: dict[str, Path] = {}
    for artifact, adapter in opened:
        for name in adapter.heads:
            if name in owners:
                problems.append(
                    f'{owners[name]} and {artifact.folder} each have their own trained "{name}", of which a model can '
                    "have only one."
                )
            owners[name] = artifact.folder
    return problems


def _cannot_be_joined(parts: Sequence[Part], options: Options) -> list[str]:
    alone = len(parts) == 1 and not options.combining.lays_out and not options.combining.cuts
    problems = unjoinable([(part.artifact, part.adapter) for part in parts], alone=alone)
    scaled = [part.artifact for part in parts if part.adapter.heads and part.weight * options.strength != 1]
    return problems + [why for one in scaled[:1] if (why := one.why_not("weighted")) is not None]
