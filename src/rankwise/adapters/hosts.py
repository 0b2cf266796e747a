"""The frozen layers that an adapter can be laid over, and the adapter that fits each.

A linear layer y = x W^T (weight (O, I)); GPT-2's Conv1D, the same with its weight stored as (I, O); an embedding,
whose rows are the outputs. Conv1D is known by its shape and name, so that this folder needs no model library.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankwise.adapters.lora import EmbeddingLoRA, LoRA


def is_linear(module: nn.Module) -> bool:
    """Attention blocks of torch read the weight of their NonDynamicallyQuantizableLinear without calling it."""
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def is_conv1d(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "Conv1D"
        and hasattr(module, "nf")
        and getattr(module, "weight", torch.empty(0)).ndim == 2
    )


def is_embedding(module: nn.Module) -> bool:
    """Plain tables only: a subclass may scale its rows, and a limit on their norm would rewrite our factor."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.sparse


def is_host(module: nn.Module) -> bool:
    return is_linear(module) or is_conv1d(module) or is_embedding(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether the stored weight is (I, O)."""
    return is_conv1d(module) or is_embedding(module)


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor), f"{type(module).__name__} has no weight"
    return weight


def features_of(module: nn.Module) -> tuple[int, int]:
    """(I, O) of a host."""
    rows, columns = weight_of(module).shape
    return (rows, columns) if is_transposed(module) else (columns, rows)


def adapter_for(module: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> LoRA:
    """A new adapter on the host's device, in float32."""
    if isinstance(module, nn.Embedding):
        adapter = EmbeddingLoRA(module, rank, alpha, generator)
    else:
        adapter = LoRA(*features_of(module), rank, alpha, dropout, generator)
    return adapter.to(weight_of(module).device)


def oriented(module: nn.Module, delta: Tensor) -> Tensor:
    """A change (O, I) in the shape of the host's weight."""
    return delta.T if is_transposed(module) else delta
