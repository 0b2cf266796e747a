"""Logits of a decoder at the positions of its output, given what its encoder read, and at no others.

The hidden states are reduced to these positions just before the output head, as in reference.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rankwise.data.batches import Batch
from rankwise.forward.reference import logits_at


class OutputLogits:
    """Maps a batch to logits (N, V): one row for each token of the outputs, in the order of `batch.targets`."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, batch: Batch) -> Tensor:
        module = self._module
        real = batch.inputs["attention_mask"]
        with logits_at(module, batch.loss_mask):
            return module(
                input_ids=batch.input_ids.masked_fill(real == 0, module.config.pad_token_id or 0),
                attention_mask=real,
                decoder_input_ids=module.prepare_decoder_input_ids_from_labels(labels=batch.targets),
                use_cache=False,
            ).logits
