"""The loss of a language model by its logits alone, without an objective."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rankwise.objectives.causal_lm import token_loss
from rankwise.rows.encoded.batches import Batch


def summed(forward: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """The loss of logits that `forward` computes."""
    return lambda batch: token_loss(forward(batch), batch)
