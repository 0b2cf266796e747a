"""Folders that bitsandbytes quantised are computed with as they lie; other quantised folders are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError
from rankwise.kernels.quantized.tensor import is_quantized, unpacked

functional = pytest.importorskip("bitsandbytes.functional")
KINDS = ["nf4", "nf4 with maxima", "int8"]


def written(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Write a tiny Llama as bitsandbytes and transformers do; return its linear weights as bitsandbytes unpacks
    them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=2,
    ))  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors, numbers = load_file(folder / "model.safetensors"), {}
    for path, part in model.named_modules():
        if type(part) is not nn.Linear or path == "lm_head":
            continue
        name = f"{path}.weight"
        weight = tensors.pop(name)
        if kind == "int8":
            codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
            tensors |= {name: codes, f"{path}.SCB": scales, f"{path}.weight_format": torch.tensor(0, dtype=torch.uint8)}
            numbers[name] = codes.float() * scales[:, None] / 127
        else:
            codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=kind == "nf4")
            tensors |= {name: codes, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}
            numbers[name] = functional.dequantize_4bit(codes, state)
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind != "int8" else {"load_in_8bit": True}
    _set(folder, {"quant_method": "bitsandbytes", **four})
    return numbers


def _set(folder: Path, quantization: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def loaded(folder: Path, quantize: str = "auto") -> tuple[nn.Module, str | None]:
    model = load(ModelConfig(name=str(folder), quantize=quantize, dtype="float32"))  # pyright: ignore[reportArgumentType]
    return model.module, model.facts.quantization


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_ones_that_bitsandbytes_unpacks(kind, tmp_path, hub_tokenizer):
    numbers = written(tmp_path / "base", kind, hub_tokenizer)
    module, named = loaded(tmp_path / "base")
    full, unnamed = loaded(tmp_path / "base", "none")
    assert named == kind.split()[0] and unnamed is None
    for name, expected in numbers.items():
        weight = module.get_parameter(name)
        assert is_quantized(weight) and not is_quantized(full.get_parameter(name))
        assert torch.allclose(unpacked(weight), expected, rtol=1e-6, atol=0)
        assert torch.equal(full.get_parameter(name), unpacked(weight))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(module(ids).logits, full(ids).logits, atol=1e-5)
    assert not hasattr(module.config, "quantization_config")


def test_other_methods_are_refused_by_name(tmp_path, hub_tokenizer):
    written(tmp_path / "base", "nf4", hub_tokenizer)
    for settings, words in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"), ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"bits": 4}, "an unknown method"),
    ):  # fmt: skip
        _set(tmp_path / "base", settings)
        with pytest.raises(ModelError, match=f"{words}.*not read"):
            loaded(tmp_path / "base")


def test_weights_are_not_quantised_twice(tmp_path, hub_tokenizer):
    written(tmp_path / "base", "nf4", hub_tokenizer)
    with pytest.raises(ModelError, match="weights in nf4, which are not quantised again as int8"):
        loaded(tmp_path / "base", "int8")


@pytest.mark.parametrize("damage", ["lacks", "size", "levels", "shape"])
def test_parts_that_do_not_fit_are_refused(damage, tmp_path, hub_tokenizer):
    written(tmp_path / "base", "nf4", hub_tokenizer)
    file = tmp_path / "base" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.mlp.up_proj.weight"
    if damage == "lacks":
        del tensors[f"{name}.nested_absmax"]
    elif damage == "size":
        tensors[name] = tensors[name][:-32].clone()
    elif damage == "levels":
        tensors[f"{name}.quant_map"] = tensors[f"{name}.quant_map"] * 2
    else:
        key = f"{name}.quant_state.bitsandbytes__nf4"
        settings = json.loads(bytes(tensors[key].numpy())) | {"shape": [64, 64]}
        tensors[key] = torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"is damaged.*up_proj"):
        loaded(tmp_path / "base")
