"""What the trainer and the row store promise any objective: a loss that is a sum, and targets that may be of rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batch, Batches, portions_of
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.text.tokenize import Tokens
from rankwise.training.backend import Eager
from rankwise.training.trainer import Trainer
from rankwise.training.workload import Workload

KINDS = ["classes", "weighted", "values"]


def labelled_rows(kind: str, count: int = 14) -> list[Tokens]:
    random = np.random.default_rng(3)
    rows = []
    for number in range(count):
        first, second = random.integers(1, 90, random.integers(2, 9)), random.integers(1, 90, random.integers(1, 6))
        ids, types = [*first, *second], [0] * len(first) + [1] * len(second)
        target = float(random.normal()) if kind == "values" else number % 3
        rows.append(Tokens(ids, [False] * len(ids), token_type_ids=types, target=target))
    return rows


@dataclass(frozen=True)
class RowLoss:
    """A whole row has one target: a class, a class with a weight, or a value."""

    kind: str
    name: str = "of-rows"
    targets: None = None

    @property
    def weights(self) -> torch.Tensor:
        return torch.tensor([0.5, 1.0, 4.0]) if self.kind == "weighted" else torch.ones(3)

    def batches(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return [self.collate(part) for part in portions_of(rows, max_tokens)]

    def collate(self, rows: Sequence[Tokens]) -> Batch:
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long) for name in names}
        for at, row in enumerate(rows):
            for name, values in zip(names, (row.ids, np.ones(len(row.ids)), row.token_type_ids), strict=True):
                inputs[name][at, : len(row.ids)] = torch.as_tensor(np.array(values), dtype=torch.long)
        targets = torch.tensor([row.target for row in rows])
        targets = targets if self.kind == "values" else targets.long()
        count = len(rows) if self.kind == "values" else self.weights[targets].sum().item()
        return Batch(inputs, targets, count, sum(len(row.ids) for row in rows))

    def predict(self, module, batch):
        return module(**batch.inputs).logits

    def loss(self, module, batch):
        logits = self.predict(module, batch)
        if self.kind == "values":
            return F.mse_loss(logits[:, 0], batch.targets, reduction="sum")
        return F.cross_entropy(logits, batch.targets, self.weights, reduction="sum")


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def trained(rows, kind: str, max_tokens: int):
    model, objective = classifier(), RowLoss(kind)
    trainable = TrainableLoRA(inject(model, LoraConfig(rank=2, targets=("query", "value"))))
    config = TrainingConfig(steps=6, batch_size=5, max_batch_tokens=max_tokens, learning_rate=0.01)
    backend = Eager(Workload(model, trainable, objective))
    trainer = Trainer(trainable, Batches.of(rows, config, backend.layout), config, backend)
    return [record.loss for record in trainer.run()], [one.detach().clone() for one in trainable.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_learns_targets_of_whole_rows_however_they_are_cut_into_batches(kind):
    rows = labelled_rows(kind)
    losses, together = trained(rows, kind, 10_000)
    pieces, apart = trained(rows, kind, 24)
    assert losses == pytest.approx(pieces, rel=1e-5)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(together, apart, strict=True))
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_step_is_torchs_own_mean_over_its_rows(kind):
    rows = labelled_rows(kind, 5)
    losses, _ = trained(rows, kind, 16)
    model, objective = classifier(), RowLoss(kind)
    batch = objective.collate(rows)
    logits = model(**batch.inputs).logits
    if kind == "values":
        expected = F.mse_loss(logits[:, 0], batch.targets)
    else:
        expected = F.cross_entropy(logits, batch.targets, objective.weights)
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_and_token_types_survive_the_disk_and_a_selection(tmp_path, kind):
    rows = labelled_rows(kind)
    writer = RowWriter()
    for part in (rows[:4], [], rows[4:]):
        writer.add(EncodedRows.of(part))
    writer.write(tmp_path)
    found = SelectedRows(EncodedRows.read(tmp_path), np.array([3, 0, 3]))
    assert found.loss_count == 3
    for row, number in zip(found, (3, 0, 3), strict=True):
        assert list(row.ids) == list(rows[number].ids)
        assert list(row.token_type_ids) == rows[number].token_type_ids
        assert row.target == pytest.approx(rows[number].target) and row.loss_count == 1


def test_a_batch_moves_with_all_that_it_holds():
    batch = RowLoss("classes").collate(labelled_rows("classes"))
    moved = batch.to("meta")
    assert {value.device.type for value in (*moved.inputs.values(), moved.targets)} == {"meta"}
    assert (moved.count, moved.tokens) == (batch.count, batch.tokens)
    assert copy.copy(batch.inputs).keys() == moved.inputs.keys()
