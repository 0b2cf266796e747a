"""Sequence to sequence: an encoder reads a text, and a decoder predicts each token of another.

loss = sum over output tokens t of -log p(token t | output tokens before t, input)      in nats, in float32 or more

The decoder's inputs are the output moved one position to the right, behind the token that the model begins with, as
the model itself moves them. Inputs are padded on the right behind an attention mask. Outputs are padded on the right
too: their real tokens see nothing to their right, and padding has no loss.

Both texts are encoded apart from each other.

    ids        = tokens of the input, tokens of the output
    loss mask  = False for the input, True for the output

Each text gets the special tokens that its model expects: `input </s>` and `output </s>` of T5. There is no chat
template. The largest length is that of the input and of the output, each for itself. A longer row is left out, or with
`truncate` the longer of its texts is cut; a cut output has no end token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.kind import ENCODER_DECODER
from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.config.method import ASKED_SEPARATELY
from rankwise.errors import ModelError
from rankwise.forward.reference import OutputLogits
from rankwise.objectives.causal_lm import BASE_ELSEWHERE, CHATTING, CausalLoss, vocabulary_of
from rankwise.objectives.objective import WRITES_TEXT, Facts, Objective
from rankwise.objectives.rows import Messages, ObjectiveRows, Rendered, Writer
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.outcome import Outcome, read_each
from rankwise.rows.text.targets import input_and_output, input_of
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import Callback
from rankwise.runs.row_facts import Outputs

NAME = "sequence-to-sequence"
OUTPUT_SHARE = 0.25
"""The share of the tokens of a random row that the decoder writes."""
LOADING = """\
```python
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoPeftModelForSeq2SeqLM.from_pretrained("path/to/this/folder")
inputs = tokenizer("A text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))
```

Or with rankwise, beside the untouched base model:

```
rankwise generate path/to/this/folder --prompt "A text" --both
```"""

DECODERS = "is for decoders alone, and {model} is an encoder with a decoder. Choose --format peft or merged."
RUNNING = (
    "{value} is for running text, and {model} is an encoder with a decoder, which does not continue one. Leave it out."
)
CANNOT = {
    **WRITES_TEXT,
    "advised on": "advise measures decoders and classifiers, and this model is an encoder with a decoder.",
    "measured for forgetting": "what this model has forgotten is not measured: rankwise measures it on running text, "
    "which an encoder with a decoder does not continue",
    "--text": RUNNING,
    "--blocks": RUNNING,
    "evaluated by lm-eval": "--task {value}: rankwise runs tasks of lm-eval with decoders alone, and {model} is an "
    "encoder with a decoder. Give rows with --data.",
    "evaluated by continuing": "{value} continues a text, and {model} is an encoder with a decoder, which answers "
    "prompts. Give rows with a prompt and an answer.",
    "served": "{model} is an encoder with a decoder, which this server does not serve.",
    "asked beside others": ASKED_SEPARATELY,
    "measured at strengths": "strength measures how a model continues a text, and {model} is an encoder with a "
    "decoder, which writes answers to single texts. Use rankwise evaluate to measure it.",
    **{name: f"--format {name} {DECODERS}" for name in ("portable", "mlx", "gguf-lora", "gguf", "ollama")},
}


INPUT_ALONE = "{%- for message in messages -%}{{ message.content }}{%- endfor -%}"


def bare_template(tokenizer: HubTokenizer) -> ChatTemplate:
    """The texts as they are, which is how an encoder reads them; answers end with the model's end token."""
    return ChatTemplate(tokenizer, INPUT_ALONE, "plain", ends=tokenizer.end_tokens)


@dataclass(frozen=True)
class SequenceEncoder:
    tokenizer: HubTokenizer
    config: DataConfig
    limit: int

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, input_and_output)
        inputs = encode_inputs(self.tokenizer, [given for _, (given, _) in usable])
        outputs = encode_outputs(self.tokenizer, [text for _, (_, text) in usable])
        for (outcome, _), given, output in zip(usable, inputs, outputs, strict=True):
            self._add(outcome, given, output)
        return outcomes

    def _add(self, outcome: Outcome, prompt: list[int], output: list[int]) -> None:
        longest = max(len(prompt), len(output))
        outcome.lengths = [longest]
        if longest > self.limit:
            if self.config.too_long != "truncate":
                outcome.too_long = 1
                return
            outcome.truncated = 1
            (prompt,) = encode_inputs(self.tokenizer, [input_and_output(outcome.example)[0]], self.limit)
        output = output[: self.limit]
        outcome.sequences = [row_of(prompt, output, ended=output[-1] in self.tokenizer.end_ids)]


def row_of(prompt: Sequence[int], output: Sequence[int], *, ended: bool = True) -> Tokens:
    return Tokens((*prompt, *output), (False,) * len(prompt) + (True,) * len(output), ended=ended)


