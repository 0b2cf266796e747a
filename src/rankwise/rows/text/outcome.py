"""How the rows of a model are encoded, as an objective says it, and the result: token sequences, or a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.errors import DataError
from rankwise.rows.text.example import Example, ImageRecord
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.data_report import TemplateFacts
from rankwise.runs.row_facts import ANSWERS, Learned, NewTokenFacts

if TYPE_CHECKING:
    from rankwise.constraints.constraint import AnswerForms

_Read = TypeVar("_Read")


@dataclass
class Outcome:
    """The result of encoding one example."""

    example: Example
    sequences: list[Tokens] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Number of tokens of each sequence, before any was cut or left out."""
    truncated: int = 0
    without_loss_tokens: int = 0
    unlearned_words: int = 0
    """Where words have tags: words without a first token of their own."""
    cut_words: int = 0
    """And words behind the end of a text that was cut."""
    learned_words: tuple[int, ...] = ()
    """For a text that a model is to tag: the numbers of the words with a first token of their own."""
    too_long: int = 0
    tied: int = 0
    """Pairs whose two answers are the same tokens."""
    problem: str | None = None
    image: ImageRecord | None = None
    """What is known of an image's row."""

    @property
    def methods(self) -> list[str]:
        """How the answers of each sequence were located."""
        return [sequence.method for sequence in self.sequences if sequence.method]

    def learn(self, sequences: Iterable[Tokens]) -> None:
        """Add those that something is learned of, and count the others."""
        for sequence in sequences:
            self.sequences += [sequence] if sequence.loss_count else []
            self.without_loss_tokens += not sequence.loss_count

    @property
    def unlike_asked(self) -> bool:
        return not all(sequence.as_asked for sequence in self.sequences)


@dataclass(frozen=True)
class Shown:
    """One training sequence as segments of text, each with whether it is a training target."""

    where: str
    segments: list[tuple[str, bool]]
    tokens: int
    loss_tokens: int
    left_out: str | None = None
    """Why it is left out of training."""

    def summary(self) -> dict[str, Any]:
        segments = [{"text": text, "learned": learned} for text, learned in self.segments]
        return vars(self) | {"segments": segments}


def read_each(
    examples: Sequence[Example], read: Callable[[Example], _Read]
) -> tuple[list[Outcome], list[tuple[Outcome, _Read]]]:
    """An outcome for each example, and what was read of those that nothing is wrong with."""
    outcomes, usable = [Outcome(example) for example in examples], list[tuple[Outcome, _Read]]()
    for outcome in outcomes:
        try:
            usable.append((outcome, read(outcome.example)))
        except DataError as error:
            outcome.problem = str(error)
    return outcomes, usable


class RowEncoder(Protocol):
    """Turns examples into encoded rows of at most `limit` tokens."""

    @property
    def limit(self) -> int: ...

    def encode(self, examples: Sequence[Example]) -> list[Outcome]: ...


@dataclass(frozen=True)
class EncodingFacts:
    """How rows are encoded, for the data report."""

    learned: Learned = ANSWERS
    template: TemplateFacts | None = None
    processing: ImageProcessing | None = None
    reads: frozenset[str] = frozenset()
    """Forms of rows that are learned (Example.special), and lists of labels."""
    answers: Callable[[], AnswerForms] | None = None
    """Makes the check of answers; None where they are free."""
    special: frozenset[str] = frozenset()
    """The special tokens of the tokenizer."""
    start_id: int | None = None
    control: re.Pattern[str] | None = None
    """Matches where a control token of the model begins in a text."""
    guessed: bool = False
    """Nobody named the model. Problems of its template or tokenizer are then no errors."""


class RowEncoding(Protocol):
    """What a model's rows are encoded and counted with."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def by(self, config: DataConfig) -> Self:
        """This encoding, changed as the data settings ask, such as by the chat template of a recipe."""
        ...

    def encoder(self, config: DataConfig) -> RowEncoder: ...

    @property
    def facts(self) -> EncodingFacts: ...

    def new_tokens(self, rows: Iterable[Tokens]) -> NewTokenFacts | None:
        """How often the tokens that the training adds occur in these rows; None where it adds none."""
        ...

    @property
    def identity(self) -> str:
        """Whatever may change an encoded row, beside the settings of the data."""
        ...
