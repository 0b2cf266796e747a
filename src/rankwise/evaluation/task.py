"""A task with its requests, ready to score models: from a task config, or from lm-eval (harness.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankwise.config.tasks import TaskConfig
from rankwise.evaluation.requests import Requests
from rankwise.evaluation.scoring import refuse_unfit, score_task
from rankwise.models.loaded import LoadedModel
from rankwise.runs.evaluations import ModelScores, Sample
from rankwise.runs.records import Callback

SAMPLES = 20


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def data(self) -> str:
        """Name of the source of its rows."""
        ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def left_out(self) -> int:
        """Number of rows left out because they exceed the model's context."""
        ...

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        """The answers that occur with their counts, if these are the choices."""
        ...

    @property
    def identity(self) -> str | None:
        """Hash of everything but the model that the scores depend on; None if unknown."""
        ...

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores: ...

    def facts(self) -> tuple[int, str]:
        """Return the number of items and their hash; called after the first model was scored."""
        ...

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]: ...


@dataclass(frozen=True)
class OwnTask:
    """A task with rankwise's own requests. `together` answers are generated at once; rows that cannot be scored are
    refused."""

    spec: TaskConfig
    requests: Requests
    together: int

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.requests.requests)

    @property
    def name(self) -> str:
        return self.spec.task

    @property
    def left_out(self) -> int:
        return self.requests.too_long

    @property
    def data(self) -> str:
        return Path(self.spec.data).name

    @property
    def settings(self) -> dict[str, Any]:
        return self.spec.model_dump(mode="json", exclude={"data", "task"}, exclude_defaults=True)

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        return self.requests.labels

    @property
    def identity(self) -> str | None:
        known = sha256(json.dumps([self.settings, self.together, self.requests.sha256]).encode())
        for request in self.requests.requests:
            for ids in (request.given, *(part for one in request.documents for part in (one.ids, one.loss_mask))):
                known.update(np.asarray([len(ids), *ids], "<i8").tobytes())
        return known.hexdigest()

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        return score_task(self.spec, self.requests.requests, model, callback, together=self.together, who=who)

    def facts(self) -> tuple[int, str]:
        return len(self.requests.requests), self.requests.sha256

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        """Return the first few requests with the answers of both models."""
        if tuned.answers is None:
            return []
        others = base.answers if base is not None and base.answers is not None else None
        return [
            Sample(
                prompt=request.prompt, target=request.target, tuned=tuned.answers[at],
                base=others[at] if others is not None else None,
            )
            for at, request in enumerate(self.requests.requests[:SAMPLES])
        ]  # fmt: skip
