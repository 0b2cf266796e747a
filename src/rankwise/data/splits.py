"""Which files of a folder are read: those for training, or those of the split that was asked for."""

from __future__ import annotations

import re
from pathlib import Path

SPLITS = {
    "train": "train", "training": "train", "valid": "validation", "validation": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "evaluation", "evaluation": "evaluation",
}  # fmt: skip
"""The words that name a split, and the split."""


def chosen_files(files: list[Path], folder: Path, asked: str | None) -> list[Path]:
    """Those named by the very word; where there are none, by another word for the same split.

    Where nothing is asked, the training files; where none is named so, those that are not named as something else.
    """
    words = {path: split_word(path, folder) for path in files}
    splits = {path: _known(word) for path, word in words.items()}
    if asked is None:
        return [path for path in files if splits[path] == "train"] or [path for path in files if splits[path] is None]
    if _known(asked) is None:
        return [path for path in files if asked.lower() in (words[path], *_words(path, folder))]
    exact = [path for path in files if words[path] == asked.lower()]
    return exact or [path for path in files if splits[path] == _known(asked)]


def visible(path: Path, folder: Path) -> bool:
    """Neither hidden nor what `datasets` keeps beside rows that it has mapped."""
    made = path.suffix.lower() == ".arrow" and path.name.startswith(("cache-", "tmp"))
    return (
        not made and path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def split_word(path: Path, folder: Path) -> str:
    """`train` of my_train.jsonl, data/train-00000-of-00002.parquet and default/train1/0000.parquet.

    The file's own name says more than its folder's, and the last word of a name more than the first: the file
    training_rules_test.jsonl is for testing. Where no word is known, the first one of the outermost name.
    """
    first = re.split(r"[-_.]", path.relative_to(folder).with_suffix("").parts[0])[0].lower()
    return next((word for word in _words(path, folder) if _known(word)), first)


def _words(path: Path, folder: Path) -> list[str]:
    names = reversed(path.relative_to(folder).with_suffix("").parts)
    return [word for name in names for word in reversed(re.split(r"[\W\d_]+", name.lower())) if word]


def _known(word: str) -> str | None:
    """`test` of test, testing, testset and testdata."""
    return SPLITS.get(re.sub(r"(?<=.)(set|data)$", "", word.lower()))
