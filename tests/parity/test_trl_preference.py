"""DPO and ORPO: our loss of a batch is TRL's, on the same model and tokens. TRL is no part of the dev extra."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from kit.preference_pairs import random_pairs
from rankwise.config.classification import PreferenceConfig
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.preference import log_probabilities
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens, sides_of

pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")
datasets = pytest.importorskip("datasets")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama").eval()


@pytest.fixture(scope="module")
def other() -> Any:
    """Of the same shape, with other weights, as a model that learned something would be."""
    return tiny_model("llama", seed=1).eval()


def lists(side: Tokens) -> tuple[list[int], list[int]]:
    mask = np.asarray(side.loss_mask)
    ids = np.asarray(side.ids)
    return ids[~mask].tolist(), ids[mask].tolist()


def one_row() -> Any:
    return datasets.Dataset.from_list([{"prompt": "a b", "chosen": "c", "rejected": "d"}])


def our_loss(objective: Objective, model: Any, rows: list[Tokens]) -> tuple[Batch, torch.Tensor]:
    (batch,) = objective.loss.batches(rows, 100_000)
    return batch, objective.loss(model, batch) / batch.count


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_dpo_loss_and_its_gradients_are_trls(beta, model, other, hub_tokenizer, tmp_path):
    from trl import DPOConfig, DPOTrainer

    rows = random_pairs(9, referenced=False)
    objective = objective_named("preference", Facts(preference=PreferenceConfig(loss="dpo", beta=beta)))
    (batch,) = objective.loss.batches(rows, 100_000)
    with torch.no_grad():
        reference = batch.pairs.sums(log_probabilities(objective.loss.predict(other, batch), batch)).numpy()
    order = batch.pairs.positions
    by_row = {position: reference[at] for at, position in enumerate(order)}
    rows = [Tokens(**vars(row) | {"reference": by_row[at]}) for at, row in enumerate(rows)]
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    args = DPOConfig(output_dir=str(tmp_path), beta=beta, report_to=[], use_cpu=True, bf16=False, max_length=None)
    trainer = DPOTrainer(theirs, copy.deepcopy(other), args, train_dataset=one_row(), processing_class=hub_tokenizer)
    examples = []
    for row in rows:
        (prompt, chosen), (_, rejected) = map(lists, sides_of(row))
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    inputs = trainer.data_collator(examples)
    theirs.eval()
    expected = trainer._compute_loss(trainer.model, inputs, False)
    expected.backward()
    _, loss = our_loss(objective, ours, rows)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    assert abs(expected.item() - np.log(2)) > 1e-3, "the models differ, so the loss is not that of a start"
    for one, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, its.grad, atol=TOLERANCE)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_orpo_loss_and_its_gradients_are_trls(beta, model, hub_tokenizer, tmp_path: Path):
    """TRL's likelihood is over the prompt too, which is data.learned=everything here."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows = random_pairs(9, seed=3)
    objective = objective_named("preference", Facts(preference=PreferenceConfig(loss="orpo", beta=beta), prompts=True))
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    args = ORPOConfig(output_dir=str(tmp_path), beta=beta, report_to=[], use_cpu=True, bf16=False)
    trainer = ORPOTrainer(theirs, args, train_dataset=one_row(), processing_class=hub_tokenizer)
    theirs.eval()
    expected, metrics = trainer.get_batch_loss_metrics(trainer.model, orpo_inputs(rows), "train")
    expected.backward()
    batch, loss = our_loss(objective, ours, rows)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    logs = log_probabilities(objective.loss.predict(ours, batch), batch)
    margins = objective.loss.losses(logs, batch).margins
    assert margins.mean().item() == pytest.approx(metrics["rewards/margins"], abs=TOLERANCE)
    for one, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, its.grad, atol=TOLERANCE)


def orpo_inputs(rows: list[Tokens]) -> dict[str, torch.Tensor]:
    sides = [sides_of(row) for row in rows]
    inputs: dict[str, torch.Tensor] = {}
    for name, every in (("chosen", [one for one, _ in sides]), ("rejected", [other for _, other in sides])):
        width = max(len(side.ids) for side in every)
        ids, attention = torch.zeros(len(every), width, dtype=torch.long), torch.zeros(len(every), width).long()
        labels = torch.full((len(every), width), -100)
        for at, side in enumerate(every):
            size, mask = len(side.ids), torch.tensor(np.asarray(side.loss_mask))
            ids[at, :size], attention[at, :size] = torch.tensor(np.asarray(side.ids)), 1
            labels[at, :size] = torch.where(mask, ids[at, :size], -100)
        inputs |= {f"{name}_input_ids": ids, f"{name}_attention_mask": attention, f"{name}_labels": labels}
    return inputs
