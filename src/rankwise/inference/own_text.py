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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.config.forgetting import ANSWER_TOKENS
from rankwise.config.generation import GenerationConfig
from rankwise.errors import DataError, RankwiseError
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.rows.instructions import instructions
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import write_atomic
from rankwise.system.memory import is_limited


def entry(folder: str, version: int, model: LoadedModel, *parts: object) -> Path:
    """The file of what this model writes, as it is loaded; `parts` are what else decides it."""
    facts = model.facts
    whole = (version, facts.fingerprint, facts.dtype, facts.quantization, model.tokenizer.identity, *parts)
    return cache_folder() / folder / f"{sha256(repr(whole).encode()).hexdigest()}.safetensors"


def recalled(file: Path) -> dict[str, Tensor]:
    """Nothing where the file is missing or damaged."""
    try:
        tensors = load_file(file)
        os.utime(file)  # mark as used
        return tensors
    except (OSError, SafetensorError, ValueError):
        return {}


def store(file: Path, tensors: Mapping[str, Tensor], what: str, callback: Callback) -> None:
    """A failure is only reported, since it merely costs the time to write the text again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save(dict(tensors)))
        with suppress(OSError):
            forget_old(file.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"{what} could not be cached: {error}"))


VERSION = 1


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
    file = entry("answers", VERSION, model, model.template.identity, model.template.end_ids, prompts, new)
    tensors = recalled(file)
    drawn = _read(tensors, prompts, model.vocabulary)
    missing = range(len(drawn), draws)
    if missing:
        answers = len(missing) * len(prompts)
        callback(StatusMessage(f"the base writes {answers} answers to general instructions for replay, once"))
        for draw in missing:
            drawn.append(_draw(model, prompts, new, draw, draws, callback))
        store(file, _tensors(drawn), "the base's answers", callback)
    return [_row(prompt, answer) for answers in drawn[:draws] for prompt, answer in zip(prompts, answers, strict=True)]


def _prompts(model: LoadedModel) -> list[tuple[int, ...]]:
    return [tuple(asking_ids(model, [Message("user", text)])) for text in instructions()]


def _draw(
    model: LoadedModel, prompts: Sequence[Sequence[int]], new: int, draw: int, draws: int, callback: Callback
) -> list[tuple[int, ...]]:
    """One answer to each prompt."""
    settings = GenerationConfig(max_new_tokens=new, temperature=1.0, seed=draw)
    whole = draws * len(prompts)

    def report(done: int) -> None:
        callback(ProgressUpdate("Answering for replay", draw * len(prompts) + done, whole, "answers"))

    roomy = not is_limited()
    answers = answers_in_turn(model, prompts, settings, on_progress=report, lay_out=roomy)
    return [answer.ids for answer in answers]


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    ids = (*prompt, *answer)
    return Tokens(ids, tuple(place >= len(prompt) for place in range(len(ids))))


def _tensors(drawn: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for number, answers in enumerate(drawn):
        made[f"{number}.ids"] = torch.tensor([token for answer in answers for token in answer], dtype=torch.int64)
        made[f"{number}.lengths"] = torch.tensor([len(answer) for answer in answers])
    return made


def _read(tensors: dict[str, Tensor], prompts: Sequence[object], vocabulary: int) -> list[list[tuple[int, ...]]]:
    """The answers of each draw; none where what was stored is damaged."""
    drawn: list[list[tuple[int, ...]]] = []
    while (ids := tensors.get(f"{len(drawn)}.ids")) is not None:
        lengths = tensors.get(f"{len(drawn)}.lengths")
        if lengths is None or not _fits(ids, lengths, len(prompts), vocabulary):
            return []
        drawn.append([tuple(part.tolist()) for part in ids.split(lengths.tolist())])
    return drawn if 2 * len(drawn) == len(tensors) else []


def _fits(ids: Tensor, lengths: Tensor, answers: int, vocabulary: int) -> bool:
    whole = ids.dtype == lengths.dtype == torch.int64 and ids.dim() == 1 and lengths.shape == (answers,)
    if not whole or int(lengths.min()) < 0 or int(lengths.sum()) != len(ids):
        return False
    return not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < vocabulary


OPENINGS = (
    "The first", "In the", "Once upon", "How to", "According to", "She said", "It was", "There are", "On Monday",
    "What is", "If you", "One of", "Chapter one", "Dear Sir", "Question: What", "Abstract: We", "A new", "During the",
    "When he", "The history", "To make", "Many people", "My name", "def main", "#include <", "import java",
    "<div class", "SELECT *", "Der erste", "La première", "El primer", "Il primo",
)  # fmt: skip
"""Of one batch."""
OPENED = 2
"""Tokens of an opening."""


def own_blocks(model: LoadedModel, blocks: int, length: int, callback: Callback) -> Tensor:
    """Ids (at least `blocks`, length + 1) that the model writes as it is now, which must be the base."""
    file = _entry(model, length)
    written = _cached(file, model.vocabulary, length)
    batches = -(-blocks // len(OPENINGS))
    missing = range(len(written), batches)
    if missing:
        callback(StatusMessage(f"the base writes {len(missing) * len(OPENINGS)} blocks of text for the anchor, once"))
        for number in missing:
            callback(ProgressUpdate("Writing the anchor's text", number, batches, "batches"))
            written.append(_batch(model, number, length))
        callback(ProgressUpdate("Writing the anchor's text", batches, batches, "batches"))
        store(file, {str(number): batch for number, batch in enumerate(written)}, "the anchor's text", callback)
    return torch.cat(written[:batches])


def _batch(model: LoadedModel, number: int, length: int) -> Tensor:
    from transformers import GenerationConfig

    from rankwise.inference.kv_cache import preallocated_cache

    module: Any = model.module
    prompts = torch.tensor(_openings(model), device=model.precision.device)[:, : length + 1]
    if prompts.shape[1] > length:
        return prompts.cpu().contiguous()
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length + 1 - prompts.shape[1],
        eos_token_id=None, pad_token_id=model.tokenizer.pad_id,
    )  # fmt: skip
    with torch.inference_mode(), torch.random.fork_rng(), prepacked_weights(module):
        torch.manual_seed(number)
        ids = module.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=settings,
            **preallocated_cache(module),
        )  # fmt: skip
    return ids.cpu().clone()


def _openings(model: LoadedModel) -> list[list[int]]:
    """All with as many tokens."""
    tokenizer = model.tokenizer
    start = list(tokenizer.encode(tokenizer.start)) if tokenizer.start else []
    every = [tokenizer.encode(opening) for opening in OPENINGS]
    shortest = min(OPENED, *map(len, every))
    return [[*start, *ids[:shortest]] for ids in every]


def _entry(model: LoadedModel, length: int) -> Path:
    return entry("anchors", VERSION, model, length, OPENINGS)


def _cached(file: Path, vocabulary: int, length: int) -> list[Tensor]:
    """The batches that were written before; none where the file is missing or damaged."""
    tensors = recalled(file)
    batches = [tensors[str(number)] for number in range(len(tensors)) if str(number) in tensors]
    shape = (len(OPENINGS), length + 1)
    fits = all(one.shape == shape and one.dtype == torch.int64 and 0 <= one.min() <= one.max() < vocabulary
               for one in batches)  # fmt: skip
    return batches if fits and len(batches) == len(tensors) else []
