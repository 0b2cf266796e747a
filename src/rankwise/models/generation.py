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
from rankwise.errors import ModelError
from rankwise.models.loaded import LoadedModel
from rankwise.models.tokenizer import HubTokenizer
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


@torch.inference_mode()
def answers(
    model: LoadedModel, conversations: Sequence[Sequence[Message]], spec: GenerationSpec, heard: Heard | None = None
) -> list[Answer]:
    """One answer per conversation, computed together; their lengths should be alike."""
    tokenizer = model.tokenizer
    prompts = [tokenizer.encode(tokenizer.text(messages, answer_next=True))[0] for messages in conversations]
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
                generation_config=_settings(tokenizer, spec),
                streamer=_Streamer(tokenizer, heard) if heard else None,
            )
    finally:
        module.train(was_training)
    seconds = time.perf_counter() - began
    return [_answer(row, tokenizer, seconds) for row in made[:, inputs.shape[1] :].tolist()]


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


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    return inputs, mask


def _settings(tokenizer: HubTokenizer, spec: GenerationSpec) -> Any:
    """A fresh set, so that nothing a model's own generation_config.json says can change what was asked."""
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": spec.temperature, "top_p": spec.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        eos_token_id=list(tokenizer.end_ids) or None,
        pad_token_id=tokenizer.pad_id,
        **(sampled if spec.temperature > 0 else {"do_sample": False}),
    )


def _answer(ids: list[int], tokenizer: HubTokenizer, seconds: float) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in tokenizer.end_ids), None)
    kept = ids if end is None else ids[:end]
    return Answer(tokenizer.answer_text(kept), len(kept), "length" if end is None else "end", seconds)


class _Streamer:
    """Hears ids from transformers' generate and passes on text that no later id can change."""

    def __init__(self, tokenizer: HubTokenizer, heard: Heard) -> None:
        self._tokenizer, self._heard = tokenizer, heard
        self._ids: list[int] = []
        self._said = 0
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self._tokenizer.end_ids]
        text = self._tokenizer.answer_text(self._ids)
        if not text.endswith("\ufffd"):  # half of a character
            self._heard(text[self._said :])
            self._said = len(text)

    def end(self) -> None:
        text = self._tokenizer.answer_text(self._ids)
        if text[self._said :]:
            self._heard(text[self._said :])
