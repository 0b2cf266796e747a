"""Classification of texts: predict one class, several, or one number, for a whole text or pair of texts.

    classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
    several    loss = sum over rows of the binary cross-entropy of each class, averaged over the classes
    numbers    loss = sum over rows of (output - target)^2

The model is an encoder or a decoder with a new head, whose weights are drawn anew and trained whole beside an adapter.
A decoder's head reads the last token of a row.

A text becomes what the tokenizer makes of it, with the special tokens that its model expects: [CLS] text [SEP] pair
[SEP] of BERT, and two sentences joined by a blank line where a tokenizer has no separator. Control tokens that somebody
typed stay plain text. A row that is too long is left out, or with `truncate` the longer of its texts is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.inspection import pooling_of
from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.pooling import as_block, read_pooled
from rankwise.base.sources import find
from rankwise.base.timm_models import head_modules
from rankwise.config.base import shown
from rankwise.config.data import DataConfig
from rankwise.config.experiment import RowSettings
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, DataError
from rankwise.forward.reference import usable_positions
from rankwise.objectives.objective import (
    AsWritten,
    Graph,
    WithHead,
    head_settings,
    outputs_in,
    values_of,
    weight_of,
)
from rankwise.objectives.predictions import Longest
from rankwise.objectives.text_classification.head_start import fit_head
from rankwise.rows.classes import read_targets
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.forms.turns import text_of
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.outcome import Outcome, RowEncoder, read_each
from rankwise.rows.text.targets import RowTargets, texts_of
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import Callback, StatusMessage
from rankwise.runs.row_facts import Pooling, TargetFacts

TEXTS = (
    "This is good.", "This is bad.", "The delivery came late, and the box was open.", "How much does it cost?",
    "I like it very much!", "No.", "The match ended two to one.", "Please send me the invoice again.",
)  # fmt: skip
LONGEST_MODEL = 1_000_000
"""Tokenizers that know no longest text name a number beyond this."""
LOADING = """\
```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
base = AutoModelForSequenceClassification.from_pretrained(
    "path/or/name/of/base", num_labels=OUTPUTS, ignore_mismatched_sizes=True
)
padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
base.config.pad_token_id = padding  # a decoder's head reads the last token that is none of these
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
print(model(**tokenizer("A text", return_tensors="pt")).logits)
```

The outputs are in the order of `targets.classes` in `data_report.json`. Or with rankwise, for a file of texts:

```
rankwise predict path/to/this/folder --data texts.csv --out predictions.csv
```"""
POOLED = """\

def pooled(body, args, inputs, outputs):  # what this head reads: the POOLING of all tokens, scaled
    states, real = outputs.last_hidden_state, inputs["attention_mask"][..., None].bool()
    vector = VECTOR
    outputs["pooler_output"] = torch.nn.functional.layer_norm(vector, vector.shape[-1:], eps=1e-12)
    outputs["last_hidden_state"] = outputs["pooler_output"][:, None].expand_as(states)
    return outputs

