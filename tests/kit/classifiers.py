"""Tiny encoders on disk, and labelled rows that they can learn by heart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

GOOD, BAD = ("bright", "kind", "warm", "clear"), ("dull", "cruel", "cold", "vague")
WORDS = (*GOOD, *BAD, "film", "plot", "a", "the", "is", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def encoder_folder(folder: Path, seed: int = 0) -> Path:
    """A BERT whose tokenizer knows whole words."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary_of(WORDS), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return bert_folder(folder, tokenizer, seed)


def vocabulary_of(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate((*SPECIAL, *words))}


def bert_folder(folder: Path, tokenizer: Tokenizer, seed: int) -> Path:
    """A random BERT of two blocks and width 32 that was pretrained on masked tokens, so without a pooler."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def labelled(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Texts of different lengths with the label "good" or "bad"; one in three is bad."""
    rows = []
    for number in range(start, start + count):
        bad = number % 3 == 0
        word = (BAD if bad else GOOD)[number % 4]
        text = f"the film is {word}" + " and the plot is a plot" * (number % 4)
        rows.append({"text": text, "label": "bad" if bad else "good"})
    return rows


def scaled(count: int) -> list[dict[str, Any]]:
    """Pairs of texts with a number between 0 and 5."""
    return [
        {"text": f"the film is {GOOD[at % 4]}", "text_pair": f"a plot is {BAD[at % 4]}", "label": at * 5 / count}
        for at in range(count)
    ]


def write_rows(path: Path | str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def class_row(predicted: int, actual: int, classes: int) -> list[float]:
    """The sums of one item: [right, predicted, actual] of each class."""
    row = [0.0] * (3 * classes)
    row[3 * predicted + 1] += 1.0
    row[3 * actual + 2] += 1.0
    row[3 * actual] += float(predicted == actual)
    return row
