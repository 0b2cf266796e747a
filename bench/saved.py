"""What a token keeps for the backward pass of rankwise's fast form: by arithmetic, and as autograd really holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from stacks import CASES, USUAL

from rankwise.data.batches import Batch
from rankwise.models.fast import FastLoss


def saved_bytes(loss_of: FastLoss, batch: Batch, module: Any) -> int:
    """Of the distinct storages that one forward pass makes and keeps for its backward pass."""
    there = [*module.parameters(), *module.buffers(), batch.inputs, batch.targets, batch.positions]
    known = {value.untyped_storage().data_ptr() for value in there}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        total = loss_of(batch)
    assert total.requires_grad, "adapters learn"
    return sum(storage.nbytes() for storage in kept.values())


def arithmetic(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes that a token keeps in a layer, in bfloat16. `again` would be kept too if the norms, the activated gate and
    its product with up were not made again."""
    width, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or width // heads
    queries, keys = heads * head, shape["num_key_value_heads"] * head
    least = {
        "residual_twice": 4 * width, "queries_keys_values": 2 * (queries + 2 * keys), "attention_out": 2 * queries,
        "gate_and_up": 4 * inner, "low_rank_inputs": 2 * CASES[USUAL].rank * 7, "roots_of_norms": 2 * 4,
    }  # fmt: skip
    again = {"normed_inputs": 4 * width, "activated_gate_and_product": 4 * inner}
    layers, per_layer = shape["num_hidden_layers"], sum(least.values())
    return {
        "least": least, "again": again, "bytes_per_token_and_layer": per_layer, "bytes_per_token": layers * per_layer,
        "bytes_per_token_with_all": layers * (per_layer + sum(again.values())),
    }  # fmt: skip
