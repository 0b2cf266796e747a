"""Causal language modelling: predict each token of the loss mask from the tokens before it.

loss = sum over masked tokens t of -log p(token t | tokens before t)        in nats, in float32 or more
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import CAUSAL_LM
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.objectives.loss import Loss
from rankwise.objectives.objective import WRITES_TEXT, Facts, Objective, Words
from rankwise.objectives.rows import ObjectiveRows, Writer
from rankwise.rows.encoded.batches import Batch, portion
from rankwise.rows.text.example import BREAK
from rankwise.rows.text.outcome import Outcome, Shown
from rankwise.rows.text.rendering import renderings
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.writing import TextWriting

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
LABELS_AS_ANSWERS = {
    "classification": "the objective is causal-lm, so the labels are learned as answers. --objective "
    "sequence-classification trains a classifier with a head instead",
}

CHATTING = Words(
    use="chat {run} --both",
    pipeline_tag="text-generation",
    loading=LOADING,
    base_elsewhere=BASE_ELSEWHERE,
    cannot=WRITES_TEXT,
    format_notes=LABELS_AS_ANSWERS,
)


class CausalLoss(Loss):
    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return portion(rows, max_tokens)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) of the masked tokens alone."""
        return SupervisedLogits(module)(batch)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        return token_loss(self.predict(module, batch), batch)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        return random_documents(vocabulary_of(module), lengths, generator)


class ConversationRows(ObjectiveRows):
    def preview(self, outcome: Outcome, row_encoding: TextWriting, encoder: Any) -> list[Shown]:
        """The rendered conversations, and what remains of those that are truncated or split."""
        example, sequences, spec = outcome.example, outcome.sequences, encoder.config
        made = [
            [(part.text.replace(BREAK, ""), spec.learned == "everything" or part.learned) for part in one.segments]
            for one in renderings(example, row_encoding.template, separately=spec.answers == "apart")
        ]
        if not sequences:
            why = f"longer than {encoder.limit:,} tokens" if outcome.too_long else "no answer is left after truncation"
            pairs = zip(made, outcome.lengths, strict=True)
            return [Shown(example.where, segments, length, 0, why) for segments, length in pairs]
        if len(made) != len(sequences) or outcome.truncated:
            made = [row_encoding.segments(sequence) for sequence in sequences]
        return [
            Shown(example.where, segments, len(sequence.ids), sequence.loss_count)
            for segments, sequence in zip(made, sequences, strict=True)
        ]


def causal_lm(facts: Facts) -> Objective:
    return Objective(
        "causal-lm", "answers", facts, CAUSAL_LM,
        words=CHATTING, rows=ConversationRows(), loss=CausalLoss(), writer=Writer(),
    )  # fmt: skip


def vocabulary_of(module: nn.Module) -> int:
    embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return embeddings.num_embeddings


def random_sides(
    module: nn.Module, lengths: Sequence[int], generator: torch.Generator
) -> Iterator[tuple[Tokens, Tokens]]:
    """Two conversations for each length, of so many tokens in all, with a loss on every token."""
    halves = [half for length in lengths for half in (max(1, length // 2), max(1, length - length // 2))]
    sides = random_documents(vocabulary_of(module), halves, generator)
    return zip(sides[::2], sides[1::2], strict=True)


def token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats, summed over the masked tokens in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, batch.targets[batch.loss_mask], reduction="sum")
