"""What our own model says to the questions, in float32 on the processor: what every engine is compared with.

Of each token of our greedy answer there are the log-probability and the margin, which is how far the likeliest token is
ahead of the next one. Where the margin is smaller than what rounding may change, another engine may rightly choose
another token (agreement.py).

The questions are up to twenty held-out rows of the run, then rows of its data, then a few prompts that are written
here, so that there is always something to ask. A prompt is used only if its text is encoded to the ids that training
used, since engines get text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.base.rotary_names import missing_names
from rankwise.config.data import DataConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import RankwiseError, TemplateError
from rankwise.evaluation.requests import requests_of_sequences
from rankwise.evaluation.validation_rows import rows_to_measure
from rankwise.inference.decoding import Answer
from rankwise.inference.generate import answers_in_turn
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import Artifact
from rankwise.objectives.preference.encode import conversation_of
from rankwise.objectives.registry import text_objective
from rankwise.objectives.rows import Messages, Rendered
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparing import prepare
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.runs.records import Callback, ProgressUpdate, silent

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
CONVERSATIONS: tuple[Messages, ...] = (
    (Message("user", FRENCH),),
    (Message("system", "Answer in one word."), Message("user", FRENCH)),
    (Message("user", FRENCH), Message("assistant", "Paris."), Message("user", "And of Spain?\n\nBriefly: one word.")),
)
"""Conversations that an engine's chat template must render as training did."""
ANSWER_TOKENS = 48
RUN_ON = 8
"""Tokens that an engine may write beyond our answer, so that one that does not stop is seen."""


@dataclass(frozen=True)
class ReferencePrompt:
    text: str
    ids: tuple[int, ...]


def prompts_for(tuned: TunedModel, count: int, rows: str | None) -> tuple[list[ReferencePrompt], str]:
    """Up to `count` prompts and what they are. `rows` is a file to take them from in place of the run's."""
    documents, about, _ = documents_of(tuned, rows)
    model = tuned.model
    some = evenly(documents, LOOKED_AT * count)
    prompts = [one for document in some if (one := _prompt(conversation_of(document), model)) is not None]
    room = (model.context_length or 10**9) - 1
    short = [one for one in prompts if len(one.ids) <= min(LONGEST_PROMPT, room)]
    usable = short or sorted((one for one in prompts if len(one.ids) <= room), key=lambda item: len(item.ids))[:count]
    chosen = evenly(usable, count)
    if chosen:
        return list(chosen), f"{len(chosen)} {about}"
    built_in = _built_in(tuned, room)[:count]
    return built_in, f"{len(built_in)} built-in prompts"


def documents_of(tuned: TunedModel, rows: str | None) -> tuple[Sequence[Tokens], str, DataConfig | None]:
    """Rows, what they are, and how they are read. Rows of a given file must be readable; those of the run need not be
    here any more."""
    if tuned.artifact.run is None and rows is None:
        return (), "", None
    try:
        found = rows_to_measure(tuned.artifact, tuned.model, rows, silent)
        return found.documents, "validation rows" if rows is None else f"rows of {rows}", found.config
    except (RankwiseError, OSError):
        if rows is not None or tuned.artifact.run is None:
            raise
    try:
        spec = tuned.artifact.run.experiment.data
        writing = tuned.objective.rows.encoding(tuned.model)
        return prepare(spec, writing, silent).trained_rows, "rows of its training data", spec
    except (RankwiseError, OSError):
        return (), "", None


def _prompt(document: Tokens, model: LoadedModel) -> ReferencePrompt | None:
    if not np.asarray(document.loss_mask).any():
        return None
    (request,) = requests_of_sequences([document], model).requests
    given = request.prompt_ids or tuple(int(token) for token in document.ids[:OPENING])
    text = model.tokenizer.decode(given)
    return ReferencePrompt(text, given) if prompt_ids(text, model.tokenizer) == list(given) else None


def _built_in(tuned: TunedModel, room: int) -> list[ReferencePrompt]:
    model, prompts, writer = tuned.model, list[ReferencePrompt](), text_objective(tuned.model).text_writer
    for question in BUILT_IN:
        try:
            text, ids = writer.prompt(model, [*tuned.opening(None), Message("user", question)])
        except TemplateError:
            text = model.tokenizer.start + question
            ids = prompt_ids(text, model.tokenizer)
        if len(ids) <= room:
            prompts.append(ReferencePrompt(text, tuple(ids)))
    return prompts


