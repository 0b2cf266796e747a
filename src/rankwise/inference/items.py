"""The items that a Python program or `predict --text` gives a run, as rows without an answer: texts, pairs of texts,
conversations, or images.

texts_given(objective, ["a film", ("a film", "a plot")])    -> two Examples, the second one with a second text
images_given(objective, ["cat.jpg", picture, pixels])       -> three Examples, each with the bytes of an image file

DataError lists every item that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError, joined_problems
from rankwise.objectives.objective import Objective
from rankwise.rows.asking import PLACEHOLDER
from rankwise.rows.files.in_memory import image_bytes
from rankwise.rows.forms.formats import find_format, parse_row
from rankwise.rows.text.example import Example, ImageContent, Message

PROMPT = "a text, or a list of messages with role and content whose last one is the user's,"
ROW = "a mapping of the names of columns to values"
IMAGE = "the path or the bytes of an image file, a picture of Pillow, or a uint8 array (H, W) or (H, W, 3)"


def texts_given(objective: Objective, texts: object) -> list[Example]:
    if isinstance(texts, str):
        raise DataError(f"the texts to classify are one text, {shown(texts)}. Give a list, even of one text.")
    if hasattr(texts, "columns"):
        raise DataError(
            "the texts to classify are a table. Give one column of it, or list(zip(first, second)) of two columns."
        )
    if not isinstance(texts, Iterable):
        raise DataError(f"the texts to classify are of type {type(texts).__name__}. Give a list of texts.")
    return _rows(texts, "of the texts to classify", "a text", objective.predicting.inputs.example_of)


def untagged_given(objective: Objective, texts: object) -> list[Example]:
    """The texts that a token classifier is given, each one text or a list of its words."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError(f"the texts to tag are {shown(texts)}. Give a list of texts, or of lists of words.")
    return _rows(texts, "of the texts to tag", "a text", objective.predicting.inputs.example_of)


def images_given(objective: Objective | None, images: object) -> list[Example]:
    if isinstance(images, str | bytes | Path) or hasattr(images, "columns") or not isinstance(images, Iterable):
        raise DataError(
            f"the images to classify are of type {type(images).__name__}. Give a list, even of one image; each is "
            f"{IMAGE}."
        )
    return _rows(images, "of the images to classify", IMAGE, _image)


def prompts_given(objective: Objective, prompts: object) -> list[Example]:
    """The prompts of a language model, each one text, or the messages of a conversation."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise DataError(f"the prompts are {shown(prompts)}. Give a list, even of one prompt.")
    return _rows(prompts, "of the prompts", PROMPT, _prompt)


def rows_given(objective: Objective, rows: object) -> list[Example]:
    """Rows as a file has them."""
    return _rows(rows if isinstance(rows, Iterable) else [rows], "of the rows to predict", ROW, _parsed)


READERS: Mapping[str, Callable[[Any, object], list[Example]]] = {
    "sequence-classification": texts_given, "token-classification": untagged_given,
    "image-classification": images_given, "classes": rows_given, "pairs": prompts_given, "answers": prompts_given,
}  # fmt: skip
"""The items of each objective, or of its family."""


def _rows(items: Iterable[Any], of: str, expected: str, row_of: Callable[[Any, str], Example | None]) -> list[Example]:
    """`row_of` gives None for an item that is nothing of what is expected, or says what else is wrong with it."""
    rows, problems = list[Example](), list[str]()
    for at, item in enumerate(items):
        where = f"item {at} {of}"
        try:
            if (row := row_of(item, where)) is None:
                problems.append(f"{where} is {_described(item)}; {expected} is expected.")
            else:
                rows.append(row)
        except DataError as error:
            problems.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    if problems:
        raise DataError(joined_problems(problems))
    return rows


def _prompt(item: Any, where: str) -> Example | None:
    if isinstance(item, str):
        return Example((Message("user", item),), where) if item.strip() else None
    conversation = isinstance(item, list | tuple) and item and all(isinstance(one, Mapping) for one in item)
    if not conversation or item[-1].get("role") != "user":
        return None
    turns = [*item, {"role": "assistant", "content": PLACEHOLDER}]
    return parse_row({"messages": turns}, "messages", where)[0].question


def _image(item: Any, where: str) -> Example | None:
    content = image_bytes(Path(item) if isinstance(item, str) else item)
    return None if content is None else Example((), where, image=ImageContent(content))


def _parsed(item: Any, where: str) -> Example | None:
    return parse_row(item, find_format(item, where), where)[0].question if isinstance(item, dict) else None


def _described(item: Any) -> str:
    shape = getattr(item, "shape", None)
    return shown(item) if shape is None else f"an array of the shape {tuple(shape)}"
