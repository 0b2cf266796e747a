"""Rivals of AdaLoRA: gates shrink by half a learning rate and the largest stay; EVA's directions are where Q begins."""

from __future__ import annotations

import pytest
import rivals
import torch
from torch import nn

from rankwise.adapters.adalora import LENGTH
from rankwise.adapters.targets import Choice
from rankwise.config.adapters import AdaLoraConfig
from rankwise.methods import adalora as method
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

RATE = 0.2


def adapted(budget):
    """A narrow layer, whose triplets cost 8 parameters, and a wide one, whose cost 40."""
    spec = AdaLoraConfig(budget=f"{budget} parameters", initial=2, warmup=0, interval=1)
    return inject(nn.ModuleDict({"narrow": nn.Linear(4, 4), "wide": nn.Linear(20, 20)}), spec), spec


def gated(budget=96, steps=10):
    tuned = rivals.Gated(*adapted(budget), steps)
    groups = tuned.parameter_groups()
    return tuned, torch.optim.SGD([{"params": group["params"], "lr": RATE * group["rate"]} for group in groups])


def test_what_the_rows_leave_alone_falls_by_half_a_rate_and_stops_at_zero():
    tuned, optimizer = gated(budget=10_000)
    strengths = tuned.triplets.strengths.data
    strengths[:3] = torch.tensor([-0.5, 0.04, -0.04])
    expected = torch.where(strengths.abs() < RATE / 2, 0.0, strengths - strengths.sign() * RATE / 2)
    tuned.after_step(0, optimizer)
    assert torch.allclose(strengths, expected) and strengths[1] == strengths[2] == 0


@pytest.mark.parametrize("largest", ["narrow", "wide"])
def test_the_largest_gates_stay_whatever_they_cost(largest):
    tuned, optimizer = gated(budget=96, steps=1)
    for label, part in zip(tuned.labels, tuned.triplets.parts, strict=True):
        part.strength.data.fill_(2.0 if label.startswith(largest) else 1.0)
    first = {label: part.rank for label, part in zip(tuned.labels, tuned.triplets.parts, strict=True)}
    tuned.after_step(0, optimizer)
    left = {label: part.rank for label, part in zip(tuned.labels, tuned.triplets.parts, strict=True)}
    assert tuned.final and sum(left.values()) < sum(first.values())
    assert left[largest] == min(first[largest], 96 // {"narrow": 8, "wide": 40}[largest])


def test_q_begins_with_the_directions_of_the_inputs_at_its_usual_length():
    adapters, spec = adapted(96)
    tuned = TrainableAdaLora(adapters, spec, 10)
    wide = tuned.triplets.parts[tuned.labels.index("wide")]
    before, directions = wide.Q.detach().clone(), torch.eye(20)[:1] * 3.0
    rivals.begin_with(tuned, [Choice("wide", 1, 2.0, directions)])
    assert torch.allclose(wide.Q[0], torch.eye(20)[0] * LENGTH) and torch.equal(wide.Q[1:], before[1:])


def test_only_inside_is_adalora_a_rival():
    usual = method.TrainableAdaLora, method.AdaLoraMethod.attach_to
    with rivals.rival("gates"):
        assert method.TrainableAdaLora is rivals.Gated
    with rivals.rival("adalora-eva"):
        assert method.AdaLoraMethod.attach_to is rivals.from_inputs
    with rivals.rival("adalora"):
        assert (method.TrainableAdaLora, method.AdaLoraMethod.attach_to) == usual
    assert (method.TrainableAdaLora, method.AdaLoraMethod.attach_to) == usual
