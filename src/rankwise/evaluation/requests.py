"""A task's questions as token ids: what is given, what is scored, and what is to be chosen between. Next: scoring.py.

Rows of a known form are encoded as training encodes them, so a loss is that of training, and what is asked has the very
ids that a run was trained on. A question that is a text to be continued is encoded whole, and is scored from where the
ids of the text alone end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from rankwise.config.tasks import TaskConfig
from rankwise.data.sources import open_source
from rankwise.errors import DataError
from rankwise.evaluation.task_documents import Question, between, data_spec, drawn, questions
from rankwise.models.loaded import LoadedModel
from rankwise.text.encode import Encoder
from rankwise.text.example import BREAK, Example, Message
from rankwise.text.tokenize import Tokens, prompt_ids

BLOCK = 1024
"""Tokens of a running text that are scored together."""
LONGEST_TEXT = 50_000_000


@dataclass(frozen=True)
class Item:
    """`documents` are scored where they are learned: one, or one for each of `choices`. `given` are the ids before the
    answer that is to be written, and `alternatives` are references beside `wanted`."""

    where: str
    prompt: str
    wanted: str
    documents: tuple[Tokens, ...]
    right: int = -1
    choices: tuple[str, ...] = ()
    given: tuple[int, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """The texts that an answer may equal."""
        return (self.wanted, *self.alternatives)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the choices, in characters."""
        return tuple(map(len, self.choices))


@dataclass(frozen=True)
class Items:
    items: tuple[Item, ...]
    too_long: int = 0
    """Left out, since the model's context does not hold them, or not with the answer that is to be written."""
    labels: tuple[tuple[str, int], ...] = ()
    """The answers that occur in the file, the most frequent first with their counts, where these are the choices."""

    @property
    def sha256(self) -> str:
        """Of what is asked and wanted, whatever the tokenizer."""
        said = [
            (item.prompt, item.wanted, item.right, item.choices, *([item.alternatives] if item.alternatives else []))
            for item in self.items
        ]
        return sha256(json.dumps(said).encode()).hexdigest()


def items_of(task: TaskConfig, model: LoadedModel) -> Items:
    found = _all_items(task, model)
    if not task.written:
        return found
    _refuse_unasked(found, task)
    return _with_room(found, task, model)


def _all_items(task: TaskConfig, model: LoadedModel) -> Items:
    if task.running_text:
        return Items(_blocks(task, model))
    if task.ask is not None:
        asked = questions(task)
        made = _conversations(asked, task, model) if task.chat else _continuations(asked, task, model)
        return replace(made, labels=asked[0].labels)
    return _of_rows(task, model)


def items_of_documents(documents: Sequence[Tokens], model: LoadedModel) -> Items:
    """Of rows that are encoded already, such as those a run held out."""
    return Items(tuple(_item(f"document {number}", one, model) for number, one in enumerate(documents, start=1)))


def _refuse_unasked(found: Items, task: TaskConfig) -> None:
    nothing = next((item.where for item in found.items if not item.given), None)
    if nothing is not None:
        raise DataError(
            f"{nothing}: nothing stands before its answer, so there is nothing to ask for {task.written[0]}. Give rows "
            "with a question, or score such ones by loss alone."
        )


def _with_room(found: Items, task: TaskConfig, model: LoadedModel) -> Items:
    """Those that leave room in the model's context for the answer."""
    context = model.context_length or 10**9
    kept = tuple(item for item in found.items if len(item.given) + task.max_new_tokens <= context)
    if not kept:
        raise DataError(
            f"{task.data}: with {task.max_new_tokens:,} new tokens none of its {len(found.items):,} prompts fits into "
            f"the model's context of {context:,}. Lower max_new_tokens, or give shorter rows."
        )
    return Items(kept, found.too_long + len(found.items) - len(kept), found.labels)


def _encoder(task: TaskConfig, model: LoadedModel) -> Encoder:
    spec = data_spec(task)
    limit = model.context_length or 10**9
    return Encoder(model.template, model.tokenizer, spec.model_copy(update={"max_length": limit}), limit)


def _of_rows(task: TaskConfig, model: LoadedModel) -> Items:
    spec = data_spec(task)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    problems = [reason for _, reason in reading.skipped]
    if problems or not examples:
        raise DataError("\n".join(problems[:5]) or f"{task.data}: holds no rows.")
    if task.chosen:
        asked = between([(_question(example), example.messages[-1].content) for example in examples], task)
        pairs = [
            (_answered(example, answer), question)
            for example, question in zip(examples, asked, strict=True)
            for answer in question.choices
        ]
        return replace(_encoded(pairs, task, model), labels=asked[0].labels)
    return _encoded([(example, None) for example in examples], task, model)


def _answered(example: Example, answer: str) -> Example:
    """The row's own conversation with another answer."""
    *before, last = example.messages
    return replace(example, messages=(*before, replace(last, content=answer)))


def _question(example: Example) -> Question:
    if not example.messages or len([one for one in example.messages if one.role != "system"]) != 2:
        raise DataError(f"{example.where}: a row to choose an answer for has one question and one answer.")
    return Question(example.where, (example.prompt_text,), example.messages[-1].content)