def parted(row: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a row's input and of its output."""
    ids, first = np.asarray(row.ids, np.int64), int(np.argmax(np.asarray(row.loss_mask)))
    return ids[:first], ids[first:]


def encode_inputs(tokenizer: HubTokenizer, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
    """What an encoder reads. With a `limit`, longer texts are cut to it, before their end token."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [ids for ids, _ in tokenizer.encode_texts([(text, "") for text in texts], limit)]

    return _with_typed_tokens_as_text(tokenizer, texts, encode, limit)


def encode_outputs(tokenizer: HubTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """What a decoder is to write."""
    return _with_typed_tokens_as_text(tokenizer, texts, tokenizer.encode_outputs)


def _with_typed_tokens_as_text(
    tokenizer: HubTokenizer, texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]],
    limit: int | None = None,
) -> list[list[int]]:  # fmt: skip
    """The control tokens of some tokenizers, such as T5's, are words of their vocabulary too, so that a text in which
    somebody typed one is encoded in pieces and gets the special tokens around it that every text gets."""
    if not texts:
        return []
    encoded = encode([text.replace(BREAK, "") for text in texts])
    for at, text in enumerate(texts):
        if BREAK in (guarded := tokenizer.special.guarded(text.replace(BREAK, ""))):
            before, behind = _around(encode(["a"])[0], tokenizer.encode("a"))
            room = None if limit is None else limit - len(before) - len(behind)
            encoded[at] = [*before, *prompt_ids(guarded, tokenizer)[:room], *behind]
    return encoded


def _around(framed: list[int], inside: list[int]) -> tuple[list[int], list[int]]:
    """What is put before and behind the ids of a text."""
    first = next(at for at in range(len(framed)) if framed[at : at + len(inside)] == inside)
    return framed[:first], framed[first + len(inside) :]


class OutputRows(ObjectiveRows):
    def segments(self, example: Example, row: Tokens | None, row_encoding: TextWriting) -> list[tuple[str, bool]]:
        """The encoder's input, and the output that the decoder is to write."""
        given, output = input_and_output(example) if row is None else [text for text, _ in row_encoding.segments(row)]
        return [(given, False), (f" -> {output}", True)]


class OutputLoss(CausalLoss):
    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        """Rows of like length together, longest first."""
        parts: list[list[Tokens]] = []
        width = (0, 0)
        for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
            given, output = map(len, parted(row))
            wider = max(width[0], given), max(width[1], output)
            if not parts or sum(wider) * (len(parts[-1]) + 1) > max_tokens:
                parts.append([])
                wider = given, output
            parts[-1].append(row)
            width = wider
        return [batch_of(part) for part in parts]

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, V) of the output tokens alone."""
        return OutputLogits(module)(batch)

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        vocabulary = vocabulary_of(module)
        drawn = [torch.randint(vocabulary, (max(2, length),), generator=generator).tolist() for length in lengths]
        firsts = [min(len(ids) - 1, round(len(ids) * (1 - OUTPUT_SHARE))) for ids in drawn]
        return [row_of(ids[:first], ids[first:]) for ids, first in zip(drawn, firsts, strict=True)]

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        """The text is read and written."""
        (ids,) = encode_inputs(model.tokenizer, [text], model.context_length)
        return OutputWriter().answer_logits(model, ids, ids)


class OutputWriter(Writer):
    def prompt(self, model: LoadedModel, messages: Sequence[Message]) -> tuple[str, list[int]]:
        (ids,) = encode_inputs(model.tokenizer, [input_of(messages)])
        return model.tokenizer.decode(ids), ids

    def heard(self, messages: Sequence[Message]) -> list[Message]:
        """It answers every text alone."""
        return [*(one for one in messages[:-1] if one.role == "system"), *messages[-1:]]

    def reader(self, model: LoadedModel, system: Sequence[Message]) -> Callable[[Sequence[int]], str]:
        return model.tokenizer.readable

    def rendered(self, model: LoadedModel, conversations: Sequence[Messages]) -> list[Rendered]:
        """An encoder reads single texts, without a template."""
        return []

    def answer_logits(self, model: LoadedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        return OutputLogits(model.module)(batch_of([row_of(prompt, answer)]).to(model.precision.device))

    def collated(self, rows: Sequence[Tokens]) -> Batch:
        return batch_of(rows)


WORDS = replace(
    CHATTING,
    use='generate {run} --prompt "A TEXT" --both',
    pipeline_tag="text2text-generation",
    loading=LOADING,
    base_elsewhere=BASE_ELSEWHERE.replace("CausalLM", "Seq2SeqLM"),
    cannot=CANNOT,
)


def sequence_to_sequence(facts: Facts) -> Objective:
    return Objective(
        NAME, "answers", facts, replace(ENCODER_DECODER, finish=finished),
        words=WORDS, loss=OutputLoss(), writer=OutputWriter(),
        rows=OutputRows(Outputs(), lambda _, tokenizer, config, limit: SequenceEncoder(tokenizer, config, limit)),
    )  # fmt: skip


def finished(loaded: LoadedModel, callback: Callback) -> LoadedModel:
    """With the texts alone as its template."""
    if not hasattr(loaded.module, "prepare_decoder_input_ids_from_labels"):
        raise ModelError(
            f"{loaded.source.folder}: this {type(loaded.module).__name__} does not say what its decoder begins "
            "with, so it cannot be trained to write texts."
        )  # fmt: skip
    return loaded.with_template(bare_template(loaded.tokenizer))


def batch_of(rows: Sequence[Tokens]) -> Batch:
    """Inputs (B, S) behind an attention mask, and outputs (B, T) as targets, each padded to the longest."""
    both = [parted(row) for row in rows]
    shape, width = (len(rows), max(len(given) for given, _ in both)), max(len(output) for _, output in both)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full((len(rows), width), IGNORED)
    for at, (given, output) in enumerate(both):
        ids[at, : len(given)], mask[at, : len(given)], targets[at, : len(output)] = given, 1, output
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    count = sum(len(output) for _, output in both)
    return Batch(inputs, torch.from_numpy(targets), count, int(mask.sum()) + count, decoder_tokens=targets.size)
