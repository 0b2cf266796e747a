"""Events that a run reports while it works; training records among them are also written to the metrics log.

Ranks of layers are laid out as a grid by block and kind: `model.layers.3.mlp.up_proj` is mlp.up_proj of block 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

OF_LANGUAGE_MODELS = "nats per loss token"


@dataclass(frozen=True)
class Record:
    """What a training records, a line of its metrics log; `kind` is how the log names it."""

    kind: ClassVar[str]

    def as_row(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class StepRecord(Record):
    """One optimizer step. `loss` is in nats per loss token over the whole step, or per pair of answers, and `tokens`
    excludes padding."""

    kind = "step"
    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    loss_tokens: int
    seconds: float
    resident_bytes: int
    images: int = 0
    """Images of the step, whose `tokens` are patches; 0 where rows are texts."""
    divergence: float | None = None
    """KL divergence from the base in nats per token of the anchor's text; None without an anchor."""
    preference_accuracy: float | None = None
    """Share of the step's pairs whose chosen answer is preferred; None where rows are no pairs."""
    margin: float | None = None
    """Mean margin of the chosen answer over the rejected one (objectives/preference)."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def speed(self) -> str:
        """The speed in the unit that a user counts in."""
        return (
            f"{self.images / self.seconds:,.1f} images/s" if self.images else f"{self.tokens_per_second:,.0f} tokens/s"
        )

    def as_row(self) -> dict[str, Any]:
        facts = super().as_row()
        names = ("images", "divergence", "preference_accuracy", "margin")
        optional = {name: facts.pop(name) for name in names}
        facts["tokens_per_second"] = round(self.tokens_per_second, 1)
        optional["images"] = optional["images"] or None
        return facts | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True)
class LossRecord(Record):
    """Loss per loss token on the validation rows."""

    kind = "validation"
    metric = "loss"
    step: int
    loss: float
    loss_tokens: int
    sequences: int
    unit: str = OF_LANGUAGE_MODELS

    @property
    def value(self) -> float:
        """As that of a score."""
        return self.loss


@dataclass(frozen=True)
class BudgetRecord(Record):
    """Forgetting after `step` steps on ordinary text, in nats per token, and the weight of the anchor from there on."""

    kind = "budget"
    step: int
    divergence: float
    weight: float


@dataclass(frozen=True)
class BackOffRecord(Record):
    """Training went back to `step`, because the loss was far above its past from step `begun` on."""

    kind = "back-off"
    step: int
    begun: int
    learning_rate: float
    """Highest rate of the schedule from there on."""


@dataclass(frozen=True)
class ScoreRecord(Record):
    """A metric of answers to validation rows (evaluation/metrics.py)."""

    kind = "score"
    step: int
    metric: str
    value: float
    n: int


@dataclass(frozen=True)
class EarlierRecord(Record):
    """The loss and the scores of an earlier run's validation rows, in a training that goes on from that run."""

    kind = "earlier"
    step: int
    run: str
    rows: int
    answers: int
    scores: dict[str, float]


@dataclass(frozen=True)
class SampleRecord(Record):
    """The model's answer to a fixed prompt after `step` steps; at step 0 it is the base's."""

    kind = "sample"
    step: int
    prompt: str
    target: str | None
    answer: str


@dataclass(frozen=True)
class RankRecord(Record):
    """The rank allocation after `step` steps. `unit` is what `budget` and `of` count: triplets, parameters or bytes."""

    kind = "ranks"
    step: int
    budget: int
    of: int
    ranks: dict[str, int]
    final: bool
    unit: str = "triplets"

    @property
    def mean_rank(self) -> float:
        return sum(self.ranks.values()) / max(1, len(self.ranks))

    def describe(self) -> str:
        empty = sum(rank == 0 for rank in self.ranks.values())
        when = "before training" if self.step == 0 else f"after step {self.step:,}"
        return (
            f"{'final ranks' if self.final else 'ranks'} {when}: {sum(self.ranks.values()):,} in {len(self.ranks):,} "
            f"layers, {self.mean_rank:.2f} on average (budget {self.budget:,} of {self.of:,} {self.unit})"
            + (f"; {empty:,} of them {'have' if empty > 1 else 'has'} none" if empty else "")
        )


@dataclass(frozen=True)
class StatusMessage:
    """A sentence that tells the user what is happening."""

    text: str


@dataclass(frozen=True)
class WarningMessage:
    """A change of results or memory use that the user did not request. It is shown even with --quiet, and stored in the
    run's manifest."""

    text: str


@dataclass(frozen=True)
class ProgressUpdate:
    """Progress of a long task other than training. `done` and `total` count `unit`s."""

    what: str
    done: float
    total: float
    unit: str


Event = StatusMessage | WarningMessage | ProgressUpdate | Record
Callback = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore every event."""


@dataclass
class WarningCollector:
    """A callback that passes every event on and collects the text of each distinct warning.

    `changed` is called with all texts whenever a new one arrives.
    """

    callback: Callback
    texts: tuple[str, ...] = ()
    changed: Callable[[tuple[str, ...]], None] = field(default=lambda texts: None)

    def __call__(self, event: Event) -> None:
        self.callback(event)
        if isinstance(event, WarningMessage):
            self.add(event.text)

    def add(self, *texts: str, first: bool = False) -> None:
        """Add texts at the end, or with `first` at the front, for those of an earlier process."""
        together = (*texts, *self.texts) if first else (*self.texts, *texts)
        before, self.texts = self.texts, tuple(dict.fromkeys(together))
        if self.texts != before:
            self.changed(self.texts)


LONGEST_NAME = 20
USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Usual kinds in the order of a forward pass; files list layers alphabetically."""
_BLOCK = re.compile(r"(?:^|.*?\.)(?P<block>\d{1,9})\.(?P<rest>.+)")


def placed(path: str) -> tuple[str, str]:
    """Split a path into block and kind; the block is empty for layers outside blocks."""
    match = _BLOCK.fullmatch(path)
    return (match["block"], match["rest"]) if match else ("", path)


def rank_grid(ranks: dict[str, int]) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
    """Return blocks in order, short names of kinds in order of use, and the rank of each (block, kind)."""
    places = {path: placed(path) for path in ranks}
    names = short_names({rest for _, rest in places.values()})
    cells: dict[tuple[str, str], int] = {}
    for path, (block, rest) in places.items():
        cells[block, names[rest]] = cells.get((block, names[rest]), 0) + ranks[path]
    blocks = sorted({block for block, _ in cells}, key=lambda block: (not block, int(block or 0)))
    kinds = list(dict.fromkeys(names[rest] for _, rest in places.values()))
    kinds.sort(key=lambda name: USUAL.index(name) if name in USUAL else len(USUAL))
    return blocks, kinds, cells


def short_names(kinds: set[str]) -> dict[str, str]:
    """Shorten each kind to as many trailing words as make it unique, cut at the beginning if still too long."""
    short: dict[str, str] = {}
    for kind in kinds:
        words = kind.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        short[kind] = next(
            (end for end in ends if not any(other != kind and f".{other}".endswith(f".{end}") for other in kinds)), kind
        )
    cut = {
        kind: name if len(name) <= LONGEST_NAME else f"..{name[-LONGEST_NAME + 2 :]}" for kind, name in short.items()
    }
    return cut if len(set(cut.values())) == len(cut) else {kind: _numbered(kind, kinds) for kind in kinds}


def _numbered(kind: str, kinds: set[str]) -> str:
    """Number names that would be equal after cutting."""
    return f"..{kind[-LONGEST_NAME + 8 :]}#{sorted(kinds).index(kind) + 1}"
