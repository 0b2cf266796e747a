"""What adapters over stacked experts cost beside the experts alone, and beside PEFT's: time, and what autograd keeps.

    python bench/experts.py [float32|bfloat16]

One module of OLMoE's experts (32 of width 1,024, of which each of 256 tokens is sent to 8), forward and backward on one
thread, the least processor time of five. PEFT adds B A to the weights of all experts for each pass; ours is a product
of its own for the experts that tokens reach.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import Tensor, nn
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from rankwise.config.adapters import LoraConfig
from rankwise.methods.inject import inject

EXPERTS, EACH, WIDTH, INNER, TOKENS, RANK, TIMES = 32, 8, 1024, 512, 256, 16, 5
TARGETS = ("experts.gate_up_proj", "experts.down_proj")


class Block(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        config: Any = OlmoeConfig(
            num_experts=EXPERTS, num_experts_per_tok=EACH, hidden_size=WIDTH, intermediate_size=INNER
        )
        config._experts_implementation = "grouped_mm"
        self.experts = OlmoeExperts(config)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)
        self.to(dtype).requires_grad_(False)


def given(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    chosen = torch.stack([torch.randperm(EXPERTS)[:EACH] for _ in range(TOKENS)])
    x = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    return x, chosen, torch.rand(TOKENS, EACH, dtype=dtype)


def measured(experts: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    forward, backward = [], []
    for _ in range(TIMES):
        begun = time.process_time()
        y = experts(*inputs)
        forward.append(time.process_time() - begun)
        y.float().square().sum().backward()
        backward.append(time.process_time() - begun - forward[-1])
    own = {weight.untyped_storage().data_ptr() for weight in experts.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = experts(*inputs)
    return {"forward_s": min(forward), "backward_s": min(backward), "kept_mb": sum(kept.values()) / 1e6}


def main() -> None:
    dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    block, inputs = Block(dtype), given(dtype)
    found = {"weights_mb": sum(weight.nbytes for weight in block.parameters()) / 1e6}
    results: dict[str, Any] = {**found, "without": measured(block.experts, inputs)}
    adapters = inject(block, LoraConfig(rank=RANK, targets=TARGETS))
    results["rankwise"] = measured(block.experts, inputs)
    adapters.remove()
    theirs: Any = get_peft_model(block, PeftLora(r=RANK, target_modules=[], target_parameters=list(TARGETS)))  # pyright: ignore[reportArgumentType]
    results["peft"] = measured(theirs.base_model.model.experts, inputs)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