@dataclass(frozen=True)
class ReferenceQuestion:
    prompt: str
    """With the control tokens of the template."""
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    """Greedy, with the end token if the answer ended with one."""
    ended: bool
    ended_by_token: bool
    """Whether it ended with one token, at which an engine can stop by itself."""
    log_probabilities: tuple[float, ...]
    """Natural logarithms, of each of answer_ids."""
    margins: tuple[float, ...]
    """At each of answer_ids, the distance of the two largest logits, in nats."""
    characters: tuple[int, ...]
    """How many characters of the answer the first token, the first two, … decode to."""
    logits: tuple[float, ...] = ()
    """Logit of each of answer_ids, before the softmax; empty if logits cannot be compared."""

    @property
    def request(self) -> dict[str, Any]:
        """As a driver receives it."""
        room = len(self.answer_ids) + (RUN_ON if self.ended else 0)
        return {"prompt": self.prompt, "prompt_ids": self.prompt_ids, "answer_ids": self.answer_ids,
                "answer": self.answer, "max_new_tokens": room}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    about: str
    """What was asked, such as "20 validation rows"."""
    questions: tuple[ReferenceQuestion, ...]
    conversations: tuple[Rendered, ...] = ()
    """As our template renders them."""
    end_id: int | None = None
    """The tokenizer's own end token."""
    end_ids: tuple[int, ...] = ()
    """The tokens at which our model stops."""
    change: float | None = None
    """Mean absolute difference of these log-probabilities between the base model and ours; None without a base."""
    base_folder: str | None = None
    thinks: bool = False
    """Whether our template asks the model to reason."""
    auto_class: str = "AutoModelForCausalLM"
    """What transformers loads it by."""

    @property
    def request(self) -> dict[str, Any]:
        spoken = [
            [{"role": one.role, "content": one.content} for one in messages] for messages, _ in self.conversations
        ]
        names = {} if self.base_folder is None else missing_names(Path(self.base_folder))
        return {
            "questions": [one.request for one in self.questions], "conversations": spoken, "base": self.base_folder,
            "base_settings": names, "auto_class": self.auto_class, "thinks": self.thinks,
        }  # fmt: skip


def open_for_export(artifact: Artifact, dtype: str = "float32", callback: Callback = silent) -> TunedModel:
    """The tuned model of a run or folder as other programs are compared with it: they have no products in int8. A
    `dtype` in place of float32 is what it is merged in."""
    spec = artifact.model
    exact = spec.model_copy(update={"dtype": dtype, "device": "cpu"})
    return load_tuned(artifact, callback, config=exact, as_trained=False)


def reference_of(
    tuned: TunedModel, strength: float = 1.0, *, count: int = QUESTIONS, rows: str | None = None,
    answer_tokens: int = ANSWER_TOKENS, callback: Callback = silent,
) -> Reference:  # fmt: skip
    """Ask our own model. `tuned` must be in float32; `rows` is a file of questions in place of the run's rows."""
    prompts, about = prompts_for(tuned, count, rows)
    return replace(reference_to(tuned, prompts, strength, answer_tokens, callback), about=about)


def reference_to(
    tuned: TunedModel, prompts: Sequence[ReferencePrompt], strength: float, answer_tokens: int, callback: Callback
) -> Reference:
    """Ask our own model the given prompts, with its adapter at this strength. `tuned` must be in float32."""
    model, objective = tuned.model, text_objective(tuned.model)
    with ExitStack() as stack:
        if strength != 1:
            stack.enter_context(tuned.trainable.scaled(strength))
        questions = _questions(model, prompts, answer_tokens, callback)
    return Reference(
        about="", questions=tuple(questions), conversations=tuple(objective.text_writer.rendered(model, CONVERSATIONS)),
        end_id=model.tokenizer.hub.eos_token_id, end_ids=model.template.end_ids, change=_change(tuned, questions),
        base_folder=str(model.source.folder.absolute()), thinks=model.template.thinks,
        auto_class=objective.kind.auto_class,
    )  # fmt: skip


def _change(tuned: TunedModel, questions: Sequence[ReferenceQuestion]) -> float | None:
    """After full fine-tuning the base's weights may be elsewhere by now."""
    try:
        with tuned.base():
            of_base = [scored(tuned.model, one.prompt_ids, one.answer_ids)[0] for one in questions]
    except RankwiseError:
        return None
    return mean_difference([one.log_probabilities for one in questions], of_base)


def mean_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Mean over all tokens of all answers, of the absolute difference."""
    pairs = [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _questions(
    model: LoadedModel, prompts: Sequence[ReferencePrompt], new: int, callback: Callback
) -> list[ReferenceQuestion]:
    longest = max(len(one.ids) for one in prompts)
    room = model.room(longest, new)
    answers = answers_in_turn(
        model, [one.ids for one in prompts], GenerationConfig(max_new_tokens=room, repetition_check=False),
        on_progress=lambda done: callback(ProgressUpdate("Answering in float32", done, len(prompts), "prompts")),
        lay_out=False,
    )  # fmt: skip
    return [_question(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _question(model: LoadedModel, prompt: ReferencePrompt, answer: Answer) -> ReferenceQuestion:
    chosen, margins, logits = scored(model, prompt.ids, answer.ids)
    ends = model.template.end_ids
    written = [len(model.tokenizer.readable(answer.ids[:size])) for size in range(1, len(answer.ids) + 1)]
    return ReferenceQuestion(
        prompt=prompt.text, prompt_ids=prompt.ids, answer=model.tokenizer.readable(answer.ids), answer_ids=answer.ids,
        ended=answer.stopped == "end", ended_by_token=bool(answer.ids) and answer.ids[-1] in ends,
        log_probabilities=tuple(chosen), margins=tuple(margins), characters=tuple(written), logits=tuple(logits),
    )  # fmt: skip


@torch.inference_mode()
def scored(
    model: LoadedModel, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """Log-probability, margin and logit of each token of an answer."""
    if not answer:
        return [], [], []
    logits = text_objective(model).text_writer.answer_logits(model, prompt, answer).double()
    likeliest = logits.topk(2, -1).values
    given = torch.tensor(answer, device=logits.device)[:, None]
    chosen, own = (values.gather(1, given)[:, 0].tolist() for values in (logits.log_softmax(-1), logits))
    return chosen, (likeliest[:, 0] - likeliest[:, 1]).tolist(), own
