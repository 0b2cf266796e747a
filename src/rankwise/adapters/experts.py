"""Stacked experts of a mixture with factors of their own: expert k of a block computes with W_k + s B_k A_k.

    y = x W_k^T + b_k + s (x A_k^T) B_k^T        A (E, R, I),  B (E, O, R)

for the tokens x that the router sends to expert k. transformers computes a block's experts in one module that holds
their weights as parameters, (E, O, I) or (E, I, O), and has no layer for one of them. So the wrapper lies over the
whole module. Without an active adapter it computes as the module did; with one it goes through the experts that tokens
reach, and adds the products. No weight is copied: the backward pass needs x and x A_k^T alone.

Only modules are adapted whose computation transformers itself exchanges (`use_experts_implementation`), as these say
how they compute: their gate, their biases and which way round the weights lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.adapters.adapter import on_linear
from rankwise.adapters.lora import LoRA
from rankwise.adapters.wrapper import AdapterWrapper, Wrapper

STACKED = 3
"""Dimensions of a parameter that holds a matrix of each expert."""
FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXCHANGEABLE = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate", "num_experts")
"""What transformers gives each module whose computation it exchanges."""


class StackedWeight(nn.Module):
    """One parameter of a module of experts, as a layer that an adapter can be laid over. It holds no weight itself."""

    def __init__(self, experts: nn.Module, name: str) -> None:
        super().__init__()
        self.__dict__["experts"] = experts  # outside of the modules, so that weights are counted once
        self.name = name
        self.train(experts.training)

    @property
    def weight(self) -> Tensor:
        """(E, O, I), or (E, I, O) where `is_transposed`."""
        return getattr(self.__dict__["experts"], self.name)

    @property
    def is_transposed(self) -> bool:
        return bool(self.__dict__["experts"].is_transposed)

    @property
    def bias(self) -> Tensor | None:
        """(E, O)."""
        experts = self.__dict__["experts"]
        return getattr(experts, f"{self.name}_bias") if experts.has_bias else None


class ExpertsWrapper(Wrapper):
    """A module of experts whose parameters may have adapters: each parameter is a child of its own name."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.names = expert_weights(base_layer)
        for name in self.names:
            setattr(self, name, StackedWeight(base_layer, name))

    @property
    def is_empty(self) -> bool:
        return not any(isinstance(self._modules[name], AdapterWrapper) for name in self.names)

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Tokens x (T, d), the experts that each is sent to (T, k), and the share of each in the sum (T, k)."""
        parts = [self._modules[name] for name in self.names]
        if not any(isinstance(part, AdapterWrapper) and part.active for part in parts):
            return self.base_layer(x, chosen, shares)
        host: Any = self.base_layer
        first, second = (_Projection.of(part) for part in parts)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=host.num_experts).tolist()
        outputs = []
        for expert, mine in enumerate(x[order // chosen.shape[1]].split(counts)):
            if len(mine):
                inner = first(expert, mine)
                y = second(expert, host._apply_gate(inner) if host.has_gate else host.act_fn(inner))
                outputs.append(host.post_expert_norm(y) if host.has_post_expert_norm else y)
        weighted = torch.cat(outputs) * shares.flatten()[order, None]
        return weighted[order.argsort()].view(*chosen.shape, -1).sum(1).to(x.dtype)


@dataclass(frozen=True)
class _Projection:
    """One parameter with its active adapters, taken apart by expert: together they get one gradient."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] | None
    transposed: bool
    factors: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]

    @classmethod
    def of(cls, part: nn.Module | None) -> _Projection:
        adapted = isinstance(part, AdapterWrapper)
        host = part.base_layer if adapted else part
        assert isinstance(host, StackedWeight)
        active = [part.adapter(name) for name in part.active] if adapted else []
        factors = tuple((A.unbind(), B.unbind()) for A, B in map(_scaled, active))
        bias = host.bias
        return cls(host.weight.unbind(), None if bias is None else bias.unbind(), host.is_transposed, factors)

    def __call__(self, expert: int, x: Tensor) -> Tensor:
        weight, bias = self.weights[expert], None if self.biases is None else self.biases[expert]
        y = F.linear(x, weight.T if self.transposed else weight, bias)
        for A, B in self.factors:
            y = y + on_linear(x, A[expert], B[expert])
        return y


def _scaled(adapter: Any) -> tuple[Tensor, Tensor]:
    assert isinstance(adapter, LoRA), "other adapters are refused over experts"
    return adapter.A * adapter.scale, adapter.B


def owner_of(layer: nn.Module) -> nn.Module:
    """The module that has the weight of a layer: of a stacked one that of the experts."""
    return layer.__dict__["experts"] if isinstance(layer, StackedWeight) else layer


def expert_weights(module: nn.Module) -> tuple[str, ...]:
    """Names of the two parameters of a module of experts that can be adapted; none for any other module."""
    if not all(hasattr(module, name) for name in EXCHANGEABLE):
        return ()
    names = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    own = dict(module.named_parameters(recurse=False))
    stacked = [name for name in names if name in own and own[name].dim() == STACKED and own[name].dtype in FORMATS]
    return names if len(stacked) == len(names) else ()


def stacked_by_own_code(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters in which a module of another kind holds the weights of several experts. transformers
    calls the class of such a module by what it holds."""
    if expert_weights(module) or "expert" not in type(module).__name__.lower():
        return ()
    weights = module.named_parameters(recurse=False)
    return tuple(name for name, weight in weights if weight.dim() > 1 and not name.endswith("bias"))


def stacked_hosts(path: str, module: nn.Module) -> Iterator[tuple[str, StackedWeight]]:
    """The parameters of a module of experts as layers, by their paths."""
    for name in expert_weights(module):
        yield f"{path}.{name}" if path else name, StackedWeight(module, name)


def open_experts(model: nn.Module, paths: Iterable[str]) -> None:
    """Make those of `paths` that are parameters of experts layers of the model, which can be wrapped like any other."""
    modules = dict(model.named_modules(remove_duplicate=False))
    holders = {path.rpartition(".")[0] for path in paths if path not in modules}
    for holder in holders:
        wrapper = ExpertsWrapper(modules[holder])
        for path in [path for path, module in modules.items() if module is wrapper.base_layer]:  # it may be used twice
            model.set_submodule(path, wrapper)
