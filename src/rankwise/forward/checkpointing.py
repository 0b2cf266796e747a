"""Blocks of a model's own code that keep only what goes into them, and are computed again in the backward pass.

    memory of n of N equal blocks: their inputs, and of one block everything;  time: their forward pass once more

The numbers are the same, also with dropout. Blocks are known by the class that transformers gives those that may be
computed twice. (The fast form does the same by itself, forward/fused.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_in_order(module: nn.Module) -> list[nn.Module]:
    """In the order in which a forward pass takes them; none where the model is not made of such."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


@contextmanager
def computed_twice(blocks: list[nn.Module]) -> Iterator[None]:
    for block in blocks:
        assert "forward" not in vars(block), "somebody else has put his own there"
        block.forward = _again(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_twice(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return forward_twice
