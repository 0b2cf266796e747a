"""AdaLoRA in the step of the trainer: the loss that is told is that of the task, and a bad step costs nothing."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import TrainingError
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import Batches, portion
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import RankRecord, StepRecord
from rankwise.training.losses import sum_loss
from rankwise.training.state import TrainState, adamw
from rankwise.training.step import optimizer_step

CPU = torch.device("cpu")


def rows(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(6, 30, (1,), generator=generator))
        ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        made.append(Tokens(tuple(ids), tuple(place >= length // 2 for place in range(length))))
    return made


def begun(steps=30, **settings):
    model = tiny_model("llama")
    spec = AdaLoraConfig(**{"budget": "2", "initial": 2, "start": "gaussian", "orthogonality": 50.0} | settings)
    trainable = TrainableAdaLora(inject(model, spec, seed=1), spec, steps)
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 5e-3, steps, 1.0, CPU)
    return model, state


@pytest.mark.parametrize("penalty", ["paper", "reference"])
def test_the_loss_that_is_told_is_the_task_s_alone(penalty):
    # elsewhere the penalty is in training and evaluation losses, or in neither because the loss was computed outside
    model, state = begun(penalty=penalty)
    forward, given = SupervisedLogits(model), portion(rows(), 200)
    for _ in range(3):
        total, tokens = sum_loss(summed(forward), given, CPU)
        record, _ = optimizer_step(state, given, summed(forward), 0.0)
        assert record.loss == pytest.approx(float(total) / tokens, rel=1e-5)
    grams = [part.Q @ part.Q.T for part in state.trainable.triplets.parts]
    assert any((gram - torch.eye(len(gram))).norm() > 1e-2 for gram in grams), "there was something to penalise"


def test_the_penalty_pulls_factors_together_whatever_the_loss_is():
    model, state = begun(steps=60, orthogonality=1.0, final=0.0, warmup=0.9)

    def far():
        grams = [part.Q.detach() @ part.Q.detach().T for part in state.trainable.triplets.parts]
        return sum(float((gram - torch.eye(len(gram))).norm()) for gram in grams)

    before, forward = far(), SupervisedLogits(model)
    for _ in range(50):
        optimizer_step(state, portion(rows(4), 200), summed(forward), 0.0)
    assert far() < 0.3 * before


def test_a_step_that_is_not_finite_leaves_averages_and_adapter_as_they_were():
    model, state = begun()
    good = SupervisedLogits(model)
    for _ in range(5):
        optimizer_step(state, portion(rows(4), 200), summed(good), 0.0)
    importance, triplets = state.trainable.importance, state.trainable.triplets
    live = (*importance.averages, *importance.uncertainties, triplets.vectors.data, triplets.strengths.data)
    before = [value.clone() for value in live]
    with pytest.raises(TrainingError):
        optimizer_step(state, portion(rows(4), 200), summed(lambda batch: good(batch) * math.nan), 0.0)
    assert all(torch.equal(one, other) for one, other in zip(before, live, strict=True))


def test_a_whole_training_ends_with_exactly_the_budget_and_tells_how_it_got_there():
    model, state = begun(orthogonality=0.1)
    heard = []
    batches = Batches(rows(), 4, 200, 0)
    train(state, batches, loss_of=summed(SupervisedLogits(model)), callback=heard.append)
    plans = [event for event in heard if isinstance(event, RankRecord)]
    assert len([event for event in heard if isinstance(event, StepRecord)]) == 30
    assert plans[-1].final and sum(plans[-1].ranks.values()) == 2 * 14 == plans[-1].budget
    assert plans[-1].step == state.trainable.schedule.decided + 1, "the step after which they were decided"
    assert [plan.final for plan in plans[:-1]] == [False] * (len(plans) - 1)
    totals = [sum(plan.ranks.values()) for plan in plans]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    losses = [event.loss for event in heard if isinstance(event, StepRecord)]
    assert sum(losses[-5:]) < sum(losses[:5])
