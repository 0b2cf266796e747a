"""Choose the files of a folder: those for training, or those of the split that the user names."""

from __future__ import annotations

import re
from pathlib import Path

SPLITS = {
    "train": "train", "training": "train", "valid": "validation", "validation": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "evaluation", "evaluation": "evaluation",
}  # fmt: skip
"""Words in file names, and the split that they mean."""


def chosen_files(files: list[Path], folder: Path, wanted_split: str | None) -> list[Path]:
    """The files of the wanted split.

    Files named with exactly this word come first, then files named with another word for the same split. Without a
    wanted split, these are the training files, or if there are none, the files that name no split.
    """
    words = {path: split_word(path, folder) for path in files}
    splits = {path: _known(word) for path, word in words.items()}
    if wanted_split is None:
        return [path for path in files if splits[path] == "train"] or [path for path in files if splits[path] is None]
    if _known(wanted_split) is None:
        return [path for path in files if wanted_split.lower() in (words[path], *_words(path, folder))]
    exact = [path for path in files if words[path] == wanted_split.lower()]
    return exact or [path for path in files if splits[path] == _known(wanted_split)]


def visible(path: Path, folder: Path) -> bool:
    """Whether a file is neither hidden nor a cache file of `datasets`."""
    cached = path.suffix.lower() == ".arrow" and path.name.startswith(("cache-", "tmp"))
    return (
        not cached
        and path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def split_word(path: Path, folder: Path) -> str:
    """The word that names the split of a file.

    It is `train` for my_train.jsonl, data/train-00000-of-00002.parquet and default/train1/0000.parquet. A file's name
    takes precedence over its folder's, and the last word of a name over the first: training_rules_test.jsonl belongs to
    the test split. If no word is known, the result is the first word of the outermost name.
    """
    first = re.split(r"[-_.]", path.relative_to(folder).with_suffix("").parts[0])[0].lower()
    return next((word for word in _words(path, folder) if _known(word)), first)


def _words(path: Path, folder: Path) -> list[str]:
    names = reversed(path.relative_to(folder).with_suffix("").parts)
    return [word for name in names for word in reversed(re.split(r"[\W\d_]+", name.lower())) if word]


def _known(word: str) -> str | None:
    """The split that a word means: `test` for test, testing, testset and testdata."""
    return SPLITS.get(re.sub(r"(?<=.)(set|data)$", "", word.lower()))
