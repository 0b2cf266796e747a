"""Settings of the method head, which has none beside its name: a classifier's new head is all that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from rankwise.config.adapter_file import NO_HEADS
from rankwise.config.layer import Heads, Layer
from rankwise.config.method import MethodConfig
from rankwise.config.parameters import Parameters, with_ranks


class HeadConfig(MethodConfig):
    """The new head of a classifier alone; the pretrained model stays as it is."""

    artifact: ClassVar[Literal["adapter", "model"]] = "adapter"
    auto_rate: ClassVar[float] = 5e-2
    classifier_rate: ClassVar[float] = 5e-2
    image_rate: ClassVar[float | None] = 8e-3
    text_rate: ClassVar[float | None] = 5e-4
    method: Literal["head"] = "head"
    """The method these settings belong to."""

    @property
    def label(self) -> str:
        return "head only"

    def parameters(self, total: int, layers: Sequence[Layer], heads: Heads = NO_HEADS) -> Parameters:
        return with_ranks(total, (), (), heads, dora=False, exact=True)

    def misfit(self, objective: str) -> str | None:
        return None if objective.endswith("-classification") else "adapter.method head"
