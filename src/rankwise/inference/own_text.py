"""Text that a model writes by itself: a sample of what it knows, which needs no data.

Each batch of blocks begins with the same short openings, of several kinds of text and languages, and goes on with
tokens that are drawn as the model predicts them (temperature 1). Ends of documents are written like any other token.
What a base writes is drawn once and lies in the cache, named after its weights; batches are added as they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.inference.written import entry, recalled, store
from rankwise.kernels.prepacked import prepacked_weights
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage

OPENINGS = (
    "The first", "In the", "Once upon", "How to", "According to", "She said", "It was", "There are", "On Monday",
    "What is", "If you", "One of", "Chapter one", "Dear Sir", "Question: What", "Abstract: We", "A new", "During the",
    "When he", "The history", "To make", "Many people", "My name", "def main", "#include <", "import java",
    "<div class", "SELECT *", "Der erste", "La première", "El primer", "Il primo",
)  # fmt: skip
"""Of one batch."""
OPENED = 2
"""Tokens of an opening."""
VERSION = 1


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
