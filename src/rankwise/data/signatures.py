"""What is compared of a text: a digest of what it says, and a MinHash signature of its shingles.

Digests are equal where texts differ only in case, white space and the forms of a character that Unicode calls
compatible. The share of equal components of two signatures estimates the share of shingles that two texts have in
common.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from unicodedata import normalize

from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  a compiled module without type stubs

SEED = 1
COMPONENTS = 128
WORDS = 3
CHARACTERS = 4
DIGEST = 16
"""Bytes."""

# Tibetan, Thai, Lao, Burmese, Khmer, Chinese and Japanese: their words are not parted by spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)


def normalised(text: str) -> str:
    folded = normalize("NFKC", normalize("NFKC", text).casefold()) if not text.isascii() else text.lower()
    return " ".join(folded.split()).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character


def digest_of(normal: str) -> bytes:
    return blake2b(normal.encode(), digest_size=DIGEST).digest()


def signature_of(normal: str) -> list[int]:
    sketch = RMinHash(COMPONENTS, SEED)
    sketch.update(_shingles(normal))
    return sketch.digest()


def _shingles(normal: str) -> list[str]:
    """Of mixed text both: the words in threes, and the characters of scripts without spaces in fours."""
    if normal.isascii():
        return _in_words(normal.split())
    unspaced = "".join(_UNSPACED.findall(normal))
    return _in_words(_UNSPACED.sub(" ", normal).split()) + [
        unspaced[start : start + CHARACTERS] for start in range(max(len(unspaced) - CHARACTERS + 1, bool(unspaced)))
    ]


def _in_words(words: list[str]) -> list[str]:
    if len(words) <= WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(shingle) for shingle in zip(*(words[start:] for start in range(WORDS)), strict=False)]
