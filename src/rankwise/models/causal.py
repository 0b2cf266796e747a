"""A causal model's logits where there is something to predict, and nowhere else.

The output head is the widest layer of a small model and its logits the largest tensor of a step, while only the
answers' tokens have a loss. So the hidden states are cut down to those positions just before the head; what the
architecture does to its logits afterwards (scaling, soft caps) it does as ever, since that is element by element.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch


class SupervisedLogits:
    """Called with a batch, gives (N, V): one row per supervised position, in the order of `batch.targets`."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, batch: Batch) -> Tensor:
        supervised = batch.supervised

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (given[0][supervised], *given[1:])

        hook = self._module.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            return self._module(input_ids=batch.inputs, use_cache=False).logits
        finally:
            hook.remove()
