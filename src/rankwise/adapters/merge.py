"""An adapter's change added to its base's weights: a plain model, for engines that read no adapters.

    W' = W + s B A,   for DoRA m (W + s B A) / n

computed in float32 and rounded once to the number format of W. A quantised W is unpacked for it and gives way to an
ordinary weight; its parts stay as they are, and so do weights without an adapter. A head that was trained whole takes
the place of the base's, and so do the rows of new tokens. A weight that two layers share, such as a table that is the
output head too, is parted first where only one of the two was trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import oriented, weight_of
from rankwise.adapters.experts import owner_of
from rankwise.adapters.set import AdapterSet
from rankwise.kernels.quantized.tensor import in_full, is_quantized, unpack_weights


@torch.no_grad()
def merge(adapters: AdapterSet, name: str = "default") -> nn.Module:
    """The base model with the change in its weights. No adapter is left over it, and none could be taken out again."""
    adapters.check_decided(name)
    for path, adapter in adapters.adapters(name).items():
        host = adapters.layers[path].host
        weight = weight_of(host)
        _part(adapters.model, owner_of(host), weight)
        changed = in_full(weight) + oriented(host, adapter.delta())
        if is_quantized(weight):
            host.weight = nn.Parameter(changed.to(weight.dtype), requires_grad=weight.requires_grad)
        else:
            weight.copy_(changed)
    for path, trained in adapters.trained_heads(name).items():
        base = adapters.heads[path].base_layer
        for weight in base.parameters():
            _part(adapters.model, base, weight)
        unpack_weights(base)
        base.load_state_dict(trained.state_dict())
    for rows in adapters.token_rows(name).values():
        rows.write(name)
    return adapters.remove()


def _part(model: nn.Module, trained: nn.Module, weight: Tensor) -> None:
    """Give every module outside `trained` that holds this weight a copy of its own."""
    own = set(trained.modules())
    others = [
        (module, name)
        for module in model.modules()
        if module not in own
        for name, parameter in module.named_parameters(recurse=False)
        if parameter is weight
    ]
    for module, name in others:
        setattr(module, name, nn.Parameter(weight.clone(), requires_grad=weight.requires_grad))
    config: Any = getattr(model, "config", None)
    if others and config is not None:
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
