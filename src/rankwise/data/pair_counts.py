"""Counts of preference pairs while they are read: lengths of their answers, repeated pairs and contradictions.

    duplicate        prompt, chosen and rejected are those of an earlier pair
    contradiction    another pair with the same prompt prefers them the other way round

Texts are compared without white space around them and stored as hashes, so a million pairs need 40 megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from rankwise.data.duplicates import firsts_of
from rankwise.data.growing import Growing
from rankwise.runs.row_facts import AnswerFacts, PairFacts
from rankwise.text.example import Example, Message
from rankwise.text.tokenize import Tokens, sides_of

TIED = "chosen and rejected are the same tokens"
"""Why such a pair is left out."""
DIGEST = 16
"""Bytes of the hash of a conversation."""


@dataclass
class PairCounts:
    seen: Growing = field(default_factory=lambda: Growing(np.uint64, 2 * DIGEST // 8))
    """Of each pair, the hashes of the chosen and of the rejected conversation."""
    chosen: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of each chosen answer."""
    rejected: array[int] = field(default_factory=lambda: array("i"))
    ties: int = 0

    def read(self, example: Example) -> None:
        both = _digest(example.messages) + _digest(example.rejected)
        self.seen.extend(np.frombuffer(both, np.uint64))

    def encoded(self, row: Tokens) -> None:
        for counts, side in zip((self.chosen, self.rejected), sides_of(row), strict=True):
            counts.append(side.loss_count)

    @property
    def contradictions(self) -> int:
        pairs, reversed_pairs = self._numbers()
        return int(np.isin(pairs, reversed_pairs).sum())

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """A number for each pair, the same for the same pair, and that of the pair the other way round."""
        sides = self.seen.view().array.reshape(-1, DIGEST // 8)
        chosen, rejected = firsts_of(sides).reshape(-1, 2).T
        return chosen * len(sides) + rejected, rejected * len(sides) + chosen

    def facts(self, settings: PairFacts, rows: int) -> PairFacts:
        """`settings` are facts that name the loss; `rows` is the number of pairs that can be used."""
        longer = np.asarray(self.chosen) > np.asarray(self.rejected)
        return settings.model_copy(update={
            "rows": rows, "chosen": _lengths(self.chosen), "rejected": _lengths(self.rejected),
            "chosen_longer": float(longer.mean()) if len(longer) else None,
            "duplicates": len(self.seen) - len(np.unique(self._numbers()[0])),
            "contradictions": self.contradictions,
            "ties": self.ties,
        })  # fmt: skip


def _lengths(counts: Sequence[int]) -> AnswerFacts | None:
    if not counts:
        return None
    return AnswerFacts(median=int(np.percentile(counts, 50, method="higher")), longest=max(counts))


def _digest(turns: Sequence[Message]) -> bytes:
    digest = sha256()
    for turn in turns:
        digest.update(f"{turn.role}\0{turn.whole.strip()}\0{turn.tool_calls}\0".encode())
    return digest.digest()[:DIGEST]
