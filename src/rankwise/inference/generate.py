"""Answers from a model: of one conversation as a stream, or of many that are computed together.

The prompt is what training rendered before an answer, and decoding ends at the tokens that training taught as ends.
Rows that have ended leave their batch after every STAGE tokens: to copy what is kept of the others costs more than to
compute an ended row for some tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count

import torch
from torch import nn

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import Constrained, Constraint
from rankwise.config.validation import GenerationConfig
from rankwise.constraints.constraint import checked_grammar, problem_with
from rankwise.constraints.matcher import Matcher, Vocabulary
from rankwise.errors import ConfigError, ModelError
from rankwise.forward.decode_step import MOST_ROWS
from rankwise.inference.batch import (
    Draw,
    EncodedBatch,
    GenerationBatch,
    GenerationRow,
    by_samplers,
    has_decode_step,
)  # fmt: skip
from rankwise.inference.decoding import STAGE, Answer, Draft, TextCallback
from rankwise.inference.sampling import Chosen, drawn_together
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.objectives.registry import text_objective
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

BATCH_SIZE = 64
"""Answers that are written at once, at most."""
TOKENS = 2**14
"""Tokens of prompts and answers that are kept at once, at most, but for a single row of more."""
PADDING = 16
"""Padding that is read in the time in which another batch would write one more token: reading the weights for a token
takes as long as computing so many."""
BATCHES: Mapping[str, type[GenerationBatch]] = {
    "causal-lm": GenerationBatch,
    "sequence-to-sequence": EncodedBatch,
}
IsSettled = Callable[[int, str], bool]
"""Whether the answer to a prompt, by its number, needs no more tokens than those of this text."""


@torch.inference_mode()
def decode(
    model: LoadedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, on_text: TextCallback | None = None,
    *, refuse_damage: bool = True, is_settled: IsSettled | None = None,
) -> list[Answer]:  # fmt: skip
    """`prompts` are ids, computed together. `on_text` needs a single prompt. An answer stops early once it is
    `is_settled`, and where the model gives no numbers, which is an error with `refuse_damage`."""
    assert on_text is None or len(prompts) == 1
    began, found = time.perf_counter(), dict[int, Answer]()
    drafts = [
        Draft(GenerationRow(list(ids)), model.template, config.max_new_tokens, loops=config.repetition_check)
        for ids in prompts
    ]
    if isinstance(config.constraint, Constraint):
        for draft in drafts:
            draft.row.hold_to(matcher_of(model, config.constraint), config.max_new_tokens)
    with _evaluating(model.module), drawing(config) as draw:
        batch = text_objective(model).among(BATCHES)(model.module, draw)
        batch.begin([draft.row for draft in drafts])
        for size in count(1):
            is_border = size % STAGE == 0 and batch.lets_go
            for at, draft in enumerate(drafts):
                if at not in found and (
                    _ends(draft, on_text, refuse_damage)
                    or (is_border and is_settled is not None and is_settled(at, draft.answer().text))
                ):
                    found[at] = _by_schema(draft.answer(time.perf_counter() - began), config.constraint)
            if len(found) == len(drafts):
                return [found[at] for at in range(len(drafts))]
            if is_border:
                batch.leave([drafts[at].row for at in found])
            batch.step()
    raise AssertionError("every answer ends")


def _by_schema(answer: Answer, constraint: Constrained) -> Answer:
    """An answer that has ended and breaks its schema is not called complete: the engine knows less than a schema."""
    breaks = isinstance(constraint, Constraint) and answer.stopped == "end" and problem_with(constraint, answer.text)
    return replace(answer, stopped="length") if breaks else answer


def _ends(draft: Draft, on_text: TextCallback | None, refuse_damage: bool) -> bool:
    if refuse_damage:
        draft.row.check()
    if draft.row.problem is not None:
        return True
    if on_text is None:
        draft.look()
    elif text := draft.take([Chosen(token) for token in draft.row.ids[draft.seen :]]).text:
        on_text(text)
    return draft.stopped is not None


@contextmanager
def drawing(config: GenerationConfig) -> Iterator[Draw]:
    """How tokens are chosen. The caller's own random numbers stay as they were."""
    with torch.random.fork_rng(enabled=config.temperature > 0):
        if config.temperature > 0:
            torch.manual_seed(config.seed)
        yield partial(drawn_together, config) if config.temperature > 0 else by_samplers


