"""The frozen layers that an adapter can be laid over, and the adapter that fits each.

A linear layer y = x W^T (weight (O, I)); GPT-2's Conv1D, the same with its weight stored as (I, O); an embedding,
whose rows are the outputs; a convolution over images, whose I is channels times kernel; the weights of all experts of a
block in one parameter (experts.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from rankwise.adapters.adalora import AdaLoRA, FusedAdaLoRA
from rankwise.adapters.adapter import Adapter, Applied, conv_problem, on_conv2d, on_embedding, on_linear
from rankwise.adapters.experts import StackedWeight
from rankwise.adapters.fused import Split
from rankwise.adapters.lora import DoRA, LoRA
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.modules import HostKind
from rankwise.config.parameters import initial_rank
from rankwise.kernels.linear import is_conv1d


def is_linear(module: nn.Module) -> bool:
    """Attention blocks of torch read the weight of their NonDynamicallyQuantizableLinear without calling it."""
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def is_embedding(module: nn.Module) -> bool:
    """Plain tables only: a subclass may scale its rows, and a limit on their norm would rewrite our factor."""
    return type(module) is nn.Embedding and module.max_norm is None and not module.sparse


def is_conv2d(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and not conv_problem(module)


def takes_dora(module: nn.Module) -> bool:
    """Where one row of the weight makes one output, whose length DoRA learns."""
    return is_linear(module) or is_conv1d(module)


def kind_of(module: nn.Module) -> HostKind | None:
    """None for what cannot be adapted."""
    if is_linear(module):
        return "linear"
    if is_conv1d(module):
        return "conv1d"
    if isinstance(module, StackedWeight):
        return "experts"
    return "embedding" if is_embedding(module) else "conv2d" if is_conv2d(module) else None


def is_host(module: nn.Module) -> bool:
    return kind_of(module) is not None


def is_transposed(module: nn.Module) -> bool:
    """Whether the stored weight is (I, O)."""
    if isinstance(module, StackedWeight):
        return module.is_transposed
    return is_conv1d(module) or is_embedding(module)


def weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor), f"{type(module).__name__} has no weight"
    return weight


def features_of(module: nn.Module) -> tuple[int, int]:
    """(I, O) of a base layer, of each of its experts."""
    weight = weight_of(module)
    if is_conv2d(module):
        return weight[0].numel(), weight.shape[0]
    rows, columns = weight.shape[-2:]
    return (rows, columns) if is_transposed(module) else (columns, rows)


def experts_of(module: nn.Module) -> int:
    """How many experts' weights a base layer holds; 0 for a layer that is no mixture's."""
    return len(weight_of(module)) if isinstance(module, StackedWeight) else 0


def applied_to(module: nn.Module) -> Applied:
    """How factors act on this base layer."""
    if isinstance(module, nn.Embedding):
        return on_embedding(module)
    return on_conv2d(module) if isinstance(module, nn.Conv2d) else on_linear


def lora_for(
    module: nn.Module, rank: int, scale: float, dropout: float, generator: torch.Generator, *, dora: bool = False
) -> LoRA:
    """A new LoRA (or DoRA) on the base layer's device, in float32."""
    if dora:
        adapter = DoRA(module, rank, scale, dropout, generator, transposed=is_transposed(module))
    else:
        adapter = LoRA(
            *features_of(module), rank, scale, dropout, generator, applied_to(module),
            looked_up=is_embedding(module), experts=experts_of(module),
        )  # fmt: skip
    return adapter.to(weight_of(module).device)


def adalora_for(
    module: nn.Module, config: AdaLoraConfig, mean_rank: float, split: Split | None, generator: torch.Generator
) -> Adapter:
    """A new AdaLoRA on the base layer's device, in float32; of a fused base layer one for each part."""
    inside, outside = features_of(module)
    dropout = 0.0 if is_embedding(module) else config.dropout

    def part(outputs: int) -> AdaLoRA:
        rank = initial_rank(mean_rank, (inside, outputs), config.initial)
        return AdaLoRA(
            inside, outputs, rank, config.scale, dropout, generator, applied_to(module),
            start=config.start, looked_up=is_embedding(module),
        )  # fmt: skip

    if split is None:
        return part(outside).to(weight_of(module).device)
    fused = FusedAdaLoRA([part(len(rows)) for rows in split.rows], split.rows, split.names)
    return fused.to(weight_of(module).device)


def oriented(module: nn.Module, delta: Tensor) -> Tensor:
    """A change (O, I), or one of each expert, in the shape of the base layer's weight."""
    return delta.mT if is_transposed(module) else delta.view_as(weight_of(module))


@torch.no_grad()
def plain_lora(base_layer: nn.Module, adapter: Adapter) -> LoRA:
    """A LoRA (two factors) that makes the same change as another adapter, such as one of AdaLoRA."""
    A, B = adapter.factors()
    assert adapter.additive, "two factors would not be the same change"
    lora = lora_for(base_layer, A.shape[0], adapter.scale, adapter.dropout, torch.Generator())
    lora.A.copy_(A)
    lora.B.copy_(B)
    return lora.train(adapter.training)
