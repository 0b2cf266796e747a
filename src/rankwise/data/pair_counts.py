"""Counts of preference pairs while they are read: lengths of their answers, repeated pairs and contradictions.

    duplicate        prompt, chosen and rejected are those of an earlier pair
    contradiction    another pair with the same prompt prefers them the other way round

Texts are compared without white space around them and stored as hashes, so a million pairs need about 120 megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from rankwise.runs.pair_facts import AnswerFacts, PairFacts
from rankwise.text.encode_pairs import sides_of
from rankwise.text.example import Example, Message
from rankwise.text.tokenize import Tokens

TIED = "chosen and rejected are the same tokens"
"""Why such a pair is left out."""
DIGEST = 12
"""Bytes of the hash of a conversation."""


@dataclass
class PairCounts:
    seen: Counter[bytes] = field(default_factory=Counter)
    """Pairs by the hashes of the chosen and of the rejected conversation."""
    chosen: list[int] = field(default_factory=list)
    """Tokens of each chosen answer."""
    rejected: list[int] = field(default_factory=list)
    ties: int = 0

    def read(self, example: Example) -> None:
        self.seen[_digest(example.messages) + _digest(example.rejected)] += 1

    def encoded(self, row: Tokens) -> None:
        for counts, side in zip((self.chosen, self.rejected), sides_of(row), strict=True):
            counts.append(side.loss_count)

    @property
    def contradictions(self) -> int:
        return sum(count for pair, count in self.seen.items() if pair[DIGEST:] + pair[:DIGEST] in self.seen)

    def facts(self, settings: PairFacts, rows: int) -> PairFacts:
        """`settings` are facts that name the loss; `rows` is the number of pairs that can be used."""
        longer = np.asarray(self.chosen) > np.asarray(self.rejected)
        return settings.model_copy(update={
            "rows": rows, "chosen": _lengths(self.chosen), "rejected": _lengths(self.rejected),
            "chosen_longer": float(longer.mean()) if len(longer) else None,
            "duplicates": self.seen.total() - len(self.seen),
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
