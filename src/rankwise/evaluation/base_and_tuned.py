"""Two models of one vocabulary, as two functions of ids: what a measure of forgetting needs to know of them.

A side is the model with its adapter and without, or one of two models that were loaded apart: a merged model or one
that was trained whole, and its base. Both get the same ids in the same shapes, so a model beside itself has the same
bits on both sides.
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
"""Ids (T,) of one text to logits (T, V), without gradients."""


@dataclass(frozen=True)
class Sides:
    base: Forward
    tuned: Forward


def forward_of(module: nn.Module) -> Forward:
    """The model as it is at each call: adapters that are active then are in it."""
    return partial(every_logits, module)


def with_and_without(tuned: WithBase) -> Sides:
    """One model as it was tuned, and as the base that it began with."""
    as_tuned = forward_of(tuned.model)

    def base(ids: Tensor) -> Tensor:
        with tuned.base():
            return as_tuned(ids)

    return Sides(base, as_tuned)


def of_two(base: LoadedModel, tuned: LoadedModel) -> Sides:
    """Two models in memory; refused where an id is not one and the same token to both."""
    words, others = base.tokenizer.hub.get_vocab(), tuned.tokenizer.hub.get_vocab()
    if base.vocabulary != tuned.vocabulary or words != others:
        differing = sorted((word for word in words | others if words.get(word) != others.get(word)), key=str)
        example = f'; "{differing[0]}" has other ids' if differing else ""
        raise ModelError(
            f"{tuned.source.name} has another vocabulary ({tuned.vocabulary:,} tokens) than {base.source.name} "
            f"({base.vocabulary:,}){example}. Their likelihoods cannot be compared token by token: "
            "compare it with its own base."
        )
    return Sides(forward_of(base.module), forward_of(tuned.module))
