"""The head that a classifier gets, known before its model is loaded.

It has an output for each class of the rows, or one for a number. A pooler that the model's weights lack belongs to it:
an encoder that was pretrained on masked tokens alone has none.
"""

from __future__ import annotations

from pathlib import Path

from rankwise.config.experiment import Planned
from rankwise.data.classes import read_targets
from rankwise.data.tag_classes import read_tags
from rankwise.planning.pooling import pooling_of
from rankwise.planning.shape import NewHead
from rankwise.system.foreign_json import read_json
from rankwise.system.hub import folder_here

TWO_CLASSES = 2
"""Outputs where no rows are given."""
POOLER = "pooler."


def new_head(config: Planned, outputs: int | None = None, image: int | None = None, *, words: bool = False) -> NewHead:
    """`outputs` saves reading the rows. `image` is the side of the images that a model of images is trained on.
    `words`: each word has a class, and no pooler is needed for it."""
    if outputs is None:
        rows = config.data
        outputs = (
            TWO_CLASSES if rows is None else (read_tags if words else read_targets)(rows, config.classification).outputs
        )
    path = Path(config.model.name).expanduser()
    folder = path if path.is_dir() else folder_here(config.model.name)
    pooled = not words and image is None and pooling_of(folder, config.classification)[0] != "own"
    new_pooler = not words and not pooled and folder is not None and _lacks_pooler(folder)
    return NewHead(outputs, new_pooler, image, words, pooled)


def _lacks_pooler(folder: Path) -> bool:
    """By the names of its weights; by its architecture where these are not here."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        named = read_json(folder / "config.json").get("architectures")
        return isinstance(named, list) and any("MaskedLM" in str(one) for one in named)
    return not any(POOLER in name for file in files for name in _names(file))


def _names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError):  # training says what is wrong with it
        return [POOLER]
