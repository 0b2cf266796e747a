"""Causal language modelling: predict each token of the loss mask from the tokens before it.

loss = sum over masked tokens t of -log p(token t | tokens before t)        in nats, in float32 or more
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankwise.base.kind import CAUSAL_LM as KIND
from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.saving import save_end_tokens
from rankwise.errors import TemplateError
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.objectives.objective import Objective
from rankwise.rows.encoded.batches import Batch, collate, portion
from rankwise.rows.text.chat_template import PROBE, ChatTemplate
from rankwise.rows.text.example import BREAK, Message
from rankwise.rows.text.outcome import Outcome, Shown
from rankwise.rows.text.rendering import renderings
from rankwise.rows.text.tokenize import Tokens, prompt_ids
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

Messages = tuple[Message, ...]
Rendered = tuple[Messages, tuple[int, ...]]
"""A conversation with its ids, up to where the model is to answer."""


@dataclass(frozen=True)
class CausalLM(Objective):
    name = "causal-lm"
    use = "chat {run} --both"
    model_kind: ClassVar[ModelKind] = KIND
    pipeline_tag, loading_code, base_elsewhere = "text-generation", LOADING, BASE_ELSEWHERE
    format_notes = LABELS_AS_ANSWERS

    @property
    def kind(self) -> ModelKind:
        return self.model_kind

    def prompt(self, model: LoadedModel, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """A conversation up to where the model is to speak, and its ids."""
        text = model.template.text(messages, answer_next=True)
        return text, prompt_ids(text, model.tokenizer)

    def heard(self, messages: Sequence[Message]) -> list[Message]:
        """What the next answer depends on."""
        return list(messages)

    def reader(self, model: LoadedModel, system: Sequence[Message]) -> Callable[[Sequence[int]], str]:
        """Reads prompts as people do, without what the template writes before and behind a single question."""
        before = behind = ""
        with suppress(TemplateError):  # it knows other conversations than this one
            frame = model.template.text([*system, Message("user", PROBE)], answer_next=True)
            before, _, behind = frame.partition(PROBE)
        return lambda ids: model.tokenizer.decode(ids).removeprefix(before).removesuffix(behind)

    def rendered(self, model: LoadedModel, conversations: Sequence[Messages]) -> list[Rendered]:
        """The conversations that the template can render, with their token ids."""
        prompts = list[Rendered]()
        for messages in conversations:
            try:
                prompts.append((messages, tuple(self.prompt(model, messages)[1])))
            except TemplateError:  # it knows no system message, for example
                continue
        return prompts

    def answer_logits(self, model: LoadedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """(T, V) of the tokens of an answer."""
        ids = torch.tensor([[*prompt, *answer]], device=model.precision.device)
        return model.module(input_ids=ids).logits[0, len(prompt) - 1 : -1]

    def collated(self, rows: Sequence[Tokens]) -> Batch:
        """One padded batch, in the order of the rows."""
        return collate(rows)

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

    def save_ends(self, base: Path, template: ChatTemplate, folder: Path) -> None:
        save_end_tokens(base, template, folder)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return portion(rows, max_tokens)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) of the masked tokens alone."""
        return SupervisedLogits(module)(batch)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return token_loss(self.predict(module, batch), batch)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        return random_documents(vocabulary_of(module), lengths, generator)

    def rows_like(
        self, lengths: Sequence[int], share: float, module: nn.Module, tokens: int, turn: int, turns: int
    ) -> list[Tokens]:
        """As long as those of the plan: none is padded."""
        planned = _mixed(lengths)
        first = turn * len(planned) // turns
        taken: list[int] = []
        for length in cycle(planned[first:] + planned[:first]):
            taken.append(min(length, max(1, tokens - sum(taken))))
            if sum(taken) >= tokens:
                break
        drawn = self.random_rows(module, taken, torch.Generator().manual_seed(turn))
        return [end_learned(one, share) for one in drawn]


CAUSAL_LM = CausalLM()


def _mixed(lengths: Sequence[int]) -> list[int]:
    """Long and short ones in turns, so that the first few are like all."""
    ordered, step = sorted(lengths), 7
    return [ordered[at] for first in range(step) for at in range(first, len(ordered), step)]


def end_learned(row: Tokens, share: float) -> Tokens:
    """A row whose loss falls on the last `share` of its tokens alone."""
    count = len(row.ids)
    first = min(count - 1, round(count * (1 - share)))
    return Tokens(row.ids, (False,) * first + (True,) * (count - first))


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
