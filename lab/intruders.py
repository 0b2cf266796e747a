"""Intruder dimensions: directions that a finished adapter puts among the largest of a layer, and that its base lacks.

    W0 = U0 S0 V0^T,   W = W0 + change = U S V^T        both in float32
    intruders:  u_j of the LARGEST largest singular values of W with  max_i |u_i of W0 . u_j|  <  SIMILAR
    inside `damped`:  W - (1 - factor) * sum over intruders of s_j u_j v_j^T

Shuttleworth et al. (arXiv 2410.21228) found that models adapted by LoRA have such directions, models trained whole
hardly any, and that scaling them down gives back much of what was forgotten. What is taken away is computed beside the
layer, since a bfloat16 weight would round it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.adapters.base_layers import weight_of
from rankwise.adapters.set import AdapterSet

LARGEST, SIMILAR = 10, 0.5
"""Those of PEFT's `reduce_intruder_dimension`."""


def intruders(weight: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The directions (O, n) with their singular values, and what they read, (n, I)."""
    before = torch.linalg.svd(weight.float(), full_matrices=False)[0]
    left, values, right = torch.linalg.svd(weight.float() + change, full_matrices=False)
    left, values, right = left[:, :LARGEST], values[:LARGEST], right[:LARGEST]
    new = (before.T @ left).abs().amax(0) < SIMILAR
    return left[:, new] * values[new], right[new]


@torch.no_grad()
def intruders_of(adapters: AdapterSet) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of each adapted linear layer, by its path, also where it has none."""
    return {
        path: intruders(weight_of(adapters.base_layer(path)), adapter.delta())
        for path, adapter in adapters.adapters("default").items()
    }


@contextmanager
def damped(adapters: AdapterSet, found: dict[str, tuple[Tensor, Tensor]], factor: float) -> Iterator[None]:
    """Inside, the intruders' singular values are `factor` times themselves."""

    def hook(left: Tensor, right: Tensor) -> Callable[..., Tensor]:
        def less(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not layer.active:  # it is the base
                return output
            return (output.float() - (1 - factor) * F.linear(F.linear(given[0].float(), right), left)).to(output.dtype)

        return less

    with ExitStack() as stack:
        for path, (left, right) in found.items():
            if right.numel():
                handle = adapters.layers[path].register_forward_hook(hook(left, right))
                stack.callback(handle.remove)
        yield
