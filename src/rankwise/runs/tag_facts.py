"""What the data report says of rows whose words have tags."""

from __future__ import annotations

from rankwise.config.base import Config
from rankwise.errors import one_line, some


class TagFacts(Config):
    """Words with tags in the rows that can be read, held-out validation rows included."""

    words: int
    spans: dict[str, int]
    """Spans of each type, the most frequent first."""
    strays: int
    """Tags I-x that no tag of the same type comes before; each begins a span, as B-x would."""
    widened: int
    """Spans that began or ended inside a word and were widened to whole words."""
    widened_example: str | None = None
    unlearned: int | None
    """Words whose first token they share with the word before, or that have none; they are not learned. None without a
    tokenizer."""
    cut: int | None
    """Words that lie behind the end of a text that was cut."""

    def describe(self) -> str:
        listed = some((f"{one_line(name)} {count:,}" for name, count in self.spans.items()), 12)
        return f"{self.words:,} words, {sum(self.spans.values()):,} spans: {listed or 'none'}"

    def doubts(self) -> list[str]:
        """What may be a mistake, or is lost."""
        example = f", such as {one_line(self.widened_example)!r}" if self.widened_example is not None else ""
        counts = [
            (self.strays, "tags I- without a tag of the same type before them, read as B-"),
            (self.widened, f"spans that begin or end inside a word, widened to whole words{example}"),
            (self.unlearned or 0, "words without a first token of their own, which are not learned"),
            (self.cut or 0, "words behind the end of texts that were cut, which are not learned"),
        ]
        return [f"{what}: {count:,}" for count, what in counts if count]
