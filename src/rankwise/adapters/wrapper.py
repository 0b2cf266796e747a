"""Stop 6: one base layer with its named adapters: y = W x + the sum of the active ones. Next: training/losses.py.

Two small things rather than one with modes: an adapter computes a correction, this adds it. The base layer is the very
object that stood here before and goes back unchanged.

The attention of timm's BEiT, Swin V2 and EVA multiplies by the weight of its `qkv` without calling the layer, to add
three biases at once. timm's own switch makes it call the layer and add them afterwards: it is on where an adapter is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.kernels.linear import Identity, LinearSpec, linear_spec_of, shared_linears

ROUNDED = (torch.bfloat16, torch.float16)
"""Formats in which most of a small change would be lost if it were added to an output that is rounded already."""


class Wrapper(nn.Module):
    """What stands in the place of a module of the base."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.train(base_layer.training)

    @property
    def is_empty(self) -> bool:
        """Whether no adapter needs it any more."""
        return False

    def __getattr__(self, name: str) -> Any:
        """What a model asks of the module it believes is here (weight, bias, in_features) the base layer answers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


class AdapterWrapper(Wrapper):
    def __init__(self, base_layer: nn.Module, parent: nn.Module | None = None) -> None:
        super().__init__(base_layer)
        self.adapters = nn.ModuleDict()
        self._active: tuple[str, ...] = ()
        self.mixed: Callable[[Tensor], Tensor] | None = None
        """The layer where each row of a batch has an adapter of its own (by_row.py)."""
        switch, bias = getattr(parent, "qkv_bias_separate", None), getattr(parent, "q_bias", None)
        unread = switch is False and bias is not None and getattr(parent, "qkv", None) is base_layer
        self.uncalled_in: tuple[Any, ...] = (parent,) if unread else ()
        """The module that takes the weight of this layer without calling it, and has timm's switch for that."""

    @property
    def is_empty(self) -> bool:
        return not self.adapters

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that are added, by name."""
        return self._active

    @active.setter
    def active(self, names: tuple[str, ...]) -> None:
        self.lay(names, self.mixed)

    def lay(self, names: tuple[str, ...], mixed: Callable[[Tensor], Tensor] | None) -> None:
        """Set `active` and `mixed` of a layer, which a server does twice for each token: not by nn.Module's own way of
        setting an attribute, which takes longer than the small products of an adapter."""
        self.__dict__.update(_active=names, mixed=mixed)
        for parent in self.uncalled_in:
            parent.qkv_bias_separate = bool(names)

    def forward(self, x: Tensor) -> Tensor:
        """In 16 bits, add the base layer's product to the correction, which rounds the sum once."""
        if self.mixed is not None:
            return self.mixed(x)
        spec = self.linear_spec() if self.active and x.dtype in ROUNDED and not self._is_watched() else None
        if spec is not None and spec.weight.dtype == x.dtype:
            (y,) = shared_linears(Identity(), (x.flatten(0, -2),), [spec])
            return y.view(*x.shape[:-1], -1)
        y = self.base_layer(x)
        for name in self.active:
            y = self.adapter(name).added_to(y, x)
        return y

    def _is_watched(self) -> bool:
        """Whether somebody's hook expects that the base layer or an adapter is called."""
        modules = (self.base_layer, *(self.adapter(name) for name in self.active))
        return any(
            one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks
            for one in modules
        )

    def linear_spec(self) -> LinearSpec | None:
        """For the kernel that computes several linear layers at once, where this is one with at most two factors."""
        bare = linear_spec_of(self.base_layer)
        if bare is None or self.mixed is not None:
            return None
        if not self.active:
            return bare
        pair = self.adapter(self.active[0]).pair() if len(self.active) == 1 else None
        return None if pair is None else replace(bare, A=pair[0], B=pair[1])

    def adapter(self, name: str) -> Adapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter
