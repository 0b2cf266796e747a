"""A base model in memory, with everything needed to train, run and identify it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from rankwise.config.models import ModelConfig
from rankwise.models.inspection import fingerprint
from rankwise.models.precision import Precision
from rankwise.models.sources import Source
from rankwise.runs.manifest import BaseModelFacts
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.tokenizer import HubTokenizer


@dataclass(frozen=True)
class LoadedModel:
    module: nn.Module
    tokenizer: HubTokenizer
    template: ChatTemplate
    """The chat template: the model's own, unless a recipe or a run sets another."""
    spec: ModelConfig
    source: Source
    precision: Precision
    width: int
    context_length: int | None
    new_modules: tuple[str, ...] = ()
    """Paths of modules below the head whose weights the folder lacks, so that they were drawn."""
    own_head: bool = False
    """Whether a classifier begins with the head that the folder has, which has as many outputs."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding."""
        module: Any = self.module
        return module.get_input_embeddings().weight.shape[0]

    @cached_property
    def facts(self) -> BaseModelFacts:
        return BaseModelFacts(
            name=self.source.name,
            source=self.source.where,
            fingerprint=fingerprint(self.source.folder),
            dtype=str(self.precision.dtype).removeprefix("torch."),
            device=str(self.precision.device),
        )
