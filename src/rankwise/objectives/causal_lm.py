"""Causal language modelling: predict each token of the loss mask from the tokens before it.

loss = sum over masked tokens t of -log p(token t | tokens before t)        in nats, in float32 or more
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import CAUSAL_LM as KIND
from rankwise.base.kind import ModelKind
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.objectives.objective import Objective
from rankwise.rows.encoded.batches import Batch, portion
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.tokenize import Tokens

LOADING = """\
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

Or with rankwise, beside the untouched base model:

```
rankwise chat path/to/this/folder --both
```"""
"""How PEFT loads an adapter, for its model card."""
BASE_ELSEWHERE = """\
If the base model is elsewhere now, load it first:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("path/to/base"), "path/to/this/folder")
```

With rankwise, add `--base-model path/to/base`."""


@dataclass(frozen=True)
class CausalLM(Objective):
    name = "causal-lm"
    model_kind: ClassVar[ModelKind] = KIND
    encoder = Encoder
    pipeline_tag, loading_code, base_elsewhere = "text-generation", LOADING, BASE_ELSEWHERE

    @property
    def kind(self) -> ModelKind:
        return self.model_kind

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return portion(rows, max_tokens)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) of the masked tokens alone."""
        return SupervisedLogits(module)(batch)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return token_loss(self.predict(module, batch), batch)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        return random_documents(vocabulary_of(module), lengths, generator)


CAUSAL_LM = CausalLM()


def vocabulary_of(module: nn.Module) -> int:
    embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return embeddings.num_embeddings


def summed(forward: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """The loss of logits that `forward` computes."""
    return lambda batch: token_loss(forward(batch), batch)


def token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats, summed over the masked tokens in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, batch.targets[batch.loss_mask], reduction="sum")
