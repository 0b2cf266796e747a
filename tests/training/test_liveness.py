"""What should learn and does not is named after a few steps, and a training in which nothing learns ends there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import TrainingError
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import WarningMessage
from rankwise.training.state import TrainState, adamw
from rankwise.training.trainer import AFTER, Liveness
from rankwise.training.world import bit_sums

STEPS = 12
ROWS = [Tokens(tuple(range(start, start + 12)), (False, *[True] * 11)) for start in range(6)]
TARGETS = ("q_proj", "v_proj")
SPECS = {
    "lora": LoraConfig(rank=2, targets=TARGETS),
    "dora": LoraConfig(rank=2, targets=TARGETS, dora=True),
    "adalora": AdaLoraConfig(budget=1, initial=2, targets=TARGETS, warmup=0.2, final=0.3, interval=2),
    "full": None,
}


def trainable_of(model: nn.Module, method: str):
    spec = SPECS[method]
    if spec is None:
        return FullFineTuning(model, dict)
    adapters = inject(model, spec, seed=0)
    return TrainableLoRA(adapters) if isinstance(spec, LoraConfig) else TrainableAdaLora(adapters, spec, STEPS)


def state_of(model: nn.Module, method: str, rate: float, steps: int = STEPS) -> TrainState:
    trainable, spec = trainable_of(model, method), TrainingConfig(steps=steps)
    return TrainState(trainable, adamw(trainable, spec), lambda step: rate, steps, 1.0, torch.device("cpu"))


def warnings_of(model: nn.Module, method: str, rate: float = 1e-2) -> list[str]:
    """What a training of 12 steps says."""
    state, said = state_of(model, method, rate), []
    train(state, Batches(ROWS, 2, 60, 5), loss_of=summed(SupervisedLogits(model)), callback=said.append)
    return [event.text for event in said if isinstance(event, WarningMessage)]


@pytest.mark.parametrize("method", SPECS)
def test_a_training_in_which_everything_learns_is_quiet(method):
    assert warnings_of(tiny_model("llama"), method) == []


@pytest.mark.parametrize("method", SPECS)
def test_one_step_is_too_early_to_name_the_factors_whose_other_factor_began_at_zero(method):
    model, alive = tiny_model("llama"), Liveness()
    state = state_of(model, method, 1e-2, steps=1)
    alive.begin(state)
    train(state, Batches(ROWS, 2, 60, 5), loss_of=summed(SupervisedLogits(model)))
    assert state.step == 1 and alive.check(state) == []


def test_a_weight_that_the_model_does_not_use_is_named_after_a_few_steps():
    model = tiny_model("llama")
    model.model.unused = nn.Linear(3, 3)
    (line,) = warnings_of(model, "full")
    assert line.startswith("2 of ") and f"got no gradient in {AFTER} steps: model.unused.weight" in line


def test_a_detached_path_is_named():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.register_forward_hook(lambda module, given, made: (made[0].detach(), *made[1:]))
    (line,) = warnings_of(model, "lora")
    assert line == (
        "2 of 4 adapted layers got no gradient in 10 steps: model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.v_proj"
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_updates_below_the_rounding_end_the_training(method):
    with pytest.raises(TrainingError, match=r"changed in 10 steps, so nothing was learned.*\(1e-300\)"):
        warnings_of(tiny_model("llama"), method, rate=1e-300)


@pytest.mark.parametrize(("rate", "warnings"), [(1e-300, 1), (0.0, 0), (1e-2, 0)])
def test_a_training_of_fewer_steps_ends_well_and_says_so(rate, warnings):
    model, liveness = tiny_model("llama"), Liveness()
    state = state_of(model, "full", rate, AFTER - 1)
    liveness.begin(state)
    train(state, Batches(ROWS, 2, 60, 5), loss_of=summed(SupervisedLogits(model)))
    said = [event.text for event in liveness.check(state)]
    assert len(said) == warnings and all(f"changed in {AFTER - 1} steps" in text for text in said)


def test_weights_in_bfloat16_too_coarse_for_their_updates_are_named():
    """A gain of one in bfloat16 moves by 2**-8 or not at all; smaller weights move."""
    lines = warnings_of(tiny_model("llama").bfloat16(), "full", rate=1e-4)
    assert len(lines) == 1 and "did not change in 10 steps" in lines[0] and "layernorm.weight" in lines[0]


def test_the_sum_of_bits_sees_one_bit_and_a_changed_sign():
    value = torch.randn(5, 7)
    before = bit_sums({"a": value, "none": torch.empty(0)})
    value[2, 3] = torch.nextafter(value[2, 3], torch.tensor(9.0))
    assert before.keys() == {"a"} and bit_sums({"a": value}) != before
    assert bit_sums({"a": torch.zeros(3)}) != bit_sums({"a": torch.tensor([0.0, -0.0, 0.0])})
