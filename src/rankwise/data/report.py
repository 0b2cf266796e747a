"""What the training data really is, counted while it is read: the data report, with what must stop a training.

Nothing is taken from what was asked for: the tokens are those that will be trained on, the ends are those that are
learned, and the rows left out are counted where they are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.duplicates import TextIndex
from rankwise.errors import some, together
from rankwise.runs.data_report import MOST_LISTED, LengthFacts, OverlapFacts, Skipped
from rankwise.text.encode import Outcome
from rankwise.text.example import Example

UNREAD, UNWRITTEN, NOTHING_LEFT = "cannot be read", "cannot be written for this model", "nothing left to learn"
LOOKS_SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_ .:/-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
LOOKS_RENDERED = re.compile(
    r"### (?:Instruction|Response|Human|Assistant):|<\|im_start\|>|\[INST\]|<start_of_turn>|\bASSISTANT: ?$"
)


class Guards(Protocol):
    """The part of a template that knows the model's control tokens."""

    def holds_control_token(self, content: str) -> bool: ...


@dataclass
class Tally:
    """Rows and documents as they come by. `known` are the special tokens that the model's tokenizer has."""

    known: frozenset[str] = frozenset()
    start_id: int | None = None
    guards: Guards | None = None
    guessed: bool = False
    """Nobody asked for this model: what only its template or tokenizer cannot do is no fault of the rows."""
    said: TextIndex = field(default_factory=TextIndex)
    rows: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_rows: list[Skipped] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Why rows cannot be read, each with its file:line."""
    unwritten: list[str] = field(default_factory=list)
    """Why rows that could be read cannot be written by the template or encoded by the tokenizer."""
    documents: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    ended: int = 0
    truncated: int = 0
    unsupervised: int = 0
    lengths: list[int] = field(default_factory=list)
    shortest_left_out: int | None = None
    answers_too_long: int = 0
    """Documents left out for their length from rows of which others are kept."""
    masks: Counter[str] = field(default_factory=Counter)
    unlike_asked: int = 0
    double_start: int = 0
    control_tokens: int = 0
    unknown_special: Counter[str] = field(default_factory=Counter)
    replacements: int = 0
    looks_rendered: int = 0
    systems: set[str | None] = field(default_factory=set)

    def anew(self) -> Tally:
        """An empty one for the same model."""
        return Tally(self.known, self.start_id, self.guards, self.guessed)

    def unreadable(self, problems: Iterable[tuple[str, str]]) -> None:
        for where, why in problems:
            self.rows += 1
            self._skip(UNREAD, where, why)
            self.unread.append(why)

    def read(self, examples: Sequence[Example]) -> None:
        """One row that could be read."""
        self.rows += 1
        said = "\n".join(example.said for example in examples)
        self.said.add([said])
        systems = {example.system for example in examples}
        said = "\n".join([said, *filter(None, systems)])
        self.unknown_special.update(set(LOOKS_SPECIAL.findall(said)) - self.known)
        self.replacements += "\ufffd" in said
        self.looks_rendered += any(LOOKS_RENDERED.search(example.asked) is not None for example in examples)
        if self.guards is not None:
            self.control_tokens += self.guards.holds_control_token(said)

    def keep_unencoded(self, examples: Sequence[Example]) -> None:
        """Without a tokenizer, what could be read is kept."""
        self.kept += 1
        self.systems |= {example.system for example in examples}

    def encoded(self, outcomes: Sequence[Outcome], limit: int) -> bool:
        """One row's examples after encoding; whether anything of it is left."""
        where = outcomes[0].example.where
        problem = next((outcome.problem for outcome in outcomes if outcome.problem is not None), None)
        if problem is not None:
            self._skip(UNWRITTEN, where, problem)
            self.unwritten.append(problem)
            return False
        for outcome in outcomes:
            self._count(outcome)
        if any(outcome.documents for outcome in outcomes):
            self.kept += 1
            self.systems |= {outcome.example.system for outcome in outcomes}
            self.answers_too_long += sum(outcome.too_long for outcome in outcomes)
            return True
        longest = max(length for outcome in outcomes for length in outcome.lengths)
        if any(outcome.too_long for outcome in outcomes):
            self.shortest_left_out = min(longest, self.shortest_left_out or longest)
            self._skip("too long", where, f"{where}: has {longest:,} tokens, more than {limit:,}.")
        else:
            self._skip(NOTHING_LEFT, where, f"{where}: no answer is left after cutting to {limit:,} tokens.")
        return False

    def _count(self, outcome: Outcome) -> None:
        self.lengths += outcome.lengths
        self.truncated += outcome.truncated
        self.unsupervised += outcome.unsupervised
        self.masks.update(outcome.methods)
        for document in outcome.documents:
            supervised = document.loss_count
            assert supervised, f"{outcome.example.where} has nothing to learn"
            self.documents += 1
            self.tokens += len(document.ids)
            self.loss_tokens += supervised
            self.ended += document.ended
            self.unlike_asked += not document.as_asked
            twice = self.start_id is not None and list(document.ids[:2]) == [self.start_id] * 2
            self.double_start += twice

    def _skip(self, reason: str, where: str, why: str) -> None:
        self.skipped[reason] += 1
        if len(self.skipped_rows) < MOST_LISTED:
            self.skipped_rows.append(Skipped(where=where, why=why))

    @property
    def system(self) -> str | None:
        return next(iter(self.systems)) if len(self.systems) == 1 else None

    def length_facts(self) -> LengthFacts | None:
        if not self.lengths:
            return None
        median, p90, p99 = (int(value) for value in np.percentile(self.lengths, [50, 90, 99], method="higher"))
        return LengthFacts(
            median=median, p90=p90, p99=p99, longest=max(self.lengths), suggested_max_length=-(-p99 // 64) * 64
        )


def overlap_of(measured: Sequence[str], trained: Iterable[Sequence[str]]) -> OverlapFacts:
    """How many of the questions to measure with are also trained on."""
    of_measured, of_trained = TextIndex(), TextIndex()
    of_measured.add(measured)
    for chunk in trained:
        of_trained.add(chunk)
    shared = of_measured.overlap(of_trained)
    return OverlapFacts(exact=len(shared.exact), near=len(shared.near), of=len(measured))


def fatal_problems(tally: Tally, spec: DataConfig, *, limit: int | None, trained: int, name: str) -> list[str]:
    """Why these rows must not be trained on. `trained` counts documents, or rows where nothing was encoded."""
    bad = [*tally.unread, *(() if tally.guessed else tally.unwritten)]
    if bad and (spec.on_bad_row == "stop" or not tally.kept):
        return [together(bad)]
    if not tally.rows:
        return [f"{name}: has no rows."]
    if not tally.kept and tally.unwritten:
        return []
    longer = "Raise --max-length." if limit == spec.max_length else "The model's context holds no more."
    if not tally.kept and NOTHING_LEFT in tally.skipped:
        return [f"{name}: no answer is left in any row after cutting to {limit} tokens. {longer}"]
    if not tally.kept:
        shortest = f" (the shortest has {tally.shortest_left_out:,})" if tally.shortest_left_out else ""
        return [f"{name}: every row is longer than {limit} tokens{shortest}. {longer}"]
    if not trained:
        return [
            f"{name} has {tally.kept} rows and {spec.held_out} are to be held out, so none would be trained on."
            if spec.held_out
            else f"{name}: no row is left to be trained on."
        ]
    found: list[str] = []
    if tally.documents and not tally.ended:
        found.append(f"{name}: no answer's end is learned, so the model would never learn to stop.")
    if tally.documents and tally.unlike_asked == tally.documents:
        found.append(
            f"{name}: before no answer stands what generation will be given, so the model would be asked in another "
            "way than it was taught."
        )
    return found


def advice_on(tally: Tally, spec: DataConfig) -> list[str]:
    """What to do about bad rows among good ones."""
    bad = len(tally.unread) + (0 if tally.guessed else len(tally.unwritten))
    if not bad or not tally.kept or spec.on_bad_row == "skip":
        return []
    return [f"{bad:,} of {tally.rows:,} rows cannot be used. To leave them out, use --on-bad-row skip."]


def warnings_of(tally: Tally, overlap: OverlapFacts | None, near: int, exact: int) -> list[str]:
    """What a careful person would want to know before paying."""
    checks = [
        (tally.documents - tally.ended, "documents cut before the end of an answer, which they do not teach"),
        (tally.unlike_asked, "documents that show the model something else before an answer than it will be given"),
        (tally.answers_too_long, "answers left out for their length, from rows of which others are kept"),
        (tally.double_start, "documents that begin with two start tokens"),
        (tally.looks_rendered, "rows that look as if a template had been written into them already"),
        (tally.control_tokens, "rows with control tokens of this model, which are encoded as text"),
        (tally.replacements, "rows with replacement characters (\ufffd): their text was damaged before"),
        (exact, "rows that say what an earlier row says"),
        (near, "rows that say nearly what an earlier row says"),
    ]
    found = [f"{what}: {count:,}" for count, what in checks if count]
    if tally.guessed and tally.unwritten:
        found.append(
            f"rows that this model, which nobody named, cannot be trained on: {len(tally.unwritten):,}, such as "
            f"{tally.unwritten[0]}"
        )
    if tally.unknown_special:
        tokens = some((f"{token} ({count})" for token, count in tally.unknown_special.most_common()), 5)
        found.append(f"control tokens of other models, and the rows they stand in: {tokens}")
    if overlap is not None and overlap.exact + overlap.near:
        found.append(
            f"rows to measure with that ask what is trained on: {overlap.exact:,} exactly and {overlap.near:,} nearly, "
            f"of {overlap.of:,}"
        )
    return found
