"""Counts of the training data while it is read, for the data report, and the errors that stop a training.

All counts come from the data as it will be trained on, not from the settings: the tokens, the end tokens in the loss,
and the rows that are left out. Of preference pairs,

    duplicate        prompt, chosen and rejected are those of an earlier pair
    contradiction    another pair with the same prompt prefers them the other way round

Their texts are compared without white space around them and stored as hashes, so a million pairs need 40 megabytes.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.errors import joined_problems, some
from rankwise.rows.encoded.sequences import Growing
from rankwise.rows.report.duplicates import TextIndex, firsts_of
from rankwise.rows.report.meaning import Meaning
from rankwise.rows.text.example import Example, Message, TaggedWords, spans_of, strays_in
from rankwise.rows.text.outcome import EncodingFacts, Outcome
from rankwise.rows.text.tokenize import Tokens, sides_of
from rankwise.runs.data_report import MOST_LISTED, LengthFacts, OverlapFacts, Skipped
from rankwise.runs.row_facts import AnswerFacts, TagFacts

TIED = "chosen and rejected are the same tokens"
"""Why such a pair is left out."""
DIGEST = 16
"""Bytes of the hash of a conversation."""
UNREAD, UNWRITTEN, NOTHING_LEFT = "cannot be read", "cannot be written for this model", "nothing left to train on"
UNUSABLE = "cannot be used"
MANY_LEFT_OUT = 0.05
"""Share of the rows from which it is a warning that they are left out."""
LOOKS_SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_ .:/-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)


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


@dataclass
class PairCounts:
    seen: Growing = field(default_factory=lambda: Growing(np.uint64, 2 * DIGEST // 8))
    """For each pair, the hashes of the chosen and of the rejected conversation."""
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
        sides = self.seen.view().reshape(-1, DIGEST // 8)
        chosen, rejected = firsts_of(sides).reshape(-1, 2).T
        return chosen * len(sides) + rejected, rejected * len(sides) + chosen

    def counted(self, rows: int) -> dict[str, Any]:
        """Fields of PairFacts; `rows` is the number of pairs that can be used."""
        longer = np.asarray(self.chosen) > np.asarray(self.rejected)
        return {
            "rows": rows, "chosen": _lengths(self.chosen), "rejected": _lengths(self.rejected),
            "chosen_longer": float(longer.mean()) if len(longer) else None,
            "duplicates": len(self.seen) - len(np.unique(self._numbers()[0])),
            "contradictions": self.contradictions,
            "ties": self.ties,
        }  # fmt: skip


def _lengths(counts: Sequence[int]) -> AnswerFacts | None:
    if not counts:
        return None
    return AnswerFacts(median=int(np.percentile(counts, 50, method="higher")), longest=max(counts))


def _digest(turns: Sequence[Message]) -> bytes:
    digest = sha256()
    for turn in turns:
        digest.update(f"{turn.role}\0{turn.text.strip()}\0{turn.tool_calls}\0".encode())
    return digest.digest()[:DIGEST]


@dataclass
class Tally:
    """Counts rows and sequences while they are read."""

    facts: EncodingFacts = field(default_factory=EncodingFacts)
    texts: TextIndex = field(default_factory=TextIndex)
    rows: int = 0
    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_rows: list[Skipped] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Problems of rows that cannot be read, each with its file:line."""
    unwritten: list[str] = field(default_factory=list)
    """Problems of rows that the template cannot render or the tokenizer cannot encode."""
    sequences: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    ended: int = 0
    truncated: int = 0
    without_loss_tokens: int = 0
    lengths: array[int] = field(default_factory=lambda: array("i"))
    shortest_left_out: int | None = None
    answers_too_long: int = 0
    """Answers left out because they are too long, from rows with other answers that are used."""
    masks: Counter[str] = field(default_factory=Counter)
    unlike_asked: int = 0
    double_start: int = 0
    control_tokens: int = 0
    unknown_special: Counter[str] = field(default_factory=Counter)
    replacements: int = 0
    systems: set[str | None] = field(default_factory=set)
    pairs: PairCounts = field(default_factory=PairCounts)
    tags: TagCounts = field(default_factory=TagCounts)
    meaning: Meaning = field(default_factory=Meaning)

    def unreadable(self, problems: Iterable[tuple[str, str]]) -> None:
        for where, why in problems:
            self.rows += 1
            self._skip(UNREAD, where, why)
            self.unread.append(why)

    def read(self, rows: Sequence[Sequence[Example]]) -> None:
        """Count rows that could be read."""
        self.rows += len(rows)
        rows = [row for row in rows if row[0].image is None]
        texts = ["\n".join(example.full_text for example in row) for row in rows]
        self.texts.add(texts)
        self.meaning.read(rows, texts)
        for row, text in zip(rows, texts, strict=True):
            self._look_at(row, text)

    def _look_at(self, examples: Sequence[Example], text: str) -> None:
        for example in examples:
            if example.rejected:
                self.pairs.read(example)
            if example.tagged is not None:
                self.tags.read(example.tagged)
        systems = {example.system for example in examples}
        text = "\n".join([text, *filter(None, systems)])
        special = dict.fromkeys(LOOKS_SPECIAL.findall(text))
        self.unknown_special.update([token for token in special if token not in self.facts.special])
        self.replacements += "\ufffd" in text
        if self.facts.control is not None:
            self.control_tokens += self.facts.control.search(text) is not None

    def keep_unencoded(self, examples: Sequence[Example], problem: str | None) -> bool:
        """Count a readable row as used if there is no tokenizer. Returns whether it can be used."""
        if problem is not None:
            self._unusable(examples[0].where, problem)
            return False
        self.used += 1
        self.add_systems(example.system for example in examples)
        return True

    def _unusable(self, where: str, problem: str) -> None:
        self._skip(UNUSABLE, where, problem)
        self.unread.append(problem)

    def encoded(self, outcomes: Sequence[Outcome], limit: int) -> bool:
        """Count the encoded examples of a row. Returns whether anything of it can be trained on."""
        where = outcomes[0].example.where
        problem = next((outcome.problem for outcome in outcomes if outcome.problem is not None), None)
        if problem is not None and outcomes[0].example.image is not None:
            self._unusable(where, problem)
            return False
        if problem is not None:
            self._skip(UNWRITTEN, where, problem)
            self.unwritten.append(problem)
            return False
        for outcome in outcomes:
            self._count(outcome)
        if any(outcome.sequences for outcome in outcomes):
            self.used += 1
            self.add_systems(outcome.example.system for outcome in outcomes)
            self.answers_too_long += sum(outcome.too_long for outcome in outcomes)
            return True
        longest = max(length for outcome in outcomes for length in outcome.lengths)
        if any(outcome.too_long for outcome in outcomes):
            self.shortest_left_out = min(longest, self.shortest_left_out or longest)
            self._skip("too long", where, f"{where}: has {longest:,} tokens, more than {limit:,}.")
        elif any(outcome.tied for outcome in outcomes):
            self.pairs.ties += 1
            self._skip(TIED, where, f"{where}: {TIED}.")
        else:
            self._skip(NOTHING_LEFT, where, f"{where}: no answer is left after cutting to {limit:,} tokens.")
        return False

    def _count(self, outcome: Outcome) -> None:
        self.lengths.extend(outcome.lengths)
        self.truncated += outcome.truncated
        self.without_loss_tokens += outcome.without_loss_tokens
        self.masks.update(outcome.methods)
        self.tags.unlearned += outcome.unlearned_words
        self.tags.cut += outcome.cut_words
        for sequence in outcome.sequences:
            supervised = sequence.loss_count
            assert supervised, f"{outcome.example.where} has no loss tokens"
            self.sequences += 1
            self.tokens += len(sequence.ids)
            self.loss_tokens += supervised
            self.ended += sequence.ended
            self.unlike_asked += not sequence.as_asked
            if outcome.example.rejected:
                self.pairs.encoded(sequence)
            start = self.facts.start_id
            self.double_start += start is not None and list(sequence.ids[:2]) == [start] * 2

    def _skip(self, reason: str, where: str, why: str) -> None:
        self.skipped[reason] += 1
        if len(self.skipped_rows) < MOST_LISTED:
            self.skipped_rows.append(Skipped(where=where, why=why))

    def add_systems(self, systems: Iterable[str | None]) -> None:
        """Two are enough to know that they differ."""
        if len(self.systems) < 2:
            self.systems.update(systems)

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


