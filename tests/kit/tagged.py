"""Texts whose words have tags, with a tiny encoder whose tokenizer splits words into pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kit.classifiers import bert_folder, vocabulary_of

PEOPLE, PLACES = ("Anna", "Boris Novak", "Chen"), ("Oslo", "New Delhi", "Quito")
PIECES = ("an", "##na", "bor", "##is", "nov", "##ak", "chen", "os", "##lo", "new", "delhi", "qui", "##to", "works",
          "in", "and", "lives", "near", ".", "for", "a", "while", "##s", "work")  # fmt: skip


def tagger_folder(folder: Path, seed: int = 0) -> Path:
    """A BERT whose tokenizer splits words into pieces."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary_of(PIECES), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return bert_folder(folder, tokenizer, seed)


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
