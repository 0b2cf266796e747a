"""A base model in memory, with everything needed to train, run and identify it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from rankwise.base.precision import Precision
from rankwise.base.sources import Source
from rankwise.config.images import ImageProcessing
from rankwise.config.models import ModelConfig
from rankwise.errors import RunError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback


@dataclass(frozen=True)
class TextReader:
    """How a model of texts reads them."""

    tokenizer: HubTokenizer
    template: ChatTemplate
    """The chat template: the model's own, unless a recipe or a run sets another."""


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, with what reads its inputs: a tokenizer and chat template, or an image processor."""

    module: nn.Module
    config: ModelConfig
    source: Source
    precision: Precision
    width: int
    context_length: int | None
    text: TextReader | None = None
    """None for a model that reads images alone."""
    processing: ImageProcessing | None = None
    """How images become what the model reads; None for a model of texts."""
    new_modules: tuple[str, ...] = ()
    """Paths of modules below the head whose weights the folder lacks, so that they were drawn."""
    quantization: str | None = None
    """How the weights of linear layers are stored, such as `nf4`; None in full."""
    own_head: bool = False
    """Whether a classifier begins with the head that the folder has, which has as many outputs."""

    @property
    def tokenizer(self) -> HubTokenizer:
        assert self.text is not None, "a model of images has no tokenizer"
        return self.text.tokenizer

    @property
    def template(self) -> ChatTemplate:
        assert self.text is not None, "a model of images has no chat template"
        return self.text.template

    def with_template(self, template: ChatTemplate) -> LoadedModel:
        return replace(self, text=TextReader(self.tokenizer, template))

    @property
    def vocabulary(self) -> int:
        """Number of tokens with an embedding."""
        module: Any = self.module
        return module.get_input_embeddings().weight.shape[0]

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder generates the answer."""
        config: Any = self.module.config
        return self.processing is None and bool(getattr(config, "is_encoder_decoder", False))

    def fits(self, prompt: int, new: int) -> bool:
        """Whether a prompt and an answer with these numbers of tokens fit into the context. An encoder-decoder has a
        separate context for each."""
        longest = max(prompt, new) if self.encoder_decoder else prompt + new
        return self.context_length is None or longest <= self.context_length

    def room(self, prompt: int, most: int) -> int:
        """How many tokens an answer to a prompt of this length may have: at least one, at most the number asked for."""
        return next(count for count in range(most, 0, -1) if count == 1 or self.fits(prompt, count))

    @cached_property
    def facts(self) -> BaseModelFacts:
        return BaseModelFacts(
            name=self.source.name,
            source=self.source.where,
            fingerprint=self.source.fingerprint,
            parts=self.source.fingerprints[1],
            dtype=str(self.precision.dtype).removeprefix("torch."),
            device=str(self.precision.device),
            quantization=self.quantization,
        )


Load = Callable[[ModelConfig, Callback], LoadedModel]
"""How a model is loaded: an objective's `load`."""


def check_base(source: Source, trained_on: BaseModelFacts, described: str, use: str) -> None:
    """RunError where this is not the base that was trained on. `described` is what was trained, and `use` what the base
    is needed for, both for the message."""
    if source.fingerprint != trained_on.fingerprint:
        now = f"the base model found now, from {source.where},"
        refusal = trained_on.refusal(described, now, *source.fingerprints)
        raise RunError(f"{refusal} Use --force-base to {use} anyway.")


def base_weights(
    load: Load, config: ModelConfig, check: Callable[[Source], None], callback: Callback
) -> Mapping[str, Tensor]:
    """By their names in the model, on the processor; a weight that two layers share is there once. `check` refuses
    another base."""
    model = load(config.model_copy(update={"device": "cpu", "sharded": False}), callback)
    check(model.source)
    return {name: weight.detach() for name, weight in model.module.named_parameters()}
