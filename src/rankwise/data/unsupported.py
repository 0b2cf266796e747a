"""Refuse data that rankwise cannot train on yet (images, preferences, arrays), and say what is possible instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.data.proposals import can_be_typed, ignoring, options_for, texts_among
from rankwise.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npz", ".npy")
IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")
IMAGE_MARKS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
CONVERSATIONS = ("messages", "conversations")
QUESTION_FIELDS = ("prompt", "question")
TEXT_ONLY = (
    "Images are not supported yet; rankwise trains on text only. "
    "rankwise plan --model NAME counts the parameters of a vision model."
)
ARRAYS = (
    "Arrays are not supported yet; rankwise trains on text only. Write rows of text, one JSON object per line, "
    'such as {"prompt": "…", "completion": "…"}.'
)


def refuse_file(path: Path) -> None:
    """Refuse an image or array file by its name. The content is not read."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is an image. {TEXT_ONLY}")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        raise DataError(f"{path}: is a file of NumPy arrays. {ARRAYS}")


def refuse_folder(folder: Path, files: Iterable[Path]) -> None:
    """Refuse a folder of images (with or without an ImageFolder's metadata file) or of arrays."""
    names = {path.stem.lower() for path in files}
    if names - {"metadata"}:
        return
    for suffixes, what, why in ((IMAGE_SUFFIXES, "images", TEXT_ONLY), (ARRAY_SUFFIXES, "NumPy arrays", ARRAYS)):
        example = next((path for path in folder.rglob("*") if path.suffix.lower() in suffixes), None)
        if example is not None:
            raise DataError(f"{folder}: is a folder of {what}, such as {example.relative_to(folder)}. {why}")


def refuse_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse a row with an image, and preference rows (chosen and rejected answers, or a label)."""
    image = next((name for name, value in row.items() if _is_image(name, value)), None)
    if image is not None:
        raise DataError(f"{where}: contains an image in the column {shown(image)}. {TEXT_ONLY}")
    if "chosen" in row and "rejected" in row and "chosen" not in columns.values():
        raise DataError(
            f"{where}: is a preference pair (chosen, rejected). Preference pairs are not supported yet; to train on "
            f"the chosen answers alone, add {_chosen_alone(row)} {ignoring(['rejected'])}."
        )
    if isinstance(row.get("label"), bool) and any(name in row for name in (*CONVERSATIONS, *QUESTION_FIELDS)):
        raise DataError(
            f"{where}: its label is {row['label']}, so it is a preference row (KTO). Preference rows are not supported "
            "yet; to train on the good answers alone, keep the rows whose label is true and remove the column label."
        )


def _is_image(name: str, value: Any) -> bool:
    """Whether a value is an image: written by `datasets` ({bytes, path}), recognised by its bytes or column name."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return True
    return (isinstance(value, bytes) and value.startswith(IMAGE_MARKS)) or (name in IMAGE_COLUMNS and bool(value))


def _chosen_alone(row: Mapping[str, Any]) -> str:
    """The flags that train on the chosen answers of a preference row."""
    chosen = row["chosen"]
    turns = chosen if isinstance(chosen, list) else []
    if any(isinstance(turn, dict) and turn.get("role") == "user" for turn in turns):
        return "--set data.columns.messages=chosen"
    for field, questions in (("completion", QUESTION_FIELDS), ("output", ("instruction",))):
        if any(name in row for name in questions):
            return f"--set data.columns.{field}=chosen"
    others = {name: value for name, value in row.items() if name not in ("chosen", "rejected") and can_be_typed(name)}
    texts = texts_among(others)
    return options_for(texts, ["chosen"]) if texts else "--set data.columns.text=chosen"
