"""The base model and the tuned model as two functions from token ids to logits, which measures of forgetting compare.

The two are either one model with and without its adapter, or two models in memory: a merged or fully fine-tuned model
and its base. Both receive the same ids in the same shapes, so comparing a model with itself gives bitwise equal logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from rankwise.errors import ModelError
from rankwise.forward.reference import every_logits
from rankwise.methods.trainable import WithBase
from rankwise.models.loaded import LoadedModel

Forward = Callable[[Tensor], Tensor]
"""Maps ids (T,) of one text to logits (T, V), without gradients."""


@dataclass(frozen=True)
class BaseAndTuned:
    base: Forward
    tuned: Forward


def forward_of(module: nn.Module) -> Forward:
    """Run the model in its state at the time of each call, including the adapters that are active then."""
    return partial(every_logits, module)


def base_and_tuned(tuned: WithBase) -> BaseAndTuned:
    """Use one model both as tuned and, with its training undone, as its own base."""
    as_tuned = forward_of(tuned.model)

    def base(ids: Tensor) -> Tensor:
        with tuned.base():
            return as_tuned(ids)

    return BaseAndTuned(base, as_tuned)


def of_two_models(base: LoadedModel, tuned: LoadedModel) -> BaseAndTuned:
    """Use two models in memory; refuse them if any id stands for different tokens."""
    words, others = base.tokenizer.hub.get_vocab(), tuned.tokenizer.hub.get_vocab()
    if base.vocabulary != tuned.vocabulary or words != others:
        differing = sorted((word for word in words | others if words.get(word) != others.get(word)), key=str)
        example = f'; "{differing[0]}" has different ids' if differing else ""
        raise ModelError(
            f"{tuned.source.name} has a different vocabulary ({tuned.vocabulary:,} tokens) from {base.source.name} "
            f"({base.vocabulary:,}){example}. Their likelihoods cannot be compared token by token: "
            "compare it with its own base."
        )
    return BaseAndTuned(forward_of(base.module), forward_of(tuned.module))
