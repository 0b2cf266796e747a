"""Refuse rows that rankwise cannot train on yet (images with texts, preferences), and say what is possible instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rankwise.config.base import shown
from rankwise.data.formats import SIGNS
from rankwise.data.image_rows import is_image
from rankwise.data.proposals import can_be_typed, ignoring, options_for, texts_among
from rankwise.errors import DataError

IMAGE_COLUMNS = ("images", "img", "pixel_values")
"""Columns that hold an image or several, whatever their values look like."""
CONVERSATIONS = ("messages", "conversations")
QUESTION_FIELDS = ("prompt", "question")


def refuse_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse preference rows (chosen and rejected answers, or a label)."""
    if "chosen" in row and "rejected" in row and "chosen" not in columns.values():
        raise DataError(
            f"{where}: is a preference pair (chosen, rejected). To train on pairs, add --objective preference; to "
            f"train on the chosen answers alone, add {_chosen_alone(row)} {ignoring(['rejected'])}."
        )
    if isinstance(row.get("label"), bool) and any(name in row for name in (*CONVERSATIONS, *QUESTION_FIELDS)):
        raise DataError(
            f"{where}: its label is {row['label']}, so it is a preference row (KTO). Preference rows are not supported "
            "yet; to train on the good answers alone, keep the rows whose label is true and remove the column label."
        )


def refuse_images(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse a row with an image in an unknown column, with several images, or with a text beside its image.

    The columns of the row are renamed as in `columns` (data.columns).
    """
    if "image" in row and (isinstance(row["image"], np.ndarray) or row["image"]):
        others = {name: value for name, value in row.items() if name != "image"}
        form = next((form for form, fits in SIGNS.items() if form != "image" and fits(others)), None)
        if form is not None:
            column = columns.get("image", "image")
            raise DataError(
                f"{where}: has an image in the column {shown(column)} beside the columns of the {form} format. Rows "
                "with an image and a text are not supported yet. To train on the text alone, add "
                f"{ignoring([column])}; to train on the image and its label alone, add --set data.format=image."
            )
        return
    name = next((name for name, value in row.items() if is_image(value) or (name in IMAGE_COLUMNS and value)), None)
    if name is not None and isinstance(row[name], list):
        raise DataError(
            f"{where}: contains images in the column {shown(name)}. Rows with several images are not supported yet."
        )
    if name is not None:
        raise DataError(
            f"{where}: contains an image in the column {shown(name)}. To train on it, add --set "
            f"data.columns.image={name}; to leave it out, add {ignoring([name])}."
        )


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
