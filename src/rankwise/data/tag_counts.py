"""Counts of tagged words while rows are read and encoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rankwise.runs.row_facts import TagFacts
from rankwise.text.tagged import TaggedWords, spans_of, strays_in


@dataclass
class TagCounts:
    words: int = 0
    spans: Counter[str] = field(default_factory=Counter)
    strays: int = 0
    widened: int = 0
    example: str | None = None
    """The first span that was widened."""
    unlearned: int = 0
    cut: int = 0

    def read(self, tagged: TaggedWords) -> None:
        self.words += len(tagged.words)
        self.spans.update(span.label for span in spans_of(tagged.tags))
        self.strays += strays_in(tagged.tags)
        self.widened += len(tagged.widened)
        if tagged.widened and self.example is None:
            self.example = tagged.widened[0]

    def facts(self, *, encoded: bool) -> TagFacts:
        return TagFacts(
            words=self.words, spans=dict(self.spans.most_common()), strays=self.strays, widened=self.widened,
            widened_example=self.example, unlearned=self.unlearned if encoded else None,
            cut=self.cut if encoded else None,
        )  # fmt: skip
