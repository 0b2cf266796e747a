"""What a merge is made of: adapters with their weights, and the base that they are for, opened and compared.

Every problem is collected, so that a user sees all of them at once and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from rankwise.errors import AdapterError, RankwiseError, some
from rankwise.exporting.trained_base import Onto, TrainedBase, format_for
from rankwise.methods.artifact import Artifact, Opening, open_artifact
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
class MergePart:
    """One adapter, and how much of its change is taken."""

    artifact: Artifact
    weight: float
    adapter: AdapterWeights


@dataclass(frozen=True)
class Inputs:
    parts: tuple[MergePart, ...]
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
    opening: Opening = field(default_factory=Opening)
    onto: Onto = "trained"


@dataclass
class _Problems:
    """All that is wrong, for one message."""

    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def caught(self, ending: str = "") -> Iterator[None]:
        """An error within the block is one of them; `ending` says how to go on."""
        try:
            yield
        except RankwiseError as error:
            self.sentences.append(f"{error}{ending}")

    def refuse(self) -> None:
        if self.sentences:
            raise AdapterError("\n".join(self.sentences))


def open_inputs(options: Options, callback: Callback) -> Inputs:
    """Open all; AdapterError or ModelError with every problem that there is."""
    problems = _Problems()
    artifacts = _artifacts(options, callback, problems)
    problems.refuse()
    bases: list[ModelConfig] = []
    for artifact in artifacts:
        with problems.caught():
            bases.append(artifact.base)
    problems.refuse()
    source = find(bases[0].model_copy(update={"quantize": "none"}), callback)  # of a GGUF file its copy in full
    source.refuse_packed("which a change is not merged into file by file")
    callback(StatusMessage(f"Base model: {source.name} in {source.folder}"))
    for artifact in artifacts:
        with problems.caught(" --base-model names another base."):
            artifact.check_base(source, "merge", callback)
    objective = artifacts[0].objective
    kinds = [(one.objective.targets, one.objective.kind.processing) for one in artifacts]
    if any(kind != kinds[0] for kind in kinds):
        names = some(artifact.described for artifact in artifacts)
        problems.sentences.append(f"these adapters were trained for different objectives or classes: {names}.")
    problems.refuse()
    base, format = skeleton(source.folder, objective.kind), None
    with problems.caught():
        format = format_for(options.onto, {artifact.described: artifact.base for artifact in artifacts})
    adapters = _read(artifacts, base, callback, problems)
    problems.refuse()
    parts = tuple(map(MergePart, artifacts, options.weights or [1.0] * len(artifacts), adapters))
    problems.sentences += _cannot_be_joined(parts, options)
    problems.refuse()
    trained = TrainedBase(source.folder, objective.kind, format, callback)
    return Inputs(
        parts=parts, source=source, base=base, objective=objective, combining=options.combining,
        strength=options.strength, trained=trained, warnings=tuple(_trained_otherwise(artifacts, format)),
    )  # fmt: skip


def _artifacts(options: Options, callback: Callback, problems: _Problems) -> list[Artifact]:
    artifacts: list[Artifact] = []
    for name in options.adapters:
        with problems.caught():
            artifacts.append(open_artifact(name, callback, **options.opening))
    for artifact in artifacts:
        if (why := artifact.why_not("merged by files")) is not None:
            problems.sentences.append(why)
        if artifact.runs_own_code:
            problems.sentences.append(
                f"{artifact.described} was trained on a model with its own Python code, which cannot be merged."
            )
    return artifacts


def _trained_otherwise(artifacts: Sequence[Artifact], format: PackedFormat | None) -> Iterable[str]:
    for artifact in artifacts:
        own = artifact.base.packed_format
        if own not in (None, format):
            yield (
                f"{artifact.described} was trained over {own} weights, and is merged into "
                f"{f'{format} ones' if format else 'the full ones'}: the result is not the model that was trained and "
                "measured"
            )


def _read(
    artifacts: Sequence[Artifact], base: Skeleton, callback: Callback, problems: _Problems
) -> list[AdapterWeights]:  # fmt: skip
    modules, adapters = host_view(base.module), list[AdapterWeights]()
    for artifact in artifacts:
        if artifact.base_named is not None and artifact.base_named.new_tokens:
            problems.sentences.append(f"{artifact.described} {NEW_TOKENS}")
            continue  # the base's tables are too small to read it over them
        with problems.caught():
            adapters.append(reported(read_adapter(artifact.result, modules), callback))
    return adapters


def unjoinable(opened: Sequence[tuple[Artifact, AdapterWeights]], *, is_single: bool) -> list[str]:
    """Why these adapters cannot be put together; `is_single` says that there is one, whose change is taken as it is."""
    problems = [f"{artifact.described} {NEW_TOKENS}" for artifact, adapter in opened if adapter.tokens]
    problems += [f"{artifact.described} {EXPERTS}" for artifact, adapter in opened if adapter.has_experts]
    dora = [artifact.described for artifact, adapter in opened if adapter.is_dora]
    if dora and not is_single:
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


def _cannot_be_joined(parts: Sequence[MergePart], options: Options) -> list[str]:
    alone = len(parts) == 1 and not options.combining.lays_out and not options.combining.cuts
    problems = unjoinable([(part.artifact, part.adapter) for part in parts], is_single=alone)
    scaled = [part.artifact for part in parts if part.adapter.heads and part.weight * options.strength != 1]
    return problems + [why for one in scaled[:1] if (why := one.why_not("weighted")) is not None]
