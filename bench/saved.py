"""What a token keeps for the backward pass of rankwise's fast form, by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacks import CASES, USUAL


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
