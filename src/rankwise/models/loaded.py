"""A base model in memory with everything that is needed to train it, ask it and say what it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from rankwise.models.inspection import fingerprint
from rankwise.models.precision import Precision
from rankwise.models.sources import Source
from rankwise.models.tokenizer import HubTokenizer
from rankwise.run.manifest import BaseModelFacts
from rankwise.spec.models import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    module: nn.Module
    tokenizer: HubTokenizer
    spec: ModelSpec
    source: Source
    precision: Precision
    width: int
    context_length: int | None

    @cached_property
    def facts(self) -> BaseModelFacts:
        return BaseModelFacts(
            name=self.source.name,
            source=self.source.where,
            fingerprint=fingerprint(self.source.folder),
            dtype=str(self.precision.dtype).removeprefix("torch."),
            device=str(self.precision.device),
        )
