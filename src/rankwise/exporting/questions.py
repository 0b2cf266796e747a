"""The prompts that an export is verified with: up to twenty held-out rows of its run, or the next best thing.

Held-out rows come first, then rows of the run's data, then a few prompts that are written here, so that there is always
something to ask. A prompt is used only if its text is encoded to the ids that training used, since engines get text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.data.preparing import prepare
from rankwise.data.sequences import evenly
from rankwise.errors import RankwiseError, TemplateError
from rankwise.evaluation.requests import requests_of_sequences
from rankwise.evaluation.validation_rows import rows_to_measure
from rankwise.inference.generate import asking_ids
from rankwise.inference.tuned_model import TunedModel
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import silent
from rankwise.text.encode_pairs import conversation_of
from rankwise.text.example import Message
from rankwise.text.tokenize import Tokens, prompt_ids

QUESTIONS = 20
LONGEST_PROMPT = 512
"""Longer prompts are asked only where a run has no shorter ones."""
LOOKED_AT = 5
"""Rows that are looked at for each prompt, since not every row has a usable one."""
OPENING = 16
"""Tokens of a text without a prompt that are given, to be continued."""
BUILT_IN = (
    "What is the capital of France?", "Count from one to five.", "Name three colours.", "Say hello in Spanish.",
    'Return {"answer": 42} as JSON.', "Why is the sky blue?", "Translate to German: good morning", "What is 7 times 8?",
)  # fmt: skip
FRENCH = "What is the capital of France?"
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (Message("user", FRENCH),),
    (Message("system", "Answer in one word."), Message("user", FRENCH)),
    (Message("user", FRENCH), Message("assistant", "Paris."), Message("user", "And of Spain?\n\nBriefly: one word.")),
)
"""Those that a template must render as training did."""


@dataclass(frozen=True)
class Prompt:
    text: str
    ids: tuple[int, ...]


def prompts_for(tuned: TunedModel, count: int, rows: str | None) -> tuple[list[Prompt], str]:
    """Up to `count` prompts and what they are. `rows` is a file to take them from in place of the run's."""
    documents, about = _documents(tuned, rows)
    model = tuned.model
    some = evenly(documents, LOOKED_AT * count)
    prompts = [one for document in some if (one := _prompt(conversation_of(document), model)) is not None]
    room = (model.context_length or 10**9) - 1
    short = [one for one in prompts if len(one.ids) <= min(LONGEST_PROMPT, room)]
    usable = short or sorted((one for one in prompts if len(one.ids) <= room), key=lambda one: len(one.ids))[:count]
    chosen = evenly(usable, count)
    if chosen:
        return list(chosen), f"{len(chosen)} {about}"
    built_in = _built_in(tuned, room)[:count]
    return built_in, f"{len(built_in)} built-in prompts"


def _documents(tuned: TunedModel, rows: str | None) -> tuple[Sequence[Tokens], str]:
    """Rows of a given file must be readable; those of the run need not be here any more."""
    if rows is not None:
        return rows_to_measure(tuned.artifact, tuned.model, rows, silent).documents, f"rows of {rows}"
    if tuned.artifact.run is None:
        return (), ""
    try:
        return rows_to_measure(tuned.artifact, tuned.model, None, silent).documents, "validation rows"
    except (RankwiseError, OSError):
        pass
    try:
        spec = tuned.artifact.run.experiment.data
        writing = tuned.objective.writing(tuned.model)
        return prepare(spec, writing, silent).trained_rows, "rows of its training data"
    except (RankwiseError, OSError):
        return (), ""


def conversations_for(model: LoadedModel) -> list[tuple[tuple[Message, ...], tuple[int, ...]]]:
    """Conversations that the template can say, with their ids; none where an encoder reads single texts."""
    rendered = []
    if model.encoder_decoder:
        return rendered
    for messages in CONVERSATIONS:
        try:
            rendered.append((messages, tuple(asking_ids(model, messages))))
        except TemplateError:  # it knows no system message, for example
            continue
    return rendered


def _prompt(document: Tokens, model: LoadedModel) -> Prompt | None:
    if not np.asarray(document.loss_mask).any():
        return None
    (request,) = requests_of_sequences([document], model).requests
    given = request.given or tuple(int(token) for token in document.ids[:OPENING])
    text = model.tokenizer.decode(given)
    return Prompt(text, given) if prompt_ids(text, model.tokenizer) == list(given) else None


def _built_in(tuned: TunedModel, room: int) -> list[Prompt]:
    model, prompts = tuned.model, list[Prompt]()
    if model.encoder_decoder:
        encoded = [tuple(asking_ids(model, [Message("user", question)])) for question in BUILT_IN]
        return [Prompt(model.tokenizer.decode(ids), ids) for ids in encoded if len(ids) <= room]
    for question in BUILT_IN:
        try:
            text = model.template.text([*tuned.opening(None), Message("user", question)], answer_next=True)
        except TemplateError:
            text = model.tokenizer.start + question
        ids = tuple(prompt_ids(text, model.tokenizer))  # decoding them may give another text
        if len(ids) <= room:
            prompts.append(Prompt(text, ids))
    return prompts