base.base_model.register_forward_hook(pooled, with_kwargs=True)
"""
VECTORS = {
    "mean": "states.masked_fill(~real, 0).sum(1) / real.sum(1)",
    "max": "states.masked_fill(~real, -torch.inf).amax(1)",
    "cls": "states[:, 0]",
}


def padded(rows: Sequence[Tokens]) -> dict[str, Tensor]:
    """Inputs (B, T): rows padded on the right to the longest of them, behind an attention mask."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for at, row in enumerate(rows):
        size = len(row.ids)
        arrays["input_ids"][at, :size], arrays["attention_mask"][at, :size] = row.ids, 1
        if row.token_type_ids is not None:
            arrays["token_type_ids"][at, :size] = row.token_type_ids
    if rows[0].token_type_ids is None:
        del arrays["token_type_ids"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def logits_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits of padded rows."""
    pad: int = getattr(module.config, "pad_token_id", 0)  # pyright: ignore[reportAttributeAccessIssue]
    ids = inputs["input_ids"].masked_fill(~inputs["attention_mask"].bool(), pad)
    return module(**{**inputs, "input_ids": ids, **_without_cache(module)}).logits


def random_ids(module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[list[int]]:
    embeddings = module.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    drawn = [torch.randint(embeddings.num_embeddings, (length,), generator=generator) for length in lengths]
    return [ids.tolist() for ids in drawn]


def _without_cache(module: nn.Module) -> dict[str, bool]:
    """A decoder would keep keys and values for further tokens, and add them again when activations are recomputed."""
    return {"use_cache": False} if "use_cache" in signature(module.forward).parameters else {}


NAME = "sequence-classification"
Target = float | Sequence[float]


@dataclass(frozen=True)
class TextEncoder:
    tokenizer: HubTokenizer
    config: DataConfig
    limit: int
    targets: TargetFacts

    @cached_property
    def row_targets(self) -> RowTargets:
        return RowTargets(self.targets)

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes, usable = read_each(examples, lambda item: (texts_of(item), self.row_targets.target_of(item)))
        encoded = encode_texts(self.tokenizer, [texts for _, (texts, _) in usable])
        for (outcome, (texts, target)), tokens in zip(usable, encoded, strict=True):
            self._add(outcome, texts, tokens, target)
        return outcomes

    def _add(self, outcome: Outcome, texts: tuple[str, str], tokens: Tokens, target: Target) -> None:
        outcome.lengths = [len(tokens.ids)]
        if len(tokens.ids) > self.limit:
            if self.config.too_long != "truncate":
                outcome.too_long = 1
                return
            (tokens,) = encode_texts(self.tokenizer, [texts], self.limit)
            outcome.truncated = 1
        outcome.sequences = [replace(tokens, target=target, name=outcome.example.where)]


def encode_texts(tokenizer: HubTokenizer, texts: Sequence[tuple[str, str]], limit: int | None = None) -> list[Tokens]:
    """Texts without targets. With a `limit`, longer ones are cut to it."""
    encodings = tokenizer.encode_texts(
        [(text.replace(BREAK, ""), pair.replace(BREAK, "")) for text, pair in texts], limit
    )
    return [Tokens(ids, (False,) * len(ids), token_type_ids=types) for ids, types in encodings]


@dataclass(frozen=True)
class TextClassification(WithHead):
    """Which of the three it is follows from its targets."""

    seed: int = 0
    """Draws the new head's weights."""
    name = NAME
    model_class = "AutoModelForSequenceClassification", "a model that classifies texts"
    engine_texts = TEXTS
    pipeline_tag, loading_code = "text-classification", LOADING
    encoder_class: ClassVar[Callable[[HubTokenizer, DataConfig, int, TargetFacts], RowEncoder]] = TextEncoder

    @classmethod
    def of(cls, rows: RowSettings, callback: Callback, begun: Pooling | None) -> Self:
        config = rows.classification
        targets, folder = read_targets(rows.data, config), find(rows.base, callback).folder
        if begun is not None and config.pooling not in ("auto", begun):
            raise ConfigError([
                f"classification.pooling is {config.pooling}, but the head to go on with reads {begun}. Leave the "
                "setting out, or begin a new adapter without --from."
            ])  # fmt: skip
        pooling, note = pooling_of(folder, config)
        if begun is None and note is not None:
            callback(StatusMessage(note))
        return cls(targets.model_copy(update={"pooling": begun or pooling}), rows.seed)

    def load(self, config: ModelConfig, callback: Callback, *, checked: bool = True) -> LoadedModel:
        loaded = super().load(config, callback, checked=checked)
        read_pooled(loaded.module, self.targets.pooling)
        modules = dict(loaded.module.named_modules())
        loaded = replace(loaded, new_modules=tuple(path for path in loaded.new_modules if path in modules))
        settings: Any = loaded.module.config
        if settings.get_text_config().pad_token_id is None:  # by it a decoder finds the last token of a row
            settings.pad_token_id = settings.get_text_config().pad_token_id = loaded.tokenizer.pad_id
        longest = loaded.tokenizer.hub.model_max_length
        context = min(longest, loaded.context_length or longest, usable_positions(loaded.module) or longest)
        return replace(loaded, context_length=context if context < LONGEST_MODEL else None)

    @property
    def kind(self) -> ModelKind:
        return ModelKind(*self.model_class, head_seed=self.seed, settings=head_settings(self.targets))

    def fit_head(self, model: LoadedModel, rows: Sequence[Tokens]) -> str | None:
        fitted = fit_head(self, model, rows)
        return fitted and (
            f"the head begins with what fits {fitted.rows:,} rows best while the model is frozen (penalty "
            f"{fitted.penalty:g})"
        )

    def fitted_baseline(self, accuracy: float) -> dict[str, float]:
        return {"vectors": accuracy}

    @property
    def loading(self) -> str:
        """The head may read another vector than the model's own code gives it."""
        pooling = self.targets.pooling
        if pooling == "own":
            return super().loading
        code = POOLED.replace("POOLING", pooling).replace("VECTOR", VECTORS[pooling])
        evaluated = 'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
        return super().loading.replace("from peft", "import torch\nfrom peft", 1).replace(evaluated, evaluated + code)

    def heads(self, model: LoadedModel) -> tuple[str, ...]:
        """Every module beside the pretrained body, and those inside it whose weights the folder lacks."""
        return tuple(dict.fromkeys([*head_modules(model.module, images=False), *model.new_modules]))

    def encoder(self, template: ChatTemplate, tokenizer: HubTokenizer, config: DataConfig, limit: int) -> RowEncoder:
        return self.encoder_class(tokenizer, config, limit, self.targets)

    def example_of(self, item: Any, where: str) -> Example:
        """A text, or two."""
        if isinstance(item, list | tuple) and len(item) == 2:
            first, second = item
            pair = text_of(second, where, "second text", may_be_empty=True)
            return Example((Message("user", text_of(first, where, "first text"), pair),), where)
        if not isinstance(item, str):
            raise DataError(f"{where}: is {shown(item)}; this classifier reads texts, one or a list of two.")
        return Example((Message("user", text_of(item, where, "text")),), where)

    def encoded(self, model: LoadedModel, examples: Sequence[Example], longest: Longest) -> list[Outcome]:
        outcomes, usable = read_each(examples, texts_of)
        rows = encode_texts(model.tokenizer, [texts for _, texts in usable], longest.cut)
        for (outcome, _), row in zip(usable, rows, strict=True):
            longest.add(outcome, row)
        return outcomes

    def shown(self, model: LoadedModel, rows: Sequence[Tokens], count: int, as_written: AsWritten) -> list[Example]:
        tokenizer, chosen = model.tokenizer, evenly(rows, count)
        found = {} if tokenizer.hub.sep_token_id is None else as_written(chosen)  # else we join the texts of a pair
        texts = [(row.name or "a text", tokenizer.readable([int(token) for token in row.ids])) for row in chosen]
        texts = texts or [("a text", text) for text in self.engine_texts]
        return [found.get(name) or self.example_of(text, name) for name, text in texts]

    def question(self, outcome: Outcome) -> dict[str, Any]:
        (text, pair), ids = texts_of(outcome.example), outcome.sequences[0].ids
        return {"row": outcome.example.where, "text": text, "pair": pair or None, "ids": [*map(int, ids)]}

    def graph(self, model: LoadedModel, limit: int) -> Graph:
        rows = encode_texts(model.tokenizer, [(text, "") for text in TEXTS[:2]])
        inputs, ends = padded(rows), {row.ids[-1] for row in rows} & model.tokenizer.special.texts.keys()

        def logits(ids: Tensor, mask: Tensor, *types: Tensor) -> Tensor:
            if ends:  # transformers.js cuts it off a text that is too long
                ids = ids.masked_fill((torch.arange(ids.shape[1]) == limit - 1) & mask.bool(), min(ends))
            return logits_of(model.module, dict(zip(inputs, (ids, mask, *types), strict=True)))

        return Graph(model.module, logits, inputs, {0: "batch", 1: "sequence"}, "bert")

    def batch_of(self, rows: Sequence[Tokens]) -> Batch:
        inputs = padded(rows)
        targets = self.values(rows, inputs["input_ids"])
        count = weight_of(self.learned(targets, targets != IGNORED), self.targets)
        return Batch(inputs, targets, count, int(inputs["attention_mask"].sum()))

    def values(self, rows: Sequence[Tokens], ids: Tensor) -> Tensor:
        """What the outputs should be, of rows whose padded tokens are `ids` (B, T): (B,) or (B, C)."""
        return values_of(rows, self.targets)

    def predict(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
        return outputs_in(self.learned(logits_of(module, batch.inputs), batch.loss_mask), self.targets)

    def as_read_elsewhere(self, module: nn.Module, dtype: torch.dtype) -> TextClassification:
        """A head that reads a pooled vector gets a block that computes it, and the model's own code reads that."""
        if self.targets.pooling == "own":
            return self
        as_block(module, self.targets.pooling, dtype)
        return replace(self, predicted=self.targets.model_copy(update={"pooling": "own"}))

    def sample_logits(self, model: LoadedModel, text: str) -> Tensor:
        if not model.encoder_decoder:
            return super().sample_logits(model, text)
        rows = encode_texts(model.tokenizer, [(text, "")], model.context_length)  # it reads the end token
        (batch,) = self.batches(rows, 1)
        return self.predict(model.module, batch.to(model.precision.device))

    def random_rows(self, module: nn.Module, lengths: Sequence[int], generator: torch.Generator) -> list[Tokens]:
        nothing = [0.0] * self.targets.outputs if self.targets.form == "several" else 0.0
        return [Tokens(ids, (False,) * len(ids), target=nothing) for ids in random_ids(module, lengths, generator)]
