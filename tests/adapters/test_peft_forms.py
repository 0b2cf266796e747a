"""PEFT's other forms, whose factors alone do not say the change, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.targets import host_view
from rankwise.errors import AdapterError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_bias", True), ("layer_replication", [[0, 1], [0, 1]]), ("alora_invocation_tokens", [4]),
        ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "OLoRA"),
    ],
)  # fmt: skip
def test_forms_that_factors_do_not_carry_are_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    way = "path_initial_model_for_weight_conversion" if key == "init_lora_weights" else "merge_and_unload"
    with pytest.raises(AdapterError, match=f"{key}.*{way}"):
        read_adapter(tmp_path)


def test_old_names_of_experts_are_refused_by_name(tmp_path: Path) -> None:
    """transformers 5 holds a mixture's experts as stacked parameters, for which this file has no factors."""
    from safetensors.torch import save_file
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    ))  # fmt: skip
    path = "model.layers.0.block_sparse_moe.experts.0.w1"
    key = f"base_model.model.{path}"
    save_file({f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(48, 2)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w1"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=rf"{path}.*does not have"):
        read_adapter(tmp_path, host_view(model))
