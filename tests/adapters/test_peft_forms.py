"""PEFT's other forms: a start inside the base's weights is read as the difference, and the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from conftest import tiny_model
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import lay, rewrite
from rankwise.adapters.targets import host_view
from rankwise.errors import AdapterError

IDS = torch.tensor([[5, 17, 80, 3, 44, 9, 61, 2]])
NEAR = 2e-5
"""PEFT takes the start out of the base's weights in float32, which rounds them."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def trained(start: str, folder: Path, **settings: Any) -> tuple[Any, Tensor]:
    """An adapter of PEFT's that began inside the base's weights, saved as its examples save it, and its logits."""
    config = PeftLora(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=start, **settings)
    model: Any = get_peft_model(tiny_model("llama"), config)  # pyright: ignore[reportArgumentType]
    config.init_lora_weights = True
    model.save_pretrained(folder / f"{start}_init")
    config.init_lora_weights = start  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.add_(torch.randn_like(value) * 0.1)
    model.eval()
    model.save_pretrained(folder)
    return model, logits(model)


def answered(folder: Path) -> tuple[nn.Module, Tensor, list[str]]:
    model = tiny_model("llama")
    weights = read_adapter(folder, host_view(model))
    lay(model, weights)
    return model, logits(model), weights.notes


@pytest.mark.parametrize("settings", [{}, {"rank_pattern": {"down_proj": 2}, "use_rslora": True}])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_inside_the_base_is_read_as_the_difference(
    start: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    _, expected = trained(start, tmp_path, **settings)
    _, ours, notes = answered(tmp_path)
    assert far(ours, expected) <= NEAR
    assert far(logits(tiny_model("llama")), expected) > 1e-2
    assert "difference from its start" in notes[0]
    base = tiny_model("llama")
    rewrite(read_adapter(tmp_path, host_view(base)), tmp_path / "plain", {})
    assert far(logits(PeftModel.from_pretrained(base, tmp_path / "plain")), expected) <= NEAR  # pyright: ignore[reportArgumentType]


def test_what_peft_itself_converted_is_read_as_it_is(tmp_path: Path) -> None:
    model, expected = trained("pissa", tmp_path)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "pissa_init")
    assert far(answered(tmp_path / "plain")[1], expected) <= NEAR


def test_without_its_start_it_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    trained("pissa", tmp_path)
    (tmp_path / "pissa_init").rename(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=r"pissa.*path_initial_model_for_weight_conversion"):
        read_adapter(tmp_path)


def test_the_start_of_another_adapter_is_refused(tmp_path: Path) -> None:
    trained("pissa", tmp_path)
    config = tmp_path / "pissa_init" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    with pytest.raises(AdapterError, match="pissa_init"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_bias", True), ("layer_replication", [[0, 1], [0, 1]]), ("alora_invocation_tokens", [4]),
        ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", "pissa_niter_4"),
    ],
)  # fmt: skip
def test_forms_that_factors_do_not_carry_are_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=key):
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
