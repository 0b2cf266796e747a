"""Answers from a model: of one conversation as a stream, or of many that are computed together.

The prompt is what training rendered before an answer, and decoding ends at the tokens that training taught as ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from rankwise.base.loaded import LoadedModel
from rankwise.config.generation import GenerationConfig
from rankwise.errors import ModelError
from rankwise.inference.decoding import Answer, Settled, TextCallback, decode
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.objectives.sequence_to_sequence import text_objective
from rankwise.rows.text.example import Message

TOGETHER = 64
"""Answers that are written at once, at most."""
TOKENS = 2**14
"""Tokens of prompts and answers that are kept at once, at most, but for a single row of more."""
PADDING = 16
"""Padding that is read in the time in which another batch would write one more token: reading the weights for a token
takes as long as computing so many."""


def answer(
    model: LoadedModel, messages: Sequence[Message], spec: GenerationConfig, on_text: TextCallback | None = None
) -> Answer:
    """Generate one answer; `on_text` receives its text piece by piece."""
    prompt = asking_ids(model, messages)
    _check_room(model, len(prompt), spec.max_new_tokens)
    return decode(model, [prompt], spec, on_text)[0]


def asking_ids(model: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """A conversation up to where the model is to speak."""
    return text_objective(model).prompt(model, messages)[1]


def answers_in_turn(
    model: LoadedModel, prompts: Sequence[Sequence[int]], spec: GenerationConfig, together: int = TOGETHER,
    on_progress: Callable[[int], None] = lambda done: None, *, refuse_damage: bool = True, lay_out: bool = True,
    settled: Settled | None = None,
) -> list[Answer]:  # fmt: skip
    """Answer any number of prompts, given as token ids, at most `together` at once, in the prompts' order.

    `on_progress` gets how many are done. A model with damaged weights is an error with `refuse_damage`. `lay_out`
    packs the weights first, which is faster and takes their memory once more.
    """
    if not prompts:
        return []
    _check_room(model, max(map(len, prompts)), spec.max_new_tokens)
    found: dict[int, Answer] = {}
    with prepacked_weights(model.module) if lay_out else nullcontext():
        for batch in batches(prompts, spec.max_new_tokens, together):
            on_progress(len(found))
            ended = None if settled is None else partial(_settled_in, settled, batch)
            made = decode(model, [prompts[at] for at in batch], spec, refuse_damage=refuse_damage, settled=ended)
            found |= zip(batch, made, strict=True)
    on_progress(len(found))
    return [found[at] for at in range(len(prompts))]


def _settled_in(settled: Settled, batch: Sequence[int], row: int, text: str) -> bool:
    return settled(batch[row], text)


def batches(prompts: Sequence[Sequence[int]], new: int, together: int) -> list[list[int]]:
    """Places of prompts that are answered together, those of like length beside each other and the longest first."""
    made: list[list[int]] = []
    padding = 0
    for at in sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), tuple(prompts[at]))):
        longest = len(prompts[made[-1][0]]) if made else 0
        padding += longest - len(prompts[at])
        full = not made or len(made[-1]) == together or (len(made[-1]) + 1) * (longest + new) > TOKENS
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