def fatal_problems(tally: Tally, config: DataConfig, *, limit: int | None, trained: int, name: str) -> list[str]:
    """Errors that stop the training. `trained` counts sequences, or rows if there is no tokenizer."""
    bad = [*tally.unread, *(() if tally.facts.guessed else tally.unwritten)]
    if bad and (config.on_bad_row == "stop" or not tally.used):
        return [joined_problems(bad)]
    if not tally.rows:
        return [f"{name}: has no rows."]
    if not tally.used and tally.unwritten:
        return []
    longer = "Raise --max-length." if limit == config.max_length else "The model's context is not longer."
    if not tally.used and NOTHING_LEFT in tally.skipped:
        return [f"{name}: no answer is left in any row after cutting to {limit} tokens. {longer}"]
    if not tally.used:
        shortest = f" (the shortest has {tally.shortest_left_out:,})" if tally.shortest_left_out else ""
        return [f"{name}: every row is longer than {limit} tokens{shortest}. {longer}"]
    if not trained:
        return [
            f"{name} has {tally.used} rows and held_out is {config.held_out}, so none is left for training."
            if config.held_out_of(tally.used)
            else f"{name}: no row is left for training."
        ]
    problems: list[str] = []
    if tally.sequences and not tally.ended:
        problems.append(f"{name}: no end token is in the loss, so the model would not learn to stop.")
    if tally.sequences and tally.unlike_asked == tally.sequences:
        problems.append(
            f"{name}: in no sequence do the tokens before the answer equal the prompt at inference, so the model would "
            "be prompted differently from how it was trained."
        )
    return problems


