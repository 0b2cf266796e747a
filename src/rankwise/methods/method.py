"""A way to fine-tune, as a training sees it: attach it to a model, and save what was learned.

The settings of a method (rank, budget, start …) are its config; `registry.method_of` finds the method of a config. Code
outside this folder never asks which method it has: what differs between methods is answered by the method, by its
config, or by the `Trainable` that `attach` returns. A method knows tensors and layers; what a run records of them is
written by `saving`, and what was written is loaded by `loading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from rankwise.adapters.formats.peft import copy_into
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.weights import AdapterWeights
from rankwise.base.loaded import Load, LoadedModel
from rankwise.config.training import TrainingConfig
from rankwise.errors import AdapterError, some
from rankwise.methods.trainable import Trainable
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback, RankRecord, silent

SAME_SCALE = 1e-9
"""How much the scale that a run records may differ from the adapter's, which some programs divide by rank + 1e-5."""


@dataclass(frozen=True)
class FirstNumbers:
    """The adapter that a training begins with: its numbers, what it is for messages, and the tokens that it added."""

    weights: AdapterWeights
    described: str
    new_tokens: tuple[str, ...] = ()

    def fill(self, adapters: AdapterSet, name: str = "default") -> None:
        """Copy the numbers into an adapter that was attached with their settings."""
        live, ranked = adapters.adapters(name), self.weights.ranked
        self._check_layers({path: part.rank for path, part in live.items()})
        self._check_heads(adapters.trained_heads(name))
        self._check_tokens(adapters, name)
        for path, adapter in live.items():
            assert abs(adapter.scale - ranked[path].scale) <= SAME_SCALE * abs(ranked[path].scale), path
        copy_into(adapters, self.weights, name)

    def _check_layers(self, ranks: Mapping[str, int]) -> None:
        own = {path: part.rank for path, part in self.weights.ranked.items()}
        if differing := [path for path in ranks.keys() | own.keys() if ranks.get(path) != own.get(path)]:
            raise AdapterError(
                f"{self.described} cannot be continued: its layers cannot be told apart by name in this model "
                f"({some(sorted(differing), 4)})."
            )

    def _check_heads(self, heads: Mapping[str, nn.Module]) -> None:
        live = {f"{path}.{own}" for path, head in heads.items() for own in head.state_dict()}
        unknown, missing = sorted(self.weights.heads.keys() - live), sorted(live - self.weights.heads.keys())
        if unknown:
            raise AdapterError(
                f"{self.described} cannot be continued: it has modules that were trained whole ({some(unknown, 4)}), "
                "and this training does not train them. Only the heads of classifiers are."
            )
        if missing:
            raise AdapterError(
                f"{self.described} cannot be continued: it has no trained weights for {some(missing, 4)}, which the "
                "base model lacks too."
            )

    def _check_tokens(self, adapters: AdapterSet, name: str) -> None:
        live = {path: rows.ids for path, rows in adapters.token_rows(name).items()}
        tokens = self.weights.tokens
        if tokens and live != {path: rows.ids for path, rows in tokens.items()}:
            raise AdapterError(
                f"{self.described} cannot be continued: it has trained rows of new tokens, and this training has "
                "others or none. Set model.new_tokens to those of the adapter "
                f"({some(map(repr, self.new_tokens), 4)})."
            )


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
    start: FirstNumbers | None = None
    """The adapter to begin with. None for a new one, and for a run that is resumed: its checkpoint holds all."""
    load: Load | None = None
    """Loads the base again where a method needs its weights: the objective's `load`. None where nobody will."""


@dataclass(frozen=True)
class ResultFolder:
    """A folder that a method has written, and that is still temporary."""

    folder: Path
    ranks: tuple[int, ...] | None
    """The ranks of the adapted layers; None for a whole model."""


class Method(Protocol):
    def own_copy(self, model: LoadedModel) -> LoadedModel:
        """A copy of somebody else's model where training would change its weights, or else the model itself."""
        return model

    def attach(self, model: LoadedModel, setup: Setup) -> Trainable:
        """Make the model learn. If that fails, the model is what it was."""
        ...

    def saving(
        self, trainable: Any, model: LoadedModel, folder: Path, revision: str | None, callback: Callback
    ) -> AbstractContextManager[ResultFolder]:
        """Write what was learned as `folder`, whole or not at all: at the end of the block, with what it added.
        `revision` is that of the base."""
        ...
