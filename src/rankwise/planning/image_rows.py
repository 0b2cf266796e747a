"""The rows of a planned classifier of images, which are counted and not decoded: all of them have one size.

An image counts as many tokens as it has patches of 16 pixels, as in training (config/images.py).
"""

from __future__ import annotations

from rankwise.config.data import DataConfig
from rankwise.config.experiment import Planned
from rankwise.data.hub import HUB
from rankwise.data.sources import open_source, raw_records
from rankwise.errors import DataError, ModelError
from rankwise.planning.estimate import Estimate
from rankwise.planning.reading import read_image_side
from rankwise.planning.rows import PlannedRows, together, without_held_out

SAMPLE = 300
"""Images of each source that stand for all."""


def image_rows_of(spec: DataConfig, patches: int) -> PlannedRows:
    parts = []
    for source in spec.all_sources:
        count = sum(
            not isinstance(row, DataError)
            for part in open_source(spec, source).parts for _, row in raw_records(part)
        )  # fmt: skip
        count = count if source.rows is None else min(count, source.rows)
        parts.append(_equal(count, source.weight, patches))
    return without_held_out(together(parts), spec)


def _equal(count: int, weight: float, patches: int) -> PlannedRows:
    images = Estimate.exactly(count * weight)
    return PlannedRows(
        documents=images, tokens=images.times(patches), supervised=images, too_long=0.0, median=patches,
        longest=patches, longest_found=patches, lengths=(patches,) * min(count, SAMPLE), exact=True,
    )  # fmt: skip


def images_in_memory(config: Planned, rows: PlannedRows) -> int:
    """Images that a training reads at all, and those it validates on; a file of their own is not counted."""
    documents, training = round(rows.documents.likely), config.training
    seen = rows.steps(training) * training.rows_per_step(max(1, documents))
    return min(documents, seen) + rows.held_out


def passes_of(config: Planned, rows: PlannedRows) -> float:
    """How often a training sees each image as it is: once where images are varied."""
    documents, training = max(1, round(rows.documents.likely)), config.training
    if config.images.augmentation != "none":
        return 1.0
    return max(1.0, rows.steps(training) * training.rows_per_step(documents) / documents)


def reads_by_arrow(config: Planned) -> bool:
    """Whether images lie in Parquet or Arrow files, or come from the hub."""
    if config.data is None:
        return False
    parts = [part.name for source in config.data.all_sources for part in open_source(config.data, source).parts]
    return any(name.startswith(HUB) or name.lower().endswith((".parquet", ".arrow")) for name in parts)


def side_of(config: Planned, own: int) -> int:
    """Pixels a side of the images that a model is trained on: those of the setting, else of the model's own image
    processor, else `own`, the size that its config.json has."""
    size = config.images.size
    if size != "auto":
        return size
    try:
        return read_image_side(config.model.name, config.model.revision) or own
    except ModelError:  # training says what is wrong with it
        return own
