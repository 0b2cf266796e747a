"""A way to fine-tune, as the rest of the package sees it: attach it to a model, save what was learned, load it again.

The settings of a method (rank, budget, start …) are its config; `registry.method_of` finds the method of a config. Code
outside this folder never asks which method it has: what differs between methods is answered by the method, by its
config, or by the `Trainable` that `attach` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rankwise.adapters.weights import AdapterWeights
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.base.sources import Source
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.methods.artifact import Artifact, BaseFacts
from rankwise.methods.starting import Start
from rankwise.methods.trainable import Trainable
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.lineage import Round
from rankwise.runs.manifest import TRAINING, TrainingFacts
from rankwise.runs.records import Callback, RankRecord, silent
from rankwise.system.files import sha256_of, write_json


@dataclass(frozen=True)
class Setup:
    """The training that a method is attached for."""

    training: TrainingConfig
    steps: int
    rows: Sequence[Tokens] = ()
    """The training rows, for a start that depends on them."""
    heads: tuple[str, ...] = ()
    """Modules that are trained whole beside an adapter."""
    described: str = "this training"
    """What is trained, for messages."""
    callback: Callback = silent
    resumed_ranks: Callable[[], RankRecord | None] | None = None
    """For a run that is resumed: reads the ranks that data decided when it began."""
    start: Start | None = None
    """The adapter to begin with. None for a new one, and for a run that is resumed: its checkpoint holds all."""
    load: Callable[[ModelConfig, Callback], LoadedModel] = load
    """Loads the base again where a method needs its weights: the objective's `load`."""


@dataclass(frozen=True)
class SavedRecord:
    """What is written beside the weights."""

    data_report: dict[str, Any]
    revision: str | None
    """The base model's revision, where it has one."""
    card: Callable[[BaseFacts, Sequence[int]], str]
    """The text of the model card, from what is known of the base and the ranks of the adapted layers."""
    callback: Callback = silent
    lineage: tuple[Round, ...] = ()
    training: TrainingFacts | None = None

    def write_training(self, folder: Path) -> None:
        """Beside the weights, which are written before."""
        if self.training is not None:
            hashes = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
            facts = self.training.model_copy(update={"weights": hashes})
            write_json(folder / TRAINING, facts.model_dump(mode="json"))


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


class Method(Protocol):
    def own_copy(self, model: LoadedModel) -> LoadedModel:
        """A copy of somebody else's model where training would change its weights, or else the model itself."""
        return model

    def attach(self, model: LoadedModel, setup: Setup) -> Trainable:
        """Make the model learn. If that fails, the model is what it was."""
        ...

    def save(self, trainable: Any, model: LoadedModel, folder: Path, record: SavedRecord) -> None:
        """Write what was learned as `folder`, whole or not at all."""
        ...

    def tuned(self, model: LoadedModel, folder: Path) -> LoadedModel:
        """The model after training: the one that was loaded, or the one that was written to `folder`."""
        return model

    def model_of(self, artifact: Artifact) -> ModelConfig:
        """The model to load for an artifact: its base, or what was written."""
        ...

    def load(self, artifact: Artifact, config: ModelConfig, callback: Callback) -> tuple[LoadedModel, Trainable]:
        """Load what was learned. `config` is that of `model_of`, in the number format and on the device you choose."""
        ...

    def adapter_over(self, source: Source, artifact: Artifact, callback: Callback) -> AdapterWeights | None:
        """The LoRA to export over the model of `model_of`, which must be the one that it was trained on; None where
        that model holds all."""
        ...

    def contents(self, folder: Path) -> Contents: ...
