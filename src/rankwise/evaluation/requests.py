"""Requests: the documents of a task as token ids, with what is given, scored and chosen from. likelihood.py comes next.

Rows in a known format are encoded exactly as in training, so losses are comparable with those of training and prompts
have the ids that a run was trained on. A text to be continued is encoded together with its continuation, and scored
from where the ids of the text alone end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.tasks import TaskConfig
from rankwise.errors import ConfigError, DataError, some
from rankwise.evaluation.scoring import fitting_scores
from rankwise.evaluation.task_documents import TaskDocument, between, data_spec, drawn, task_documents
from rankwise.objectives.registry import text_objective
from rankwise.rows.sources import open_source
from rankwise.rows.text.example import BREAK, Database, Example, Message
from rankwise.rows.text.outcome import RowEncoder
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.runs.records import Callback, StatusMessage

BLOCK = 1024
"""Tokens of a running text that are scored at once."""
LONGEST_TEXT = 50_000_000


@dataclass(frozen=True)
class Request(TaskDocument):
    """A row of a task with what is scored after its prompt. `documents` are encoded sequences, one or one for each of
    `choices`, scored where their loss mask is set. `prompt_ids` are the ids before an answer to be generated."""

    documents: tuple[Tokens, ...] = ()
    prompt_ids: tuple[int, ...] = ()

    @property
    def prompt(self) -> str:
        return " | ".join(self.prompts)

    @property
    def references(self) -> tuple[str, ...]:
        """All reference answers."""
        return (self.target, *self.alternatives)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the choices in characters."""
        return tuple(map(len, self.choices))


@dataclass(frozen=True)
class Requests:
    requests: tuple[Request, ...]
    too_long: int = 0
    """Rows left out because they, or they and the answer to be generated, exceed the model's context."""
    labels: tuple[tuple[str, int], ...] = ()
    """If the choices are the answers that occur in the file: these answers with their counts, most frequent first."""

    @property
    def sha256(self) -> str:
        """Hash of prompts, targets and choices, independent of the tokenizer."""
        said = [
            (
                request.prompt,
                request.target,
                request.right,
                request.choices,
                *([request.alternatives] if request.alternatives else []),
                *([request.database] if request.database else []),
            )
            for request in self.requests
        ]
        return sha256(json.dumps(said).encode()).hexdigest()


def requests_of(task: TaskConfig, model: LoadedModel) -> Requests:
    why = text_objective(model).words.cannot.get("evaluated by continuing")
    if why is not None and (task.running_text or (task.ask is not None and not task.chat)):
        raise DataError(why.format(value=f"{task.data}: the task {task.task}", model=model.source.name))
    requests = _all_items(task, model)
    if not task.used_columns:
        return requests
    _refuse_unasked(requests)
    return _with_room(requests, task, model)


def _all_items(task: TaskConfig, model: LoadedModel) -> Requests:
    if task.running_text:
        return Requests(_blocks(task, model))
    if task.ask is not None:
        documents = task_documents(task)
        made = _conversations(documents, task, model) if task.chat else _continuations(documents, task, model)
        return replace(made, labels=documents[0].labels)
    return _of_rows(task, model)


def requests_of_sequences(
    documents: Sequence[Tokens], model: LoadedModel, databases: Mapping[bytes, Database] = MappingProxyType({})
) -> Requests:
    """Make requests from sequences that are already encoded, such as the held-out rows of a run. `databases` are found
    by the ids of a row."""
    made = [_item(f"document {number}", one, model) for number, one in enumerate(documents, start=1)]
    return Requests(tuple(replace(one, database=databases.get(bytes_of(one.documents[0]))) for one in made))


def bytes_of(row: Tokens) -> bytes:
    return np.asarray(row.ids, np.int32).tobytes()


def with_fitting_scores(
    task: TaskConfig, items: Requests, model: LoadedModel, named: tuple[str, ...], callback: Callback
) -> tuple[TaskConfig, Requests]:
    """Take the scores that were `named`; without any, take more than the loss where the answers have a form and the
    task names no scores, and say why."""
    requests = items.requests
    if named:
        task = TaskConfig(**task.model_dump(exclude_unset=True) | {"score": named})
        if task.chosen and not requests[0].choices:
            raise ConfigError(
                [f"{', '.join(named)}: a score of choices needs the rows of a file. Give them with --data."]
            )
        return with_answers(task, items, model) if task.used_columns else (task, items)
    if "score" in task.model_fields_set or not all(request.prompt_ids for request in requests):
        return task, items
    why, taken = fitting_scores([one.target for one in requests], [one.database for one in requests])
    longest = _longest_answer(requests)
    if not taken or not any(model.fits(len(one.prompt_ids), longest) for one in requests):
        return task, items
    callback(StatusMessage(
        f"{task.task} is also scored by {some(taken)}, because {why}; --score names other scores"
    ))  # fmt: skip
    return with_answers(task.model_copy(update={"score": ("loss", *taken)}), items, model)


