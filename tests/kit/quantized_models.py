"""Tiny models whose linear layers are stored in fewer bits, in memory and as folders that are quantised when loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rankwise.kernels.linear import is_conv1d
from rankwise.kernels.quantized.formats import FORMATS
from rankwise.kernels.quantized.tensor import QuantizedTensor


def wide_model(architecture: str = "llama", vocab: int = 96) -> nn.Module:
    """Two blocks of width 64, which is a block of NF4."""
    torch.manual_seed(0)
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_positions=256, n_embd=64, n_layer=2, n_head=4)).eval()
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def quantize(model: nn.Module, name: str) -> nn.Module:
    """In place: all linear layers but the output head."""
    format = FORMATS[name]
    for path, module in model.named_modules():
        if (type(module) is nn.Linear or is_conv1d(module)) and path != "lm_head":
            weight = module.weight.detach()
            matrix = weight.T if is_conv1d(module) else weight
            packed = QuantizedTensor(format, format.pack(matrix), tuple(matrix.shape), weight.dtype, is_conv1d(module))
            module.weight = nn.Parameter(packed, requires_grad=False)
    return model