def _conversations(asked: Sequence[Question], task: TaskConfig, model: LoadedModel) -> Items:
    """By the chat template; with choices each is a conversation of its own, scored with the end token behind it."""
    opening = (Message("system", task.system),) if task.system else ()

    def example(question: Question, answer: str) -> Example:
        return Example((*opening, Message("user", question.asked[0]), Message("assistant", answer)), question.where)

    pairs = [(example(one, answer), one) for one in asked for answer in one.choices or (one.wanted,)]
    return _encoded(pairs, task, model)


def _encoded(pairs: Sequence[tuple[Example, Question | None]], task: TaskConfig, model: LoadedModel) -> Items:
    outcomes = _encoder(task, model).encode([example for example, _ in pairs])
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems:
        raise DataError("\n".join(problems[:5]))
    items: list[Item] = []
    too_long, place = 0, 0
    while place < len(pairs):
        example, question = pairs[place]
        count = max(1, len(question.choices)) if question is not None else 1
        made = [document for outcome in outcomes[place : place + count] for document in outcome.documents]
        whole = len(made) == count if question is not None else bool(made)
        too_long += not whole
        if whole:
            shown = question.asked[0] if question is not None else example.prompt_text
            items.append(replace(_item(example.where, made[-1], model), prompt=shown, documents=tuple(made),
                                 alternatives=example.alternatives))  # fmt: skip
        if whole and question is not None:
            items[-1] = replace(items[-1], wanted=question.wanted, right=question.right, choices=question.choices,
                                alternatives=question.alternatives)  # fmt: skip
        place += count
    if not items:
        raise DataError(f"{task.data}: none of its {too_long:,} rows fits into the model's context.")
    return Items(tuple(items), too_long)


def _item(where: str, document: Tokens, model: LoadedModel) -> Item:
    """The last answer of a document is the one that is wanted."""
    ids, learned = np.asarray(document.ids), np.asarray(document.loss_mask)
    ends = np.flatnonzero(learned)
    last = ends[-1] + 1
    begin = last - int(np.argmin(learned[:last][::-1])) if not learned[:last].all() else 0
    given = ids[:begin].tolist()
    wanted = model.template.answer_text(ids[begin:last].tolist())
    return Item(where, model.tokenizer.readable(given), wanted, (document,), given=tuple(given))


def _continuations(asked: Sequence[Question], task: TaskConfig, model: LoadedModel) -> Items:
    """Those that fit with all their choices, but for the last token, which is only predicted."""
    made, room = [_continued(one, model) for one in asked], (model.context_length or 10**9) + 1
    kept = tuple(item for item in made if max(len(one.ids) for one in item.documents) <= room)
    if not kept:
        raise DataError(f"{task.data}: none of its {len(made):,} rows fits into the model's context.")
    return Items(kept, len(made) - len(kept))


def _continued(question: Question, model: LoadedModel) -> Item:
    """Without a template: a text, and what is to follow."""
    many = question.choices or (question.wanted,)
    befores = question.asked if len(question.asked) > 1 else question.asked * len(many)
    made = tuple(_document(before, after, model) for before, after in zip(befores, many, strict=True))
    given = made[0].ids[: int(np.argmax(np.asarray(made[0].loss_mask)))] if any(map(str.strip, befores)) else ()
    shown = " | ".join(question.asked)
    return Item(question.where, shown, question.wanted, made, question.right, question.choices, tuple(given),
                question.alternatives)  # fmt: skip


def _document(before: str, after: str, model: LoadedModel) -> Tokens:
    """White space between the two belongs to what follows, where most tokenizers have it. Of what follows nothing every
    token is scored too, as lm-eval does it."""
    tokenizer, text = model.tokenizer, before.rstrip()
    gap = before[len(text) :] or ("" if after[:1].isspace() or not text else " ")
    known = tokenizer.start + tokenizer.guarded(text)
    whole = prompt_ids(known + tokenizer.guarded(gap + after), tokenizer)
    asked = len(prompt_ids(known, tokenizer))
    if not asked:
        whole, asked = [_first(model), *whole], 1
    return Tokens(tuple(whole), tuple([False] * asked + [True] * (len(whole) - asked)))


def _blocks(task: TaskConfig, model: LoadedModel) -> tuple[Item, ...]:
    """A running text in pieces, each given the last token before it, and the first one the token that texts begin with:
    every token is scored once, as lm-eval's rolling windows do it."""
    text, start = _text(task.data), _first(model)
    ids = prompt_ids(model.tokenizer.guarded(text), model.tokenizer)
    size = min(BLOCK, model.context_length or BLOCK)
    pieces = [ids[place : place + size] for place in range(0, len(ids), size)]
    before = [start, *(piece[-1] for piece in pieces)]
    return tuple(
        Item(
            f"{task.data}, tokens from {number * size:,}", "", model.tokenizer.readable(pieces[number]),
            (Tokens((before[number], *pieces[number]), (False,) + (True,) * len(pieces[number])),),
        )
        for number in drawn(len(pieces), task)
    )  # fmt: skip


def _first(model: LoadedModel) -> int:
    """What stands before a text that begins with nothing, so that its first token is predicted too."""
    start = model.tokenizer.hub.bos_token_id
    return start if start is not None else model.tokenizer.pad_id


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST_TEXT + 1)
        if len(content) > LONGEST_TEXT:
            raise DataError(f"{path}: has more than {LONGEST_TEXT:,} bytes, which is the most that is read.")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    if not text.strip():
        raise DataError(f"{path}: holds no text.")
    if BREAK in text:
        raise DataError(f"{path}: has the noncharacter U+FDD0, which no text should have.")
    return text
