"""Answers from a model: greedy or sampled decoding of many conversations at once, or of one as a stream.

The prompt is what training rendered before an answer, and decoding ends at the tokens that training taught as ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rankwise.data.example import Message
from rankwise.data.tokens import prompt_ids
from rankwise.errors import EvaluationError, ModelError
from rankwise.models.chat_templates import ChatTemplate
from rankwise.models.loaded import LoadedModel
from rankwise.spec.generation import GenerationSpec

Heard = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    stopped: Literal["end", "length"]
    seconds: float


def answer(model: LoadedModel, messages: Sequence[Message], spec: GenerationSpec, heard: Heard | None = None) -> Answer:
    """One answer; `heard` gets its text piece by piece as it is made."""
    return answers(model, [messages], spec, heard)[0]


def answers(
    model: LoadedModel, conversations: Sequence[Sequence[Message]], spec: GenerationSpec, heard: Heard | None = None
) -> list[Answer]:
    """One answer per conversation, computed together; their lengths should be alike."""
    prompts = [asking_ids(model, messages) for messages in conversations]
    return answers_to(model, prompts, spec, heard)


def asking_ids(model: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """A conversation up to where the model is to speak."""
    return prompt_ids(model.template.text(messages, answer_next=True), model.tokenizer)


@torch.inference_mode()
def answers_to(
    model: LoadedModel, prompts: Sequence[Sequence[int]], spec: GenerationSpec, heard: Heard | None = None,
    *, refuse_damage: bool = False,
) -> list[Answer]:  # fmt: skip
    """To prompts that are ids already. What a model with damaged weights writes can be refused."""
    tokenizer, template = model.tokenizer, model.template
    _check_room(model, max(map(len, prompts)), spec.max_new_tokens)
    inputs, mask = _left_padded(prompts, tokenizer.pad_id)
    began = time.perf_counter()
    module: Any = model.module
    was_training = module.training
    module.eval()
    try:
        with _seeded(spec):
            made = module.generate(
                input_ids=inputs.to(model.precision.device),
                attention_mask=mask.to(model.precision.device),
                generation_config=_settings(model, spec),
                logits_processor=[_refuse_damage] if refuse_damage else None,
                stopping_criteria=_EndTexts.of(template, inputs.shape[1]),
                streamer=_Streamer(template, heard) if heard else None,
            )
    finally:
        module.train(was_training)
    seconds = time.perf_counter() - began
    return [read_answer(row, template, seconds) for row in made[:, inputs.shape[1] :].tolist()]


def answers_in_turn(
    model: LoadedModel, prompts: Sequence[Sequence[int]], spec: GenerationSpec, together: int,
    told: Callable[[int], None] = lambda done: None, *, refuse_damage: bool = False,
) -> list[Answer]:  # fmt: skip
    """To any number of prompts, `together` at once, those of like length beside each other; in the prompts' order.
    `told` hears how many are done."""
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), tuple(prompts[at])))
    found: dict[int, Answer] = {}
    for begin in range(0, len(order), together):
        told(begin)
        batch = order[begin : begin + together]
        made = answers_to(model, [prompts[at] for at in batch], spec, refuse_damage=refuse_damage)
        found |= zip(batch, made, strict=True)
    told(len(order))
    return [found[at] for at in range(len(prompts))]


def _refuse_damage(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """At each token. Of what is not a number greedy decoding would take some token in silence."""
    highest = scores.amax(-1)
    if not bool(highest.isfinite().all()):
        wrong = highest[~highest.isfinite()][0].item()
        raise EvaluationError(
            f"the highest logit of an answer is {wrong}. The model's weights are damaged, or its number format "
            "overflows; --dtype float32 tells which."
        )
    return scores


@contextmanager
def _seeded(spec: GenerationSpec) -> Iterator[None]:
    """Draw from the seed, and leave the caller's own random numbers as they were."""
    with torch.random.fork_rng(enabled=spec.temperature > 0):
        if spec.temperature > 0:
            torch.manual_seed(spec.seed)
        yield


def _check_room(model: LoadedModel, prompt: int, new: int) -> None:
    if model.context_length is not None and prompt + new > model.context_length:
        raise ModelError(
            f"the prompt has {prompt:,} tokens and {new:,} more were asked for, but the model's context holds "
            f"{model.context_length:,}. Shorten the prompt or lower --max-new-tokens."
        )


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    inputs = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    return inputs, mask


def _settings(model: LoadedModel, spec: GenerationSpec) -> Any:
    """A fresh set, so that nothing a model's own generation_config.json says can change what was asked."""
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": spec.temperature, "top_p": spec.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        eos_token_id=list(model.template.end_ids) or None,
        pad_token_id=model.tokenizer.pad_id,
        **(sampled if spec.temperature > 0 else {"do_sample": False}),
    )


def read_answer(ids: list[int], template: ChatTemplate, seconds: float = 0.0) -> Answer:
    """What an answer's ids say up to their end. Of a row that was cut there may be none."""
    end = next((place for place, token in enumerate(ids) if token in template.end_ids), None)
    kept = ids if end is None else ids[:end]
    ended = end is not None or template.has_end_text(kept)
    return Answer(template.answer_text(kept), len(kept), "end" if ended else "length", seconds)


class _EndTexts:
    """Stops where an end that is several tokens has been written, such as a recipe's "### End"."""

    def __init__(self, template: ChatTemplate, prompt: int) -> None:
        self._template, self._prompt = template, prompt

    @classmethod
    def of(cls, template: ChatTemplate, prompt: int) -> list[_EndTexts]:
        return [cls(template, prompt)] if template.end_texts else []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ended = [self._template.has_end_text(row) for row in input_ids[:, self._prompt :].tolist()]
        return torch.tensor(ended, device=input_ids.device)


class _Streamer:
    """Hears ids from transformers' generate and passes on text that no later id can change."""

    def __init__(self, template: ChatTemplate, heard: Heard) -> None:
        self._template, self._heard = template, heard
        self._ids: list[int] = []
        self._said = 0
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self._template.end_ids]
        text = self._template.streamed_text(self._ids)
        if not text.endswith("\ufffd"):  # half of a character
            self._heard(text[self._said :])
            self._said = len(text)

    def end(self) -> None:
        text = self._template.answer_text(self._ids)
        if text[self._said :]:
            self._heard(text[self._said :])
