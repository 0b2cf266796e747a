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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.base.kind import ModelKind
from rankwise.base.loaded import LoadedModel
from rankwise.base.pooling import read_pooled
from rankwise.forward.reference import usable_positions
from rankwise.objectives.classifier import Classifier, head_settings
from rankwise.objectives.objective import Facts, Objective, Score, head_words
from rankwise.objectives.rows import ObjectiveRows
from rankwise.objectives.text_classification.head import TextHead
from rankwise.objectives.text_classification.head_start import fit_head
from rankwise.objectives.text_classification.loss import TextLoss
from rankwise.objectives.text_classification.rows import TextEncoder, TextInputs
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import Pooling, TargetFacts

NAME = "sequence-classification"
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


@dataclass(frozen=True)
class FittedHead(TextHead):
    loss: TextLoss

    def fit(self, model: LoadedModel, rows: Sequence[Tokens]) -> str | None:
        fitted = fit_head(self.loss, self.modules(model), model.module, rows)
        return fitted and (
            f"the head begins with what fits {fitted.rows:,} rows best while the model is frozen (penalty "
            f"{fitted.penalty:g})"
        )


def text_classification(facts: Facts) -> Objective:
    targets = targets_in(facts)
    loss, inputs = TextLoss(targets), TextInputs(targets)
    return Objective(
        NAME, "classes", facts,
        text_kind("AutoModelForSequenceClassification", "a model that classifies texts", facts),
        words=head_words(targets, loading=loading_of(targets.pooling), pipeline_tag="text-classification"),
        rows=ObjectiveRows(targets, lambda _, tokenizer, config, limit: TextEncoder(tokenizer, config, limit, targets)),
        loss=loss, score=Score.of_classes(targets, baseline="vectors"),
        classifier=Classifier(inputs, loss), head=FittedHead(targets, inputs, loss),
    )  # fmt: skip


def targets_in(facts: Facts) -> TargetFacts:
    assert facts.targets is not None, "the labels of the rows are read before"
    return facts.targets


def text_kind(auto_class: str, described: str, facts: Facts) -> ModelKind:
    """A model of texts with a new head."""
    targets = targets_in(facts)
    return ModelKind(
        auto_class, described, head_seed=facts.seed, settings=head_settings(targets),
        finish=lambda loaded, _: finished(loaded, targets.pooling),
    )  # fmt: skip


def finished(loaded: LoadedModel, pooling: Pooling) -> LoadedModel:
    """With a head that reads what it is to read, and the longest text that the model and its tokenizer take."""
    read_pooled(loaded.module, pooling)
    modules = dict(loaded.module.named_modules())
    loaded = replace(loaded, new_modules=tuple(path for path in loaded.new_modules if path in modules))
    settings: Any = loaded.module.config
    if settings.get_text_config().pad_token_id is None:  # by it a decoder finds the last token of a row
        settings.pad_token_id = settings.get_text_config().pad_token_id = loaded.tokenizer.pad_id
    longest = loaded.tokenizer.hub.model_max_length
    context = min(longest, loaded.context_length or longest, usable_positions(loaded.module) or longest)
    return replace(loaded, context_length=context if context < LONGEST_MODEL else None)


def loading_of(pooling: Pooling) -> str:
    """The head may read another vector than the model's own code gives it."""
    if pooling == "own":
        return LOADING
    code = POOLED.replace("POOLING", pooling).replace("VECTOR", VECTORS[pooling])
    evaluated = 'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
    return LOADING.replace("from peft", "import torch\nfrom peft", 1).replace(evaluated, evaluated + code)
