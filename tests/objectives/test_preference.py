"""Losses of pairs of answers: the formulas written out, the same by every backend and division, and their laws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_model
from kit.preference_pairs import random_pairs
from rankwise.config.classification import PreferenceConfig
from rankwise.forward.fused import FusedLoss
from rankwise.kernels.loss import head_log_probabilities
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.preference import dpo, log_of_rest, log_probabilities, orpo
from rankwise.objectives.preference.encode import pair_of
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batch, Pairs
from rankwise.rows.text.tokenize import Tokens, sides_of

OBJECTIVES = [
    objective_named("preference", Facts(preference=PreferenceConfig(loss="dpo", beta=0.3))),
    objective_named("preference", Facts(preference=PreferenceConfig(loss="orpo", beta=0.3))),
    objective_named("preference", Facts(preference=PreferenceConfig(loss="orpo", beta=0.3), prompts=True)),
]
NAMES = ["dpo", "orpo", "orpo with prompts"]
each_loss = pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny_model("llama").eval()


def answer_logs(model: nn.Module, side: Tokens) -> torch.Tensor:
    """The log-probability of each token but the first, by the model alone on this one conversation."""
    ids = torch.tensor(np.asarray(side.ids))
    logits = model(input_ids=ids[None]).logits[0, :-1].double()
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]


def written_out(model: nn.Module, rows: list[Tokens], objective: Objective) -> tuple[float, list[float]]:
    """The mean loss of the pairs and their margins, in plain numbers, without any code of rankwise."""
    losses, margins, beta = [], [], objective.loss.config.beta
    learned: list[float] = []
    for row in rows:
        logs = [answer_logs(model, side).detach().numpy() for side in sides_of(row)]
        masks = [np.asarray(side.loss_mask)[1:] for side in sides_of(row)]
        (c, r), (nc, nr) = (
            [log[mask].sum() for log, mask in zip(logs, masks, strict=True)],
            [mask.sum() for mask in masks],
        )
        if objective.loss.config.loss == "dpo":
            margin = beta * ((c - row.reference[0]) - (r - row.reference[1]))
            losses.append(math.log1p(math.exp(-margin)))
        else:
            pc, pr = math.exp(c / nc), math.exp(r / nr)
            odds = (pc / (1 - pc)) / (pr / (1 - pr))
            losses.append(beta * math.log1p(1 / odds))
            learned += (-logs[0] if objective.loss.prompts else -logs[0][masks[0]]).tolist()
            margin = beta * (c / nc - r / nr)
        margins.append(margin)
    return float(np.mean(losses) + (np.mean(learned) if learned else 0)), margins


@each_loss
def test_the_loss_is_the_formula_written_out(objective, model):
    rows = random_pairs(7)
    (batch,) = objective.loss.batches(rows, 100_000)
    expected, margins = written_out(model, rows, objective)
    compared = objective.loss.losses(log_probabilities(objective.loss.predict(model, batch), batch), batch)
    assert compared.losses.mean().item() == pytest.approx(expected, abs=1e-5)
    in_order = [margins[position] for position in batch.pairs.positions]
    assert compared.margins.tolist() == pytest.approx(in_order, abs=1e-5)


@each_loss
def test_the_fused_backend_has_the_same_losses_and_gradients(objective, model):
    rows = random_pairs(6, seed=1)
    first = model.get_input_embeddings().weight
    gradients = []
    for batch, logs_of in (
        (
            objective.loss.batches(rows, 100_000),
            lambda batch: log_probabilities(objective.loss.predict(model, batch), batch),
        ),
        (objective.loss.flat(rows, 100_000), FusedLoss(model).log_probabilities),
    ):
        (whole,) = batch
        loss = objective.loss.losses(logs_of(whole), whole).losses.sum()
        gradients.append((loss.item(), *torch.autograd.grad(loss, [first])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-5)


@each_loss
@pytest.mark.parametrize("most", [1, 40, 90, 100_000])
def test_a_step_is_the_same_however_it_is_divided(objective, most, model):
    rows = random_pairs(8, seed=2)
    for lay in (objective.loss.batches, objective.loss.flat):
        parts = lay(rows, most)
        assert sorted(position for part in parts for position in part.pairs.positions) == list(range(8))
        assert sum(part.count for part in parts) == 8
    divided = sum(objective.loss(model, part).item() for part in objective.loss.batches(rows, most))
    (whole,) = objective.loss.batches(rows, 100_000)
    assert divided == pytest.approx(objective.loss(model, whole).item(), rel=1e-6)


@each_loss
def test_pairs_that_are_exchanged_have_the_opposite_margin(objective, model):
    """So the accuracy of a model on pairs and on the same pairs exchanged adds up to one."""
    rows = random_pairs(9, seed=4)
    turned = [
        replace(pair_of(*sides_of(row)[::-1]), reference=row.reference[::-1]) for row in rows
    ]  # fmt: skip
    found = []
    for every in (rows, turned):
        (batch,) = objective.loss.batches(every, 100_000)
        compared = objective.loss.losses(log_probabilities(objective.loss.predict(model, batch), batch), batch)
        found.append(dict(zip(batch.pairs.positions, compared.margins.tolist(), strict=True)))
    for number in range(9):
        assert found[0][number] == pytest.approx(-found[1][number], abs=1e-9)


@pytest.mark.parametrize("loss", [dpo, orpo])
def test_gradients_of_the_formulas_are_their_slopes(loss):
    torch.manual_seed(1)
    pairs = Pairs(
        counts=(2, 1, 3, 2), answers=torch.tensor([False, *[True] * 7]),
        reference=torch.randn(2, 2, dtype=torch.float64), chosen_tokens=2.5, positions=(0, 1),
    )  # fmt: skip
    logs = (-torch.rand(8, dtype=torch.float64) - 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda logs: loss(logs, pairs, 0.4).losses, (logs,))


def test_log_probabilities_by_the_kernel_are_those_of_logits():
    torch.manual_seed(2)
    hidden, weight = torch.randn(700, 24, requires_grad=True), torch.randn(50, 24)
    targets, upstream = torch.randint(50, (700,)), torch.randn(700)
    plain = -F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    ours = head_log_probabilities(hidden, weight, targets)
    assert torch.allclose(ours, plain, atol=1e-5)
    expected, found = (torch.autograd.grad((one * upstream).sum(), hidden)[0] for one in (plain, ours))
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(head_log_probabilities(hidden, weight, targets), plain, atol=1e-5)


def test_the_log_of_the_rest_is_exact_at_both_ends():
    logs = torch.tensor([-1e-9, -1e-3, -0.5, -2.0, -40.0, -800.0], dtype=torch.float64)
    near, far = logs.tolist()[:3], logs.tolist()[3:]  # each by the form that is exact there
    expected = [*(math.log(-math.expm1(one)) for one in near), *(math.log1p(-math.exp(one)) for one in far)]
    assert log_of_rest(logs).tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    certain = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    log_of_rest(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()


@each_loss
def test_only_tokens_of_answers_count(objective, model):
    """Another prompt changes what is computed; a prompt that is only in the loss of another side does not."""
    (row,) = random_pairs(1, seed=5)
    (batch,) = objective.loss.batches([row], 100_000)
    chosen, rejected = sides_of(row)
    answers = chosen.loss_count + rejected.loss_count
    prompt = len(chosen.ids) - 1 - chosen.loss_count
    assert int(batch.loss_mask.sum()) == answers + (prompt if objective.loss.prompts else 0)
    assert int(batch.pairs.answers.sum()) == answers


def test_a_batch_moves_with_what_its_pairs_are(model):
    (batch,) = OBJECTIVES[0].loss.batches(random_pairs(3), 100_000)
    moved: Batch = batch.to("meta")
    assert moved.pairs is not None and moved.pairs.reference.device.type == moved.targets.device.type == "meta"
