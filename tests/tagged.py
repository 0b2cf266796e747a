"""Texts whose words have tags, with a tiny encoder whose tokenizer splits words into pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

PEOPLE, PLACES = ("Anna", "Boris Novak", "Chen"), ("Oslo", "New Delhi", "Quito")
PIECES = ("an", "##na", "bor", "##is", "nov", "##ak", "chen", "os", "##lo", "new", "delhi", "qui", "##to", "works",
          "in", "and", "lives", "near", ".", "for", "a", "while", "##s", "work")  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tagger_folder(folder: Path, seed: int = 0) -> Path:
    """A random BERT of two blocks and width 32 that was pretrained on masked tokens."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *PIECES))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def spanned(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Sentences of different lengths with a person and a place each, and every fourth with neither."""
    rows = []
    for number in range(start, start + count):
        person, place = PEOPLE[number % 3], PLACES[number // 3 % 3]
        if number % 4 == 3:
            rows.append({"text": "works and lives" + " for a while" * (number % 3), "spans": []})
            continue
        text = f"{person} works in {place}" + " for a while" * (number % 3) + "."
        at = text.index(place)
        spans = [(0, len(person), "PER"), (at, at + len(place), "LOC")]
        rows.append({"text": text, "spans": [{"start": one, "end": end, "label": name} for one, end, name in spans]})
    return rows


def tokenised(count: int, start: int = 0) -> list[dict[str, Any]]:
    """The same sentences as words with BIO tags."""
    rows = []
    for row in spanned(count, start):
        text = row["text"].replace(".", " .")
        tokens, tags, at = text.split(), [], 0
        for token in tokens:
            begin = row["text"].index(token, at)
            inside = next((one for one in row["spans"] if one["start"] <= begin < one["end"]), None)
            tags.append("O" if inside is None else f"{'B' if inside['start'] == begin else 'I'}-{inside['label']}")
            at = begin + len(token)
        rows.append({"tokens": tokens, "tags": tags})
    return rows
