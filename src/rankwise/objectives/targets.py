"""The loss of whole rows, which text and image classifiers share, and how a model of texts reads its rows.

classes    loss = sum over rows of -w(class) log softmax(logits)[class]     in nats
numbers    loss = sum over rows of (output - target)^2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rankwise.data.batches import Batch
from rankwise.data.preparing import TextWriting
from rankwise.models.loaded import LoadedModel
from rankwise.runs.data_report import TargetFacts
from rankwise.runs.pair_facts import PairFacts
from rankwise.text.encode import EncoderOf


def text_writing(
    model: LoadedModel, encoder: EncoderOf, targets: TargetFacts | None = None, pairs: PairFacts | None = None
) -> TextWriting:
    """By the model's tokenizer and the template that it has now."""
    return TextWriting(
        model.tokenizer,
        model.template,
        model.source.name,
        model.context_length,
        encoder,
        targets=targets,
        pairs=pairs,
    )


def head_settings(targets: TargetFacts) -> dict[str, Any]:
    """Settings of a config.json for a head with these outputs."""
    classes = dict(enumerate(targets.classes))
    names = {"id2label": classes, "label2id": {name: at for at, name in classes.items()}} if classes else {}
    problem = {} if targets.form == "tags" else {"problem_type": _problem(targets)}
    return {"num_labels": targets.outputs, **problem, **names}


def _problem(targets: TargetFacts) -> str:
    return "single_label_classification" if targets.classes else "regression"


def outputs_in(logits: Tensor, targets: TargetFacts) -> Tensor:
    """Logits (B, C) of the classes, or numbers (B,), in float32 or more."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact if targets.classes else exact[:, 0]


def weight_of(values: Tensor, targets: TargetFacts) -> float:
    """The sum of the weights of rows with these targets."""
    return float(torch.tensor(targets.weights)[values].sum()) if targets.weights else len(values)


def target_loss(outputs: Tensor, batch: Batch, targets: TargetFacts) -> Tensor:
    if not targets.classes:
        return F.mse_loss(outputs, batch.targets, reduction="sum")
    weights = torch.tensor(targets.weights).to(outputs) if targets.weights else None
    return F.cross_entropy(outputs, batch.targets, weights, reduction="sum")
