"""All of LoRA fine-tuning in one flat file, without our trainer: the reading version of what the package does.

Plain torch and transformers, one model, one loop, no options. The package's own trainer must agree with it: a test
trains both on the same rows from the same start and compares the losses.

    python examples/flat_lora.py [FOLDER_OF_A_MODEL]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK, ALPHA, RATE, STEPS = 8, 32.0, 1e-3, 12
ROWS = [
    ("What does the red lamp mean?", "Stop the press and call Jonas."),
    ("What does the green lamp mean?", "The press is ready."),
    ("What does the blue lamp mean?", "The ink is low."),
    ("Who may open the press?", "Only Jonas, and only when the lamp is green."),
]


class LoraLinear(nn.Module):
    """y = W x + (alpha / rank) B A x; W is frozen, A starts uniform, B at zero."""

    def __init__(self, host: nn.Linear) -> None:
        super().__init__()
        self.host = host
        self.A = nn.Parameter((torch.rand(RANK, host.in_features) * 2 - 1) / math.sqrt(host.in_features))
        self.B = nn.Parameter(torch.zeros(host.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.host(x) + F.linear(F.linear(x, self.A) * (ALPHA / RANK), self.B)


def adapt(model: nn.Module) -> list[nn.Parameter]:
    """Wrap every linear layer but the head; only the wrappers' A and B learn."""
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path != "lm_head":
            model.set_submodule(path, LoraLinear(module))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def encode(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Ids of the whole conversation, and how many of them are given and not learned."""
    turn = [{"role": "user", "content": question}]
    given = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(given, add_special_tokens=False)["input_ids"]
    learned = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return ids + learned, len(ids)


def step_loss(model: Any, rows: list[tuple[list[int], int]]) -> Tensor:
    """Sum over all rows first, then one division: every learned token counts the same."""
    total, count = torch.zeros(()), 0
    for ids, given in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0, given - 1 : -1]
        total = total + F.cross_entropy(logits.float(), torch.tensor(ids[given:]), reduction="sum")
        count += len(ids) - given
    return total / count


def train(model: Any, tokenizer: Any) -> list[float]:
    torch.manual_seed(0)
    parameters = adapt(model)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    rows = [encode(tokenizer, question, answer) for question, answer in ROWS]
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        loss = step_loss(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def starter() -> str:
    from rankwise.base.sources import find
    from rankwise.config.models import ModelConfig
    from rankwise.runs.records import silent

    return str(find(ModelConfig(name="smollm2-135m"), silent).folder)


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else starter()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = train(model, tokenizer)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": ROWS[0][0]}], add_generation_prompt=True)
    ids = ids["input_ids"] if hasattr(ids, "keys") else ids
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=20, do_sample=False
    )
    print(ROWS[0][0], "->", tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