def with_answers(task: TaskConfig, items: Requests, model: LoadedModel) -> tuple[TaskConfig, Requests]:
    """Let answers be half as long again as the longest reference, where the task does not say how long they may be."""
    _refuse_unasked(items)
    if "max_new_tokens" not in task.model_fields_set:
        task = task.model_copy(update={"max_new_tokens": _longest_answer(items.requests)})
    return task, _with_room(items, task, model)


def _longest_answer(requests: Sequence[Request]) -> int:
    longest = max(int(np.count_nonzero(one.documents[0].loss_mask)) for one in requests)
    return longest + longest // 2 + 1


def _refuse_unasked(requests: Requests) -> None:
    nothing = next((request.where for request in requests.requests if not request.prompt_ids), None)
    if nothing is not None:
        raise DataError(
            f"{nothing}: there is no prompt before the answer, so no answer to it can be scored. Give rows "
            "with a prompt, or score these by loss alone."
        )


def _with_room(requests: Requests, task: TaskConfig, model: LoadedModel) -> Requests:
    """Drop requests that leave no room in the model's context for the answer."""
    context = model.context_length or 10**9
    kept = tuple(one for one in requests.requests if model.fits(len(one.prompt_ids), task.max_new_tokens))
    if not kept:
        raise DataError(
            f"{task.data}: with {task.max_new_tokens:,} new tokens none of its {len(requests.requests):,} prompts fits "
            f"into the model's context of {context:,}. Lower max_new_tokens, or give shorter rows."
        )
    return replace(requests, requests=kept, too_long=requests.too_long + len(requests.requests) - len(kept))


def _encoder(task: TaskConfig, model: LoadedModel) -> RowEncoder:
    limit = model.context_length or 10**9
    spec = data_spec(task).model_copy(update={"max_length": limit})
    return text_objective(model).rows.encoder(model.template, model.tokenizer, spec, limit)


def _of_rows(task: TaskConfig, model: LoadedModel) -> Requests:
    spec = data_spec(task)
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    problems = [reason for _, reason in reading.skipped]
    if problems or not examples:
        raise DataError("\n".join(problems[:5]) or f"{task.data}: holds no rows.")
    if task.chosen:
        documents = between([(_question(example), example.messages[-1].content) for example in examples], task)
        pairs = [
            (_answered(example, answer), question)
            for example, question in zip(examples, documents, strict=True)
            for answer in question.choices
        ]
        return replace(_encoded(pairs, task, model), labels=documents[0].labels)
    return _encoded([(example, None) for example in examples], task, model)


def _answered(example: Example, answer: str) -> Example:
    """Replace the answer of a row's conversation."""
    *before, last = example.messages
    return replace(example, messages=(*before, replace(last, content=answer)))


def _question(example: Example) -> TaskDocument:
    if not example.messages or len([one for one in example.messages if one.role != "system"]) != 2:
        raise DataError(
            f"{example.where}: choosing between answers needs rows with exactly one question and one answer."
        )
    return TaskDocument(example.where, (example.prompt_text,), example.messages[-1].content)


def _conversations(documents: Sequence[TaskDocument], task: TaskConfig, model: LoadedModel) -> Requests:
    """Render documents with the chat template. Each choice is a conversation of its own, scored including its end
    token."""
    opening = (Message("system", task.system),) if task.system else ()

    def example(question: TaskDocument, answer: str) -> Example:
        return Example((*opening, Message("user", question.prompts[0]), Message("assistant", answer)), question.where)

    pairs = [(example(one, answer), one) for one in documents for answer in one.choices or (one.target,)]
    return _encoded(pairs, task, model)


