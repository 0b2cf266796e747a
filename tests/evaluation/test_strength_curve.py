"""Gain against forgetting: the ends of the curve are the base and the trained model, and losses those of training."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from kit.fast_forms import rows
from kit.summed_losses import summed
from rankwise.config.adapters import LoraConfig
from rankwise.evaluation.forgetting import forgetting, recommended, strength_curve, untold
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.subject import base_and_tuned
from rankwise.evaluation.text import Text
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import portion
from rankwise.runs.evaluations import StrengthPoint
from rankwise.runs.measured import Measurement
from rankwise.training.losses import sum_loss

TEXT = Text(torch.randint(96, (4, 41), generator=torch.Generator().manual_seed(5)), "random words", "0" * 64, ())


def adapted(size: float = 0.1):
    adapters = inject(tiny_model("llama"), LoraConfig(rank=3))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return adapters


def loss_rows(model, documents):
    return [one.sums for one in likelihoods(model, documents)]


def test_rows_of_losses_are_what_training_calls_the_loss_document_by_document():
    model, documents = tiny_model("gpt2"), rows(9)
    found = loss_rows(model, documents)
    cpu, loss = torch.device("cpu"), summed(SupervisedLogits(model))
    for one, document in zip(found, documents, strict=True):
        total, tokens = sum_loss(loss, portion([document], 2048), cpu)
        assert one == pytest.approx([float(total), tokens], rel=1e-5)


def test_the_ends_of_the_curve_are_the_base_and_the_trained_model():
    adapters, documents = adapted(), rows(9)
    model = adapters.model
    curve = strength_curve(
        base_and_tuned(adapters),
        adapters.scaled,
        lambda: loss_rows(model, documents),
        TEXT,
        task="words",
        strengths=(0.5,),
    )
    assert [point.strength for point in curve.points] == [0, 0.5, 1]
    base, half, whole = curve.points
    assert (base.kl.value, base.delta_nll) == (0, 0)
    kept = forgetting(base_and_tuned(adapters), TEXT)
    assert (whole.kl.value, whole.kl.low, whole.kl.high, whole.delta_nll) == (
        kept.kl, kept.low, kept.high, kept.delta_nll,
    )  # fmt: skip
    with adapters.base():
        nats, tokens = (sum(column) for column in zip(*loss_rows(model, documents), strict=True))
    assert base.loss.value == pytest.approx(nats / tokens, rel=1e-12)
    assert 0 < half.kl.value < whole.kl.value
    assert (curve.task, curve.n, curve.sha256) == ("words", 9, TEXT.sha256)


def test_whole_weights_are_turned_as_an_adapter_is():
    adapters, documents = adapted(), rows(5)
    changed = tiny_model("llama")
    with torch.no_grad():
        for path, adapter in adapters.adapters().items():
            changed.get_submodule(path).weight.add_(adapter.delta())
    whole = FullFineTuning(changed, lambda: dict(tiny_model("llama").named_parameters()))

    def curve(tuned):
        return strength_curve(
            base_and_tuned(tuned), tuned.scaled, lambda: loss_rows(tuned.model, documents), TEXT, task="words"
        )

    for one, same in zip(curve(whole).points, curve(adapters).points, strict=True):
        assert one.kl.value == pytest.approx(same.kl.value, rel=1e-2, abs=1e-7)
        assert one.loss.value == pytest.approx(same.loss.value, rel=1e-5)


def points(**losses: float) -> list[StrengthPoint]:
    nothing = Measurement(value=0, low=0, high=0)
    return [
        StrengthPoint(
            strength=float(name[1:]) / 100, loss=Measurement(value=loss, low=loss, high=loss), kl=nothing, delta_nll=0
        )
        for name, loss in losses.items()
    ]


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ({"s0": 2.0, "s25": 1.5, "s50": 1.06, "s75": 1.04, "s100": 1.0}, 0.75),
        ({"s0": 2.0, "s50": 1.05, "s100": 1.0}, 0.5),  # exactly 95 %
        ({"s0": 2.0, "s50": 0.8, "s100": 1.0}, 0.5),  # the largest gain is not at the end
        ({"s0": 2.0, "s50": 1.5, "s100": 1.0, "s150": 0.1}, 1.0),  # what lies beyond 1 does not count
        ({"s0": 2.0, "s50": 2.1, "s100": 2.2}, 1.0),  # nothing is gained
        ({"s0": 2.0, "s50": 2.0, "s100": 2.0}, 1.0),
    ],
)
def test_the_smallest_measured_strength_that_keeps_nearly_all_of_the_gain(losses, wanted):
    assert recommended(points(**losses)) == wanted


def test_the_base_is_the_model_without_its_change_and_no_strength_of_it():
    """So a change that did not go away at strength 0 would be seen."""
    adapters = adapted()
    stuck = strength_curve(
        base_and_tuned(adapters), lambda _: adapters.scaled(1.0), lambda: [[1.0, 1.0]], TEXT, task="words"
    )
    assert stuck.points[0].kl.value > 0


@pytest.mark.parametrize(("gain", "instead"), [(0.3, None), (0.0, 1.0), (-0.2, 0.0)])
def test_where_no_gain_can_be_told_from_none_it_is_said(gain, instead):
    """What is surely worse than its base was called as good as any."""
    noise = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)) * 0.2
    losses = [[[2.0 - gain * at + float(noise[at, item]), 1.0] for item in range(40)] for at in range(3)]
    means = [sum(row[0] for row in rows) / 40 for rows in losses]
    found = untold(points(s0=means[0], s50=means[1], s100=means[2]), losses)
    assert (found and found[0]) == instead
    assert found is None or ("n = 40" in found[1] and ("significantly worse" in found[1]) == (instead == 0))


def test_few_items_recommend_what_was_trained():
    adapters, documents = adapted(), rows(3)
    model = adapters.model
    curve = strength_curve(
        base_and_tuned(adapters), adapters.scaled, lambda: loss_rows(model, documents), TEXT, task="words"
    )
    assert curve.recommended == 1 and "n = 3" in curve.why
