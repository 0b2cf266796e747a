"""Data that people train on elsewhere and not here yet: what it is, and what is possible with it instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npz", ".npy")
IMAGE_COLUMNS = ("image", "images", "img", "pixel_values")
CONVERSATIONS = ("messages", "conversations")
ASKED = ("prompt", "question")
TEXT_ONLY = (
    "Images are not supported yet: rankwise trains on text only today. "
    "rankwise plan --model NAME counts the parameters of a vision model."
)
ARRAYS = (
    "Arrays are not supported yet: rankwise trains on text only today. Write rows of text, one JSON object a line, "
    'such as {"prompt": "…", "completion": "…"}.'
)


def refuse_file(path: Path) -> None:
    """By its name; its content is not read."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: is an image. {TEXT_ONLY}")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        raise DataError(f"{path}: is a file of NumPy arrays. {ARRAYS}")


def refuse_folder(folder: Path, files: Iterable[Path]) -> None:
    """Of images, with or without the metadata file that an ImageFolder has; or of arrays and nothing else."""
    names = {path.stem.lower() for path in files}
    if names - {"metadata"}:
        return
    for suffixes, what, why in ((IMAGE_SUFFIXES, "images", TEXT_ONLY), (ARRAY_SUFFIXES, "NumPy arrays", ARRAYS)):
        found = next((path for path in folder.rglob("*") if path.suffix.lower() in suffixes), None)
        if found is not None:
            raise DataError(f"{folder}: is a folder of {what}, such as {found.relative_to(folder)}. {why}")


def refuse_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """A row with an image, or one that says which of two answers is the better or whether one is good."""
    image = next((name for name, value in row.items() if _is_image(name, value)), None)
    if image is not None:
        raise DataError(f'{where}: holds an image in the column "{image}". {TEXT_ONLY}')
    if "chosen" in row and "rejected" in row and "chosen" not in columns.values():
        raise DataError(
            f"{where}: is a preference pair (chosen, rejected). Preference pairs are not supported yet; to learn the "
            f"chosen answers alone, add --set data.columns.{_field_of_chosen(row)}=chosen."
        )
    if isinstance(row.get("label"), bool) and any(name in row for name in (*CONVERSATIONS, *ASKED)):
        raise DataError(
            f"{where}: its label is {row['label']}, so it is a preference row (KTO). Preference rows are not supported "
            "yet; to learn the good answers alone, keep the rows whose label is true and leave out the column label."
        )


def _is_image(name: str, value: Any) -> bool:
    """As `datasets` writes one ({bytes, path}), or as its name says."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return True
    return isinstance(value, bytes) or (name in IMAGE_COLUMNS and bool(value))


def _field_of_chosen(row: Mapping[str, Any]) -> str:
    """What the chosen answer is: a whole conversation, the answer to a prompt, or a text."""
    chosen = row["chosen"]
    turns = chosen if isinstance(chosen, list) else []
    if any(isinstance(turn, dict) and turn.get("role") == "user" for turn in turns):
        return "messages"
    return "completion" if any(name in row for name in ASKED) else "text"
