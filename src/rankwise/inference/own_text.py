"""Text that a model writes by itself: a sample of what it knows, which needs no data.

Each batch of blocks begins with the same short openings, of several kinds of text and languages, and goes on with
tokens that are drawn as the model predicts them (temperature 1). Ends of documents are written like any other token.
What a base writes is drawn once and lies in the cache, named after its weights; batches are added as they are needed.

For replay, a base's own answers to general instructions, as rows to train on.

    row = the ids of a prompt, as the run's chat template writes it, and those that the base drew after it

An answer is drawn at temperature 1, so what its row teaches is what the base does: at the base, the expected gradient
of such a row is zero. The loss falls on the drawn tokens alone, and on the end token only where the base wrote one. Of
each instruction there are several answers, each drawn once for a base and a template; they lie in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.config.forgetting import ANSWER_TOKENS
from rankwise.config.validation import GenerationConfig
from rankwise.errors import DataError, RankwiseError
from rankwise.inference.batch import GenerationBatch, GenerationRow
from rankwise.inference.generate import answers_in_turn, asking_ids, drawing
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.rows.instructions import instructions
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_atomic
from rankwise.system.memory import is_limited

ANSWERS, BLOCKS = ("answers", 2), ("anchors", 1)
"""Folders of the cache, and the versions of what lies there."""


def entry(folder: str, version: int, model: LoadedModel, *parts: object) -> Path:
    """The file of what this model writes, as it is loaded; `parts` are what else decides it."""
    facts = model.facts
    whole = (version, facts.fingerprint, facts.dtype, facts.quantization, model.tokenizer.identity, *parts)
    return cache_folder() / folder / f"{sha256(repr(whole).encode()).hexdigest()}.safetensors"


def completed(
    file: Path, count: int, shape: tuple[int, int], vocabulary: int, write: Callable[[int], Tensor], *, what: str,
    callback: Callback,
) -> list[Tensor]:  # fmt: skip
    """So many tensors of ids of this shape, in which -1 is nothing: those in the file, and those that `write` makes of
    their numbers. That they could not be stored is only reported, since it merely costs the time to write them
    again."""
    tensors = _recalled(file, shape, vocabulary)
    missing = range(len(tensors), count)
    if missing:
        callback(StatusMessage(f"the base writes {len(missing) * shape[0]} {what}, once"))
        tensors += map(write, missing)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, save({str(number): one for number, one in enumerate(tensors)}))
            with suppress(OSError):
                forget_old(file.parent)
        except (RankwiseError, OSError) as error:
            callback(StatusMessage(f"the {what} could not be cached: {error}"))
    return tensors[:count]


def _recalled(file: Path, shape: tuple[int, int], vocabulary: int) -> list[Tensor]:
    """None where the file is missing or damaged."""
    try:
        stored = load_file(file)
        os.utime(file)  # mark as used
    except (OSError, SafetensorError, ValueError):
        return []
    tensors = [stored[str(number)] for number in range(len(stored)) if str(number) in stored]
    fits = all(one.shape == shape and one.dtype == torch.int64 and -1 <= one.min() <= one.max() < vocabulary
               for one in tensors)  # fmt: skip
    return tensors if fits and len(tensors) == len(stored) else []


def own_answers(model: LoadedModel, draws: int, limit: int, callback: Callback) -> list[Tokens]:
    """So many answers of the model as it is now, which must be the base, to each instruction that fills at most half of
    a row of `limit` tokens. DataError where none does."""
    limit = min(limit, model.context_length or limit)
    prompts = [ids for ids in _prompts(model) if 2 * len(ids) <= limit]
    if not prompts:
        raise DataError(
            f"no general instruction is shorter than half of a row of {limit} tokens (data.max_length), so the base "
            "cannot answer any for replay. Raise --max-length, or name rows of your own (--replay-data)."
        )
    new = min(ANSWER_TOKENS, limit - max(map(len, prompts)))
    file = entry(*ANSWERS, model, model.template.identity, model.template.end_ids, prompts, new)

    def draw(number: int) -> Tensor:
        return _draw(model, prompts, new, number, draws, callback)

    what, size = "answers to general instructions for replay", (len(prompts), new)
    drawn = completed(file, draws, size, model.vocabulary, draw, what=what, callback=callback)
    pairs = [(ids, own[own >= 0].tolist()) for answers in drawn for ids, own in zip(prompts, answers, strict=True)]
    return [Tokens((*ids, *own), (False,) * len(ids) + (True,) * len(own)) for ids, own in pairs]


def _prompts(model: LoadedModel) -> list[tuple[int, ...]]:
    return [tuple(asking_ids(model, [Message("user", text)])) for text in instructions()]


def _draw(
    model: LoadedModel, prompts: Sequence[Sequence[int]], new: int, draw: int, draws: int, callback: Callback
) -> Tensor:
    """One answer to each prompt."""
    settings = GenerationConfig(max_new_tokens=new, temperature=1.0, seed=draw)

    def report(done: int) -> None:
        callback(ProgressUpdate("Answering for replay", draw * len(prompts) + done, draws * len(prompts), "answers"))

    answers = answers_in_turn(model, prompts, settings, on_progress=report, lay_out=not is_limited())
    return torch.tensor([[*one.ids, *[-1] * (new - len(one.ids))] for one in answers])


OPENINGS = (
    "The first", "In the", "Once upon", "How to", "According to", "She said", "It was", "There are", "On Monday",
    "What is", "If you", "One of", "Chapter one", "Dear Sir", "Question: What", "Abstract: We", "A new", "During the",
    "When he", "The history", "To make", "Many people", "My name", "def main", "#include <", "import java",
    "<div class", "SELECT *", "Der erste", "La première", "El primer", "Il primo",
)  # fmt: skip
"""How the texts of a batch begin, one opening for each text."""
OPENED = 2
"""Tokens of an opening."""


def own_blocks(model: LoadedModel, blocks: int, length: int, callback: Callback) -> Tensor:
    """Ids (at least `blocks`, length + 1) that the model writes as it is now, which must be the base."""
    batches = -(-blocks // len(OPENINGS))

    def write(number: int) -> Tensor:
        callback(ProgressUpdate("Writing the anchor's text", number, batches, "batches"))
        batch = _batch(model, number, length)
        if number == batches - 1:
            callback(ProgressUpdate("Writing the anchor's text", batches, batches, "batches"))
        return batch

    file, size = entry(*BLOCKS, model, length, OPENINGS), (len(OPENINGS), length + 1)
    what = "blocks of text for the anchor"
    return torch.cat(completed(file, batches, size, model.vocabulary, write, what=what, callback=callback))


def _batch(model: LoadedModel, number: int, length: int) -> Tensor:
    rows = [GenerationRow(ids[: length + 1]) for ids in _openings(model)]
    missing = length + 1 - len(rows[0].prompt)
    with drawing(GenerationConfig(temperature=1.0, seed=number)) as draw, prepacked_weights(model.module):
        batch = GenerationBatch(model.module, draw)
        for at in range(missing):
            batch.step() if at else batch.begin(rows)
            for row in rows:
                row.check()
    return torch.tensor([[*row.prompt, *row.ids] for row in rows])


def _openings(model: LoadedModel) -> list[list[int]]:
    """All with as many tokens."""
    tokenizer = model.tokenizer
    start = list(tokenizer.encode(tokenizer.start)) if tokenizer.start else []
    every = [tokenizer.encode(opening) for opening in OPENINGS]
    shortest = min(OPENED, *map(len, every))
    return [[*start, *ids[:shortest]] for ids in every]