def advice_on(tally: Tally, config: DataConfig) -> list[str]:
    """Advice about bad rows among good ones."""
    bad = len(tally.unread) + (0 if tally.facts.guessed else len(tally.unwritten))
    if not bad or not tally.used or config.on_bad_row == "skip":
        return []
    return [f"{bad:,} of {tally.rows:,} rows cannot be used. To leave them out, use --on-bad-row skip."]


def left_out(tally: Tally, config: DataConfig) -> list[str]:
    """Warnings where many rows are left out, for example because they are too long, or so many that none are held out
    by default."""
    count, found = sum(tally.skipped.values()), list[str]()
    if config.held_out_of(tally.rows) and not config.held_out_of(tally.used):
        few = f"no validation rows are held out, since only {tally.used:,} of {tally.rows:,} rows can be used"
        found.append(f"{few}; --held-out N takes some")
    if count and count >= MANY_LEFT_OUT * tally.rows:
        why = ", ".join(f"{times:,} {reason}" for reason, times in tally.skipped.most_common())
        first = tally.skipped_rows[0].why.partition("\n")[0].rstrip(".")
        found.append(f"rows left out: {count:,} of {tally.rows:,} ({count / tally.rows:.0%}): {why}, such as {first}")
    return found


def warnings_of(tally: Tally, overlap: OverlapFacts | None, repeats: tuple[int, int]) -> list[str]:
    """Warnings about properties of the data that often are mistakes. `repeats` are rows that repeat an earlier one, and
    those that nearly do."""
    checks = [
        (
            tally.sequences - tally.ended,
            "sequences cut before the end of an answer, so that its end token is not in the loss",
        ),
        (tally.unlike_asked, "sequences in which the tokens before an answer differ from the prompt at inference"),
        (tally.answers_too_long, "answers left out because they are too long, from rows with other answers"),
        (tally.double_start, "sequences that begin with two start tokens"),
        (tally.control_tokens, "rows that contain control tokens of this model as text"),
        (tally.replacements, "rows with replacement characters (\ufffd): their text is damaged"),
        (repeats[0], "rows that repeat an earlier row"),
        (repeats[1], "rows that nearly repeat an earlier row"),
        (tally.pairs.contradictions, "pairs that contradict another pair with the same prompt"),
        (tally.pairs.ties, f"pairs left out because {TIED}"),
    ]
    problems = [f"{what}: {count:,}" for count, what in checks if count]
    if tally.facts.guessed and tally.unwritten:
        problems.append(
            f"rows that do not work with the default model (--model names one): {len(tally.unwritten):,}, such as "
            f"{tally.unwritten[0]}"
        )
    if tally.unknown_special:
        tokens = some((f"{token} ({count})" for token, count in tally.unknown_special.most_common()), 5)
        problems.append(f"control tokens of other models, with the number of rows: {tokens}")
    if overlap is not None and overlap.exact + overlap.near:
        problems.append(overlap.describe())
    return problems


def skips_of(tally: Tally) -> dict[str, Any]:
    return {
        "rows": tally.rows, "used": tally.used, "skipped": sum(tally.skipped.values()),
        "skipped_why": dict(tally.skipped), "skipped_rows": tuple(tally.skipped_rows),
    }  # fmt: skip


def counts_of(tally: Tally, encodes: bool, facts: EncodingFacts) -> dict[str, Any]:
    """The report's fields of these counts; those of tokens only where rows were encoded, and none of what such rows do
    not have."""
    counts: dict[str, Any] = skips_of(tally) | {
        "lengths": tally.length_facts(),
        "masks": dict(tally.masks),
        "template_parity": tally.unlike_asked == 0 if tally.sequences else None,
        "unknown_special_tokens": dict(tally.unknown_special),
        "replacement_characters": tally.replacements,
        "system": tally.system,
        "template": facts.template,
    }
    of_tokens: dict[str, int | None] = {
        "sequences": tally.sequences,
        "tokens": tally.tokens,
        "loss_tokens": tally.loss_tokens,
        "eos_in_loss": tally.ended,
        "truncated": tally.truncated,
        "without_loss_tokens": tally.without_loss_tokens,
        "template_parity_broken": tally.unlike_asked,
        "double_start": tally.double_start,
        "control_tokens_as_text": tally.control_tokens,
    }
    return counts | (of_tokens if encodes else dict.fromkeys(of_tokens)) | dict.fromkeys(facts.learned.uncounted)