def _encoded(pairs: Sequence[tuple[Example, TaskDocument | None]], task: TaskConfig, model: LoadedModel) -> Requests:
    outcomes = _encoder(task, model).encode([example for example, _ in pairs])
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems:
        raise DataError("\n".join(problems[:5]))
    requests: list[Request] = []
    too_long, place = 0, 0
    while place < len(pairs):
        example, question = pairs[place]
        count = max(1, len(question.choices)) if question is not None else 1
        made = [document for outcome in outcomes[place : place + count] for document in outcome.sequences]
        whole = len(made) == count if question is not None else bool(made)
        too_long += not whole
        if whole:
            row: dict[str, Any] = {
                "prompts": (example.prompt_text,), "alternatives": example.alternatives, "database": example.database,
            }  # fmt: skip
            row = row if question is None else vars(question) | {"prompts": question.prompts[:1]}
            requests.append(replace(_item(example.where, made[-1], model), documents=tuple(made), **row))
        place += count
    if not requests:
        raise DataError(f"{task.data}: none of its {too_long:,} rows fits into the model's context.")
    return Requests(tuple(requests), too_long)


def _item(where: str, document: Tokens, model: LoadedModel) -> Request:
    """Make a request from an encoded sequence; its last answer is the target."""
    ids, learned = np.asarray(document.ids), np.asarray(document.loss_mask)
    ends = np.flatnonzero(learned)
    last = ends[-1] + 1
    begin = last - int(np.argmin(learned[:last][::-1])) if not learned[:last].all() else 0
    given = ids[:begin].tolist()
    target = model.template.answers.read(ids[begin:last].tolist())
    return Request(where, (model.tokenizer.readable(given),), target, documents=(document,), prompt_ids=tuple(given))


def _continuations(documents: Sequence[TaskDocument], task: TaskConfig, model: LoadedModel) -> Requests:
    """Make requests without a template. Those that fit with all their choices are used; the last token need not fit,
    since it is only predicted."""
    made, room = [_continued(one, model) for one in documents], (model.context_length or 10**9) + 1
    kept = tuple(request for request in made if max(len(one.ids) for one in request.documents) <= room)
    if not kept:
        raise DataError(f"{task.data}: none of its {len(made):,} rows fits into the model's context.")
    return Requests(kept, len(made) - len(kept))


def _continued(question: TaskDocument, model: LoadedModel) -> Request:
    """Make a request without a template: a text and what follows it."""
    many = question.choices or (question.target,)
    befores = question.prompts if len(question.prompts) > 1 else question.prompts * len(many)
    made = tuple(_document(before, after, model) for before, after in zip(befores, many, strict=True))
    given = made[0].ids[: int(np.argmax(np.asarray(made[0].loss_mask)))] if any(map(str.strip, befores)) else ()
    return Request(**vars(question), documents=made, prompt_ids=tuple(given))


def _document(before: str, after: str, model: LoadedModel) -> Tokens:
    """Encode a text with its continuation. White space between the two belongs to the continuation, as in most
    tokenizers. If nothing comes before, every token is scored, as lm-eval does."""
    tokenizer, text = model.tokenizer, before.rstrip()
    gap = before[len(text) :] or ("" if after[:1].isspace() or not text else " ")
    known = tokenizer.start + tokenizer.special.guarded(text)
    whole = prompt_ids(known + tokenizer.special.guarded(gap + after), tokenizer)
    first = len(prompt_ids(known, tokenizer))
    if not first:
        whole, first = [_first(model), *whole], 1
    return Tokens(tuple(whole), tuple([False] * first + [True] * (len(whole) - first)))


def _blocks(task: TaskConfig, model: LoadedModel) -> tuple[Request, ...]:
    """Split a running text into blocks. Each block is preceded by the last token of the block before it, the first by
    the token that begins every text. So every token is scored once, as in lm-eval's rolling windows."""
    text, start = _text(task.data), _first(model)
    ids = prompt_ids(model.tokenizer.special.guarded(text), model.tokenizer)
    size = min(BLOCK, model.context_length or BLOCK)
    pieces = [ids[place : place + size] for place in range(0, len(ids), size)]
    before = [start, *(piece[-1] for piece in pieces)]
    return tuple(
        Request(
            f"{task.data}, tokens from {number * size:,}", (), model.tokenizer.readable(pieces[number]),
            documents=(Tokens((before[number], *pieces[number]), (False,) + (True,) * len(pieces[number])),),
        )
        for number in drawn(len(pieces), task)
    )  # fmt: skip


def _first(model: LoadedModel) -> int:
    """Return the token to put before a text without one, so that its first token is predicted too."""
    start = model.tokenizer.hub.bos_token_id
    return start if start is not None else model.tokenizer.pad_id


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST_TEXT + 1)
        if len(content) > LONGEST_TEXT:
            raise DataError(f"{path}: has more than {LONGEST_TEXT:,} bytes, the largest text that is supported.")
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
