"""The tokens that a model writes after prompts, greedily or drawn, until each answer has ended.

transformers' `generate` decodes. It goes on with all rows until the last has ended, so of many rows it is asked for a
few tokens at a time (STAGE), and goes on with those that have not ended (and what is kept of them). Where an encoder
reads the prompts, a decoder writes all answers in one go.

Whether an answer has run into a loop: its tail is one group of tokens, written again and again.

A tail has the period p where each of its tokens equals the one p before it. It is a loop where p is at most PERIOD, the
group stands there TIMES times at least, and the tail has TOKENS tokens at least:

    tail >= max(TIMES * p, TOKENS)

An answer is looked at after every STAGE tokens, so that it is cut at the same place alone and in company. The numbers
are such that none of 10,900 answers of Dolly, LIMA, ShareGPT and others, two million tokens, is a loop at any place;
eight lines of one text are none either, up to 15 tokens a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.config.generation import GenerationConfig
from rankwise.errors import EvaluationError
from rankwise.objectives.causal_lm import CAUSAL_LM
from rankwise.objectives.sequence_to_sequence import SEQUENCE_TO_SEQUENCE, text_objective
from rankwise.rows.text.chat_template import ChatTemplate

PERIOD, TIMES, TOKENS = 64, 8, 128
STAGE = 16
assert TOKENS % STAGE == 0, "the first look may already find one"


def repeats(ids: Sequence[int]) -> bool:
    """Whether the tail of `ids` is a loop."""
    if len(ids) < TOKENS:
        return False
    periods = [period for period in range(1, PERIOD + 1) if ids[-1 - period] == ids[-1]]
    tail = np.asarray(ids[-TIMES * PERIOD :])
    return any(_periodic(tail, period) for period in periods)


def _periodic(tail: np.ndarray, period: int) -> bool:
    size = max(TIMES * period, TOKENS)
    return len(tail) >= size and bool((tail[-size:-period] == tail[-size + period :]).all())


def loop_at(ids: Sequence[int]) -> int | None:
    """How many tokens an answer has when it is found to loop; None where it does not."""
    return next((size for size in range(TOKENS, len(ids) + 1, STAGE) if repeats(ids[:size])), None)


TextCallback = Callable[[str], None]
Stopped = Literal["end", "length", "repetition"]
Settled = Callable[[int, str], bool]
"""Whether the answer to a prompt, by its number, needs no more tokens than those of this text."""


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    stopped: Stopped
    seconds: float
    """From the beginning of what was asked together with it."""
    ids: tuple[int, ...] = ()
    """Its tokens, with the end token where it wrote one."""


@torch.inference_mode()
def decode(
    model: LoadedModel, prompts: Sequence[Sequence[int]], spec: GenerationConfig, on_text: TextCallback | None = None,
    *, refuse_damage: bool = True, settled: Settled | None = None,
) -> list[Answer]:  # fmt: skip
    """`prompts` are ids, computed together. `on_text` needs a single prompt. An answer
    stops early once it is `settled`."""
    assert on_text is None or len(prompts) == 1
    began, template = time.perf_counter(), model.template
    start = STARTS[text_objective(model).name](model, prompts)
    ids, mask, size, cache = start.ids, start.mask, start.begin, start.cache
    end = start.begin + spec.max_new_tokens
    rows, found = list(range(len(prompts))), dict[int, Answer]()
    sampled = spec.temperature > 0
    # the caller's own random numbers stay as they were
    with _evaluating(model.module) as module, torch.random.fork_rng(enabled=sampled):
        if sampled:
            torch.manual_seed(spec.seed)
        while rows:
            staged = cache and (len(rows) > 1 or settled is not None)
            new = min(STAGE, end - size) if staged else end - size
            made = module.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=_settings(model, spec, new, start.first_token),
                logits_processor=[_refuse_damage] if refuse_damage else None,
                stopping_criteria=_stops(template, spec, start.begin),
                streamer=_Streamer(template, on_text) if on_text else None,
                **cache,
            )
            seconds = time.perf_counter() - began
            written = made[:, start.begin :].tolist()
            answers = [read_answer(row, template, seconds, loops=spec.repetition_check) for row in written]
            whole = made.shape[1] - size == new and made.shape[1] < end
            going = [
                at for at, answer in enumerate(answers)
                if answer.stopped == "length" and whole and not (settled and settled(rows[at], answer.text))
            ]  # fmt: skip
            found |= {rows[at]: answer for at, answer in enumerate(answers) if at not in going}
            mask = torch.cat([mask, mask.new_ones(len(rows), made.shape[1] - size)], 1)[going]
            ids, size, rows = made[going], made.shape[1], [rows[at] for at in going]
            if rows and len(going) < len(answers):
                next(iter(cache.values())).batch_select_indices(torch.tensor(going, device=ids.device))
    return [found[row] for row in range(len(prompts))]


@dataclass(frozen=True)
class _Start:
    """What `generate` is given for prompts."""

    ids: Tensor
    mask: Tensor
    begin: int
    """Where answers begin in what it returns."""
    cache: dict[str, Any] = field(default_factory=dict[str, Any])
    first_token: int | None = None
    """What a decoder begins with that reads no prompts."""


def _continued(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> _Start:
    from rankwise.inference.kv_cache import preallocated_cache

    ids, mask = _padded(prompts, model, left=True)
    return _Start(ids, mask, ids.shape[1], preallocated_cache(model.module))


def _encoded(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> _Start:
    """An encoder has positions of its own, so prompts are padded on the right; every answer begins at position 0."""
    config: Any = model.module.config
    return _Start(*_padded(prompts, model, left=False), 1, first_token=config.decoder_start_token_id)


STARTS: Mapping[str, Callable[[LoadedModel, Sequence[Sequence[int]]], _Start]] = {
    CAUSAL_LM.name: _continued, SEQUENCE_TO_SEQUENCE.name: _encoded,
}  # fmt: skip


def read_answer(ids: list[int], template: ChatTemplate, seconds: float = 0.0, *, loops: bool = False) -> Answer:
    """What an answer's ids say up to their end. Of a row that was cut there may be none. With `loops`, where it was
    found to repeat itself is an end too."""
    end = next((place for place, token in enumerate(ids) if token in template.end_ids), None)
    kept = ids if end is None else ids[:end]
    ended = end is not None
    if template.has_end_text(kept):  # in company there is padding behind it
        ended, kept = True, next(kept[:size] for size in range(1, len(kept) + 1) if template.has_end_text(kept[:size]))
    stopped: Stopped = "end" if ended else "length"
    if loops and (looping := loop_at(kept)) is not None:  # in company there is padding behind it, which may be an end
        stopped, kept = "repetition", kept[:looping]
    with_end = ids[: end + 1] if end is not None and stopped == "end" and len(kept) == end else kept
    return Answer(template.answer_text(kept), len(kept), stopped, seconds, tuple(with_end))


def _padded(prompts: Sequence[Sequence[int]], model: LoadedModel, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask."""
    width, pad, device = max(map(len, prompts)), model.tokenizer.pad_id, model.precision.device
    rows = [(list(ids), width - len(ids)) for ids in prompts]
    ids = [[pad] * short + own if left else own + [pad] * short for own, short in rows]
    mask = [[0] * short + [1] * len(own) if left else [1] * len(own) + [0] * short for own, short in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def _evaluating(module: Any) -> Iterator[Any]:
    was_training = module.training
    module.eval()
    try:
        yield module
    finally:
        module.train(was_training)


def _settings(model: LoadedModel, spec: GenerationConfig, new: int, first_token: int | None) -> Any:
    """A fresh set, so that nothing a model's own generation_config.json says can change what was asked."""
    from transformers import GenerationConfig as HubGenerationConfig

    sampled = {"do_sample": True, "temperature": spec.temperature, "top_p": spec.top_p, "top_k": 0}
    return HubGenerationConfig(
        max_new_tokens=new,
        eos_token_id=list(model.template.end_ids) or None,
        pad_token_id=model.tokenizer.pad_id,
        decoder_start_token_id=first_token,
        **(sampled if spec.temperature > 0 else {"do_sample": False}),
    )


def _refuse_damage(input_ids: Tensor, scores: Tensor) -> Tensor:
    """At each token. Of what is not a number greedy decoding would take some token in silence."""
    highest = scores.amax(-1)
    if not bool(highest.isfinite().all()):
        wrong = highest[~highest.isfinite()][0].item()
        raise EvaluationError(
            f"the highest logit of an answer is {wrong}. The model's weights are damaged, or its number format "
            "overflows; try --dtype float32 to find out which."
        )
    return scores


def _stops(template: ChatTemplate, spec: GenerationConfig, begin: int) -> list[Any]:
    """Where an end that is several tokens has been written, such as a recipe's "### End", and where an answer repeats
    itself. `begin` is where answers begin."""

    def rows_that(hold: Callable[[list[int]], bool], ids: Tensor) -> Tensor:
        return torch.tensor([hold(row) for row in ids[:, begin:].tolist()], device=ids.device)

    def has_ended(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return rows_that(template.has_end_text, input_ids)

    def loops(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        is_looked_at = (input_ids.shape[1] - begin) % STAGE == 0
        return rows_that(lambda row: is_looked_at and repeats(row), input_ids)

    return [has_ended] * bool(template.end_texts) + [loops] * spec.repetition_check


class _Streamer:
    """Receives ids from transformers' generate and passes on text that no later id can change."""

    def __init__(self, template: ChatTemplate, on_text: TextCallback) -> None:
        self._template, self._on_text = template, on_text
        self._ids: list[int] = []
        self._sent = 0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self._template.end_ids]
        text = self._template.streamed_text(self._ids)
        if not text.endswith("\ufffd"):  # half of a character
            self._on_text(text[self._sent :])
            self._sent = len(text)

    def end(self) -> None:
        text = self._template.answer_text(self._ids)
        if text[self._sent :]:
            self._on_text(text[self._sent :])
