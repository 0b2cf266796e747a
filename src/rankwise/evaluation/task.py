"""A task that is ready to be asked: of a spec's own rows, or of another harness (harness.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankwise.config.tasks import TaskConfig
from rankwise.evaluation.requests import Items
from rankwise.evaluation.scoring import refuse_unfit, side
from rankwise.models.loaded import LoadedModel
from rankwise.runs.evaluations import Sample, Side
from rankwise.runs.records import Callback

SAMPLES = 20


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def data(self) -> str:
        """Where its items come from."""
        ...

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def left_out(self) -> int:
        """Items that the model's context does not hold."""
        ...

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        """The answers that occur with their counts, where they are the choices."""
        ...

    @property
    def identity(self) -> str | None:
        """Of all that a side depends on, beside the model; None where that is not known here."""
        ...

    def side(self, model: LoadedModel, who: str, callback: Callback) -> Side: ...

    def facts(self) -> tuple[int, str]:
        """How many items, and a hash of them; asked when a side is there."""
        ...

    def samples(self, tuned: Side, base: Side | None) -> list[Sample]: ...


@dataclass(frozen=True)
class OwnTask:
    """`together` answers are written at once. What cannot be scored is refused when it is made."""

    spec: TaskConfig
    items: Items
    together: int

    def __post_init__(self) -> None:
        refuse_unfit(self.spec, self.items.items)

    @property
    def name(self) -> str:
        return self.spec.task

    @property
    def left_out(self) -> int:
        return self.items.too_long

    @property
    def data(self) -> str:
        return Path(self.spec.data).name

    @property
    def settings(self) -> dict[str, Any]:
        return self.spec.model_dump(mode="json", exclude={"data", "task"}, exclude_defaults=True)

    @property
    def labels(self) -> tuple[tuple[str, int], ...]:
        return self.items.labels

    @property
    def identity(self) -> str | None:
        known = sha256(json.dumps([self.settings, self.together, self.items.sha256]).encode())
        for item in self.items.items:
            for ids in (item.given, *(part for one in item.documents for part in (one.ids, one.loss_mask))):
                known.update(np.asarray([len(ids), *ids], "<i8").tobytes())
        return known.hexdigest()

    def side(self, model: LoadedModel, who: str, callback: Callback) -> Side:
        return side(self.spec, self.items.items, model, callback, together=self.together, who=who)

    def facts(self) -> tuple[int, str]:
        return len(self.items.items), self.items.sha256

    def samples(self, tuned: Side, base: Side | None) -> list[Sample]:
        """The first few, as they were answered."""
        if tuned.answers is None:
            return []
        others = base.answers if base is not None and base.answers is not None else None
        return [
            Sample(
                prompt=item.prompt, wanted=item.wanted, tuned=tuned.answers[at],
                base=others[at] if others is not None else None,
            )
            for at, item in enumerate(self.items.items[:SAMPLES])
        ]  # fmt: skip
