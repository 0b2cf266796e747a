"""What rows mean: counts of what can be read and yet is probably not what its author thinks.

Each check is an entry of a table below: how it finds a row, the share of the rows from which it is said, what is said
and what to do. Some look at one row while it is read, others at a digest of the question and of the answer of all rows
together. A check whose rows teach nothing stops the training from a larger share on, unless data.accept names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from rankwise.rows.encoded.sequences import Growing
from rankwise.rows.forms.labels import Labels
from rankwise.rows.report.text_checks import (
    TEXT_CHECKS,
    Check,
    CheckedRow,
    holds_card,
    holds_email,
    holds_key,
    holds_password,
    listed,
)
from rankwise.rows.text.example import Example
from rankwise.runs.row_facts import Doubt, Learned

MISSING = frozenset({
    "NaN", "nan", "None", "null", "NULL", "Null", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "undefined", "-", "--",
    "#REF!", "#VALUE!", "#DIV/0!", "#NAME?",
})  # fmt: skip
"""What programs write into cells without a value."""
LONG = 1200
"""Characters of a question or an answer that are compared with those of other rows."""
LONGER = 100
"""Times the median length that one row is longer."""
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")
_ONLY_INVISIBLE = re.compile("[\\s\ufeff\u200b-\u200d\u2060\u00ad]*")
_AS_CP1252 = re.compile(
    "[ÂÃ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â(?:€[\u0080-\u00bf™œžŸ˜“”¦¢¡]|\u0080[\u0080-\u00bf])|ï»¿"
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|[mn]dash|hellip|#\d{2,5}|#[xX][0-9A-Fa-f]{2,5});")
_SHORTENED = re.compile(r"(?<![\w.])\d[.,]\d{2,5}E\+1\d(?!\w)")
_COMMA = re.compile(r"[+-]?\d+,\d+|[+-]?\d{1,3}(?:\.\d{3})+,\d+")
_THOUSANDS = re.compile(r"[+-]?(?:\d{2,3}\.\d{3}|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:,\d{3}){2,})")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?(?:[T ][\d:.]+Z?)?|\d{1,2}[./]\d{1,2}[./](?:\d{4}|\d\d)")


_FIRST_NUMBER = re.compile(
    r"(?:[\[(<{#]\s?)?(?:[^\W\d_]{1,8}[ .:_#=-]{0,3})?[\w-]{0,12}\d[\w-]{0,12}\s?(?:[\])>}:|]|[.)-](?=\s))"
)
_LAST_NUMBER = re.compile(
    r"(?:(?<=[.?!]) #?\d{1,9}"
    r"| \[[^\[\]]{0,12}\d[^\[\]]{0,9}\]| \((?:[^\W\d]{1,8}[ .:_#=-]{0,3}[\w-]{0,12})?\d{1,3}\))\W?$"
)
_NUMBER = re.compile(r"(?<![\w-])\d[\d.,:/]*(?![\w-])")
_MARKS = ".,;:!?…\"'“”„‘’()[]{}"


class CutRow(NamedTuple):
    """A row with one question and one answer, each cut."""

    where: str
    first: str
    """The end of the question; `other` is the beginning of the answer."""
    other: str


def _answer_in_question(row: CheckedRow) -> bool:
    """Not where another answer stands there too, as in a list of what can be answered."""
    bare, question = row.bare, row.question
    if bare not in question or bare == question or not _stands_in(bare, question):
        return False
    return row.other is None or not _stands_in(row.other, question)


def _stands_in(words: str, text: str) -> bool:
    """Whether the words are no part of longer ones."""
    begin = text.find(words)
    while words and begin >= 0:
        around = text[begin - 1 : begin] + text[begin + len(words) : begin + len(words) + 1]
        if not any(sign.isalnum() or sign == "_" for sign in around):
            return True
        begin = text.find(words, begin + 1)
    return False


_REPEATS = "A model repeats what it was trained on. Remove them from the rows"
_SPACE = "Remove the white space around the answers"
CHECKS = (
    Check("answer-in-prompt", "have their answer or label word for word in the prompt", "The model learns to copy it. "
          "Leave it out of the prompt, unless the task is to find it there", rows=5, least=0.5, stops=0.9,
          finds=_answer_in_question),
    Check("prompt-as-answer", "have the prompt itself as their answer", "The model learns to repeat what it is given. "
          "Take the answer from another column", rows=3, least=0.05, stops=0.9,
          finds=lambda row: row.bare == row.question),
    Check("answer-repeats-prompt", "have an answer that begins with the whole prompt", "The model learns to repeat "
          "the question first. Remove it from the answers", rows=3, least=0.1,
          finds=lambda row: row.bare != row.question != "" and row.bare.startswith(row.question)),
    Check("missing-value", "have a placeholder for a missing value as their answer or label, such as None, NaN, N/A or "
          "-", "Programs write these into empty cells. Leave such rows out, or write what is meant", rows=3,
          finds=lambda row: row.bare in MISSING),
    Check("invisible-answer", "have an answer that consists only of invisible characters", "Leave such rows out",
          finds=lambda row: _ONLY_INVISIBLE.fullmatch(row.answer) is not None),
    Check("leading-space", "have an answer that begins with white space, unlike the others", _SPACE, rows=3, least=0.02,
          most=0.95, finds=lambda row: row.answer[:1].isspace()),
    Check("trailing-space", "have an answer that ends with a space, which the model learns to write", _SPACE, rows=3,
          least=0.02, finds=lambda row: row.answer.rstrip("\r\n")[-1:] in ("\u00a0", *" \t")),
    Check("trailing-line-end", "have an answer that ends with a line end, unlike the others", _SPACE, rows=3,
          least=0.02, most=0.95, finds=lambda row: row.answer.endswith("\n")),
    Check("decimal-commas", "have a number with a decimal comma as their label", "{taken}. Write numbers on a scale "
          "with a point: 1234.5", rows=3, least=0.1, among="labels",
          finds=lambda row: len(row.answer) < 40 and _COMMA.fullmatch(row.bare) is not None),
    Check("thousands", "have a label that may be a number with thousands separators, such as 12.345 for 12345",
          "{taken}. Write numbers without separators", rows=3, least=0.3, among="labels",
          finds=lambda row: len(row.answer) < 40 and _THOUSANDS.fullmatch(row.bare) is not None),
    Check("dates", "have a date as their label", "{taken}. Write a number, such as the year or the days since a day, "
          "if the order of the dates matters", rows=3, least=0.1, among="labels",
          finds=lambda row: len(row.answer) < 40 and _DATE.fullmatch(row.bare) is not None),
    Check("shortened-numbers", "have a long number that a spreadsheet has shortened, such as 1.23457E+15", "Its last "
          "digits are lost. Export the column as text", among="all",
          finds=lambda row: "E+1" in row.text and _SHORTENED.search(row.text) is not None),
    Check("invisible-characters", "have invisible characters in their text (byte order marks, zero-width spaces)",
          "They become tokens of their own. Remove them", rows=2, least=0.005, among="all",
          finds=lambda row: not row.text.isascii() and _INVISIBLE.search(row.text) is not None),
    Check("wrong-encoding", "have text that was decoded wrongly, such as Ã© for é or â€™ for an apostrophe",
          "Read the original file as UTF-8 and save it again", among="all",
          finds=lambda row: not row.text.isascii() and _AS_CP1252.search(row.text) is not None),
    Check("html-entities", "have HTML entities in their text, such as &amp; or &#39;", "The model learns to write "
          "them. Replace them with the characters that they stand for", rows=2, least=0.005, among="all",
          finds=lambda row: "&" in row.text and "</" not in row.text and _ENTITY.search(row.text) is not None),
    Check("keys", "have what looks like a key or token of a service", _REPEATS, among="all",
          finds=lambda row: holds_key(row.text)),
    Check("passwords", "have what looks like a password", _REPEATS, among="all",
          finds=lambda row: holds_password(row.text)),
    Check("card-numbers", "have what looks like the number of a payment card", _REPEATS, among="all",
          finds=lambda row: holds_card(row.text)),
    Check("e-mail-addresses", "have e-mail addresses", _REPEATS, among="all", finds=lambda row: holds_email(row.text)),
    Check("some-with-system", "have a system message, and the others have none", "Generation then uses none. Give "
          "all rows the same one with --system, or remove it from all", rows=3, least=0.05, most=0.95, among="all",
          finds=lambda row: row.example.system is not None),
    Check("chosen-longer", "are pairs whose chosen answer is the longer one", "The model may learn nothing but to "
          "write more. Add pairs whose better answer is the shorter one", rows=20, least=0.95, among="pairs",
          finds=lambda row: len(row.example.messages[-1].content) > len(row.example.rejected[-1].content)),
    Check("chosen-shorter", "are pairs whose chosen answer is the shorter one", "The model may learn nothing but to "
          "write less. See whether chosen and rejected are exchanged", rows=20, least=0.95, among="pairs",
          finds=lambda row: len(row.example.messages[-1].content) < len(row.example.rejected[-1].content)),
    *TEXT_CHECKS,
)  # fmt: skip
AMONG = {among: tuple(check for check in CHECKS if check.among in (among, *others))
         for among, others in (("all", ()), ("answers", ("labels", "texts")), ("pairs", ()))}  # fmt: skip


def bare_of(text: str, *, everywhere: bool = False) -> str:
    """The text in small letters without punctuation around words, and without a number at its ends, such as "[id 17]",
    "Q17:" or "(no. 17)", or without any number."""
    text = text.lower().strip()
    if everywhere:
        text = _NUMBER.sub(" ", text)
    own = _LAST_NUMBER.sub("", text[found.end() if (found := _FIRST_NUMBER.match(text)) else 0 :])
    return " ".join(filter(None, (word.strip(_MARKS) for word in own.split()))) or text


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="backslashreplace"), digest_size=8).digest())


@dataclass
class Meaning:
    """What is counted of rows of text."""

    rows: Counter[str] = field(default_factory=Counter)
    """Rows that each check finds, and among "all", "answers" and "pairs" it looks at."""
    first: dict[str, list[str]] = field(default_factory=dict)
    """`file:line` of the first three rows that each check finds."""
    files: dict[str, int] = field(default_factory=dict)
    """The number of each."""
    exchanges: Growing = field(default_factory=lambda: Growing(np.uint64, 6))
    """(N, 6) of rows with one question and one answer: digests of both, the number of the file, the line, a digest of
    the question without punctuation and numbers, and the length of an answer that ends within a sentence, or 0."""
    sample: list[list[CutRow]] = field(default_factory=list)
    """Rows of every `_step`-th call of `read`, cut."""
    lengths: Growing = field(default_factory=lambda: Growing(np.int32))
    """Characters of each row."""
    longest: tuple[int, str] = (0, "")
    _last: str | None = None
    _other: str | None = None
    _calls: int = 0
    _step: int = 1

    def read(self, rows: Sequence[Sequence[Example]], texts: Sequence[str]) -> None:
        self.lengths.extend([len(text) for text in texts])
        exchanges: list[tuple[int, ...]] = []
        kept: list[CutRow] = []
        for examples, text in zip(rows, texts, strict=True):
            first = examples[0]
            if len(text) > self.longest[0]:
                self.longest = len(text), first.where
            reply = text[text.find("\nassistant: ") + 12 if first.messages else 0 :]
            text = text if first.system is None else f"{text}\n{first.system}"
            self._count(AMONG["all"], CheckedRow(text, first, reply=reply))
            for example in examples if len(examples) == 1 or not first.alternatives else examples[:1]:
                if example.rejected:
                    self._count(AMONG["pairs"], CheckedRow(text, example))
                    self.rows["pairs"] += 1
                elif (turns := example.exchange) is not None:
                    exchanges.append(self._answered(text, example, *turns))
                    kept.append(CutRow(example.where, turns[0][-LONG:], turns[1][:LONG]))
            self.rows["all"] += 1
        self.exchanges.extend(np.array(exchanges, np.uint64).reshape(-1, 6))
        self.sample += [kept] * (kept != [] and self._calls % self._step == 0)
        self._calls += 1
        if len(self.sample) > 4:
            self.sample, self._step = self.sample[::2], 2 * self._step

    def _count(self, checks: Sequence[Check], row: CheckedRow) -> None:
        for check in checks:
            if check.finds(row):
                self.rows[check.name] += 1
                if self.rows[check.name] <= 3:
                    self.first.setdefault(check.name, []).append(row.example.where)

    def _answered(self, text: str, example: Example, question: str, answer: str) -> tuple[int, ...]:
        row = CheckedRow(text, example, question := question.strip(), answer, bare := answer.strip())
        if self._last is not None and self._last != bare:
            self._other = self._last
        self._last = bare
        row.other = self._other if self._other != bare else None
        self._count(AMONG["answers"], row)
        self.rows["answers"] += 1
        file, _, line = example.where.rpartition(":")
        number = line.partition(" ")[0]
        file, number = (file, int(number)) if number.isdecimal() else (example.where, 0)
        asks = _digest(question.lower()) ^ (_digest(example.system) if example.system else 0)
        only = bare_of(question, everywhere=bare.count(" ") > 2 and re.search(r"\d", bare) is None)
        length = len(answer) if " " in bare and (bare[-1].isalpha() or bare[-1] in ",;:-(") else 0
        file = self.files.setdefault(file, len(self.files))
        return asks, _digest(bare.lower()), file, number, _digest(only), length

    def doubts(
        self, labels: Labels, learned: Learned, surveys: Sequence[Check], accepted: Sequence[str] = ()
    ) -> list[Doubt]:
        """What is to be said of all rows; checks that are accepted stop nothing."""
        answers, of = learned.answers(labels=bool(labels)), max(self.rows["all"], self.rows["answers"])
        among = {**self.rows, answers: self.rows["answers"]}
        every = [
            check.doubt(of, self.rows[check.name], among[check.among], listed(self.first[check.name]), learned.taken)
            for check in CHECKS
            if check.name in self.first and among.get(check.among)
        ]
        found = [(one, *one.finds(self, labels, learned)) for one in surveys if among.get(one.among)]
        every += [one.doubt(looked, count, looked, example) for one, count, looked, example in found]
        warns = {*accepted, *learned.accepts, *(["answer-in-prompt"] if answers == "texts" else [])}
        return [one.model_copy(update={"stops": one.stops and one.check not in warns}) for one in every if one]

    def where(self, number: int) -> str:
        file, line = self.exchanges.view()[number, 2:4].tolist()
        return f"{[*self.files][file]}:{line}" if line else [*self.files][file]