def matcher_of(model: LoadedModel, constraint: Constraint) -> Matcher:
    """What one answer of the model may go on with. ConfigError where no answer can keep to the constraint."""
    vocabulary = _vocabulary(model.tokenizer, model.vocabulary, model.template.end_ids)
    if (special := model.tokenizer.special.pattern.search(constraint.text)) is not None:
        raise ConfigError(
            [f"the {constraint.kind} has the text {special[0]!r}, which is a control token of this model."]
        )
    return Matcher(vocabulary, checked_grammar(constraint, vocabulary))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: HubTokenizer, size: int, ends: tuple[int, ...]) -> Vocabulary:
    """Made once for all templates of a tokenizer that end answers alike: this looks at each token."""
    return Vocabulary(tokenizer.hub.backend_tokenizer.to_str(), size, ends)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def answer(
    model: LoadedModel, messages: Sequence[Message], config: GenerationConfig, on_text: TextCallback | None = None
) -> Answer:
    """Generate one answer; `on_text` receives its text piece by piece."""
    prompt = asking_ids(model, messages)
    _check_room(model, len(prompt), config.max_new_tokens)
    return decode(model, [prompt], config, on_text)[0]


def asking_ids(model: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """A conversation up to where the model is to speak."""
    return text_objective(model).text_writer.prompt(model, messages)[1]


def answers_in_turn(
    model: LoadedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int], None] = lambda done: None, *, refuse_damage: bool = True, lay_out: bool = True,
    is_settled: IsSettled | None = None,
) -> list[Answer]:  # fmt: skip
    """Answer any number of prompts, given as token ids, at most `batch_size` at once, in the prompts' order.

    `on_progress` gets how many are done. A model with damaged weights is an error with `refuse_damage`. `lay_out`
    packs the weights first where many answers are faster so, which takes their memory once more.
    """
    if not prompts:
        return []
    _check_room(model, max(map(len, prompts)), config.max_new_tokens)
    found: dict[int, Answer] = {}
    lays_out = lay_out and (len(prompts) > MOST_ROWS or not has_decode_step(model.module))
    with prepacked_weights(model.module) if lays_out else nullcontext():
        for batch in batches(prompts, config.max_new_tokens, batch_size):
            on_progress(len(found))
            ended = None if is_settled is None else partial(_settled_in, is_settled, batch)
            made = decode(model, [prompts[at] for at in batch], config, refuse_damage=refuse_damage, is_settled=ended)
            found |= zip(batch, made, strict=True)
    on_progress(len(found))
    return [found[at] for at in range(len(prompts))]


def _settled_in(is_settled: IsSettled, batch: Sequence[int], row: int, text: str) -> bool:
    return is_settled(batch[row], text)


def batches(prompts: Sequence[Sequence[int]], new: int, batch_size: int) -> list[list[int]]:
    """Places of prompts that are answered together, those of like length beside each other and the longest first."""
    made: list[list[int]] = []
    padding = 0
    for at in sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), tuple(prompts[at]))):
        longest = len(prompts[made[-1][0]]) if made else 0
        padding += longest - len(prompts[at])
        full = not made or len(made[-1]) == batch_size or (len(made[-1]) + 1) * (longest + new) > TOKENS
        if full or padding > PADDING * new:
            made.append([])
            padding = 0
        made[-1].append(at)
    return made


def _check_room(model: LoadedModel, prompt: int, new: int) -> None:
    if not model.fits(prompt, new):
        raise ModelError(
            f"the prompt has {prompt:,} tokens; with {new:,} new tokens it does not fit into the model's context of "
            f"{model.context_length or 0:,}. Shorten the prompt or lower --max-new-tokens."
        )
