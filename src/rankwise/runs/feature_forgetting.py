"""Stored measurements of forgetting for models of images: how far features moved, and what they are still good for."""

from __future__ import annotations

from rankwise.config.base import Config
from rankwise.runs.measured import Difference, Measured


class FeatureForgetting(Config):
    """Features of the last layer before the head, of the base and of the tuned model, on the same other images."""

    cka: Measured
    """Linear CKA: 1 if the features are the same up to rotation and scale, about 0 if they are unrelated."""
    probe: Difference | None
    """Accuracy of a linear probe on the tuned model's features (b) and on the base's (a); None without labels."""
    images: int
    classes: tuple[str, ...] = ()
    """What the probe tells apart."""
    data: str
    """Name of the images."""
    sha256: str
    """Hash of the images as the models see them, and of their labels; only equal ones can be compared."""
