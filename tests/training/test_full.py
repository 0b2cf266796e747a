"""Full fine-tuning is the same loop over every weight: AdamW as by hand, the base bit for bit, no trace of a pause."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ModelError, RunError, TargetError
from rankwise.forward.fused import has_kernels
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches, collate, portion
from rankwise.rows.text.tokenize import Tokens
from rankwise.training.checkpoints import restore, save, size_of
from rankwise.training.state import TrainState, adamw
from rankwise.training.trainer import rate_factor

CPU, RATE, STEPS = torch.device("cpu"), 1e-2, 12
SPEC = TrainingConfig(weight_decay=0.1, clip=0.05)
IDS = torch.arange(48).reshape(2, 24) % 96
ARCHITECTURES = ("llama", "gpt2", "neox", "gptj")


def random_rows(count: int) -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(4, 40, (count,), generator=generator).tolist():
        ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        rows.append(Tokens(tuple(ids), tuple(place >= length // 3 for place in range(length))))
    return rows


ROWS = random_rows(9)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def whole_of(architecture: str = "llama") -> FullFineTuning:
    return FullFineTuning(tiny_model(architecture), lambda: weights_of(tiny_model(architecture)))


def state_of(whole: FullFineTuning, rate: float = RATE) -> TrainState:
    trainable = whole
    return TrainState(
        trainable, adamw(trainable, SPEC), lambda step: rate * rate_factor(SPEC, step, STEPS), STEPS, SPEC.clip, CPU
    )


def learn(whole: FullFineTuning, state: TrainState, until: int = STEPS) -> list[float]:
    losses: list[float] = []
    state.steps = until
    whole.train()
    batches = Batches(ROWS, 4, 60, 5)
    train(state, batches, loss_of=summed(SupervisedLogits(whole.model)), callback=lambda it: losses.append(it.loss))
    whole.train(False)
    state.steps = STEPS
    return losses


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_before_the_first_step_and_with_a_rate_of_zero_it_is_the_base_bit_for_bit(architecture: str) -> None:
    base, whole = tiny_model(architecture), whole_of(architecture)
    assert torch.equal(logits(whole.model), logits(base))
    learn(whole, state_of(whole, rate=0.0))
    assert_equal(weights_of(whole.model), weights_of(base))
    assert torch.equal(logits(whole.model), logits(base))


def adamw_by_hand(model: nn.Module) -> None:
    """Loshchilov and Hutter 2019, written out, over the mean loss of each step's rows at once."""
    first, second = ({name: torch.zeros_like(value) for name, value in model.named_parameters()} for _ in range(2))
    forward = summed(SupervisedLogits(model))
    batches = Batches(ROWS, 4, 60, 5)
    for step in range(STEPS):
        model.zero_grad()
        parts = batches.at(step)
        count = sum(int(part.loss_mask.sum()) for part in parts)
        for part in parts:
            (forward(part) / count).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        rate = RATE * rate_factor(SPEC, step, STEPS)
        for name, weight in model.named_parameters():
            slope = weight.grad * min(1.0, SPEC.clip / (norm.item() + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            decay = SPEC.weight_decay if weight.dim() > 1 else 0.0
            with torch.no_grad():
                weight.mul_(1 - rate * decay).sub_(rate * mean / (square.sqrt() + 1e-8))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_is_adamw_by_hand_over_every_weight(architecture: str) -> None:
    whole, by_hand = whole_of(architecture), tiny_model(architecture)
    before = weights_of(by_hand)
    adamw_by_hand(by_hand)
    state = state_of(whole)
    losses = learn(whole, state)
    assert losses[-1] < losses[0] and state.trainable.without_gradient(state.optimizer) == []
    wanted = weights_of(by_hand)
    for name, found in weights_of(whole.model).items():
        moved = (wanted[name] - before[name]).abs().max()
        assert moved > 1e-3, f"{name} learned nothing"
        assert (found - wanted[name]).abs().max() < 2e-3 * moved, name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_one_step_moves_every_weight(architecture: str) -> None:
    whole = whole_of(architecture)
    learn(whole, state_of(whole), until=1)
    before = weights_of(tiny_model(architecture))
    assert [name for name, value in weights_of(whole.model).items() if torch.equal(value, before[name])] == []


def test_a_weight_that_gets_no_gradient_is_named() -> None:
    whole = whole_of()
    whole.model.model.unused = nn.Linear(3, 3)
    state = state_of(whole)
    learn(whole, state, until=2)
    assert state.trainable.without_gradient(state.optimizer) == ["model.unused.weight", "model.unused.bias"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_k_micro_batches_are_one_large_batch(architecture: str) -> None:
    # with the model's own dropout, as GPT-2 has it, they would not be

    def moments(limit: int) -> list[torch.Tensor]:
        whole = whole_of(architecture)
        state = state_of(whole)
        assert (len(portion(ROWS, limit)) > 1) == (limit < 1000)
        whole.train()
        batches = Batches(ROWS, len(ROWS), limit, 0)
        state.steps = 1
        train(state, batches, loss_of=summed(SupervisedLogits(whole.model)), callback=lambda event: None)
        return [state.optimizer.state[weight]["exp_avg"] for weight in state.parameters]

    many, one = moments(60), moments(10_000)
    largest = max(float(value.abs().max()) for value in one)
    assert largest > 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(many, one, strict=True)) < 1e-5 * largest


def test_what_is_tied_stays_tied() -> None:
    whole = whole_of("gpt2")
    model = whole.model
    assert "lm_head.weight" not in whole.names, "a weight that two layers share learns once"
    learn(whole, state_of(whole))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with whole.base():
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("step", [1, 5, STEPS - 1])
def test_k_and_then_n_minus_k_steps_are_n_steps_bit_for_bit(tmp_path, step: int) -> None:
    straight = whole_of("gpt2")
    state = state_of(straight)
    wanted = learn(straight, state)
    first = whole_of("gpt2")
    before = state_of(first)
    heard = learn(first, before, until=step)
    save(before, tmp_path / "c")
    second = whole_of("gpt2")
    after = state_of(second)
    restore(after, tmp_path / "c")
    assert_equal(weights_of(second.model), weights_of(first.model))
    assert heard + learn(second, after) == wanted
    assert_equal(weights_of(second.model), weights_of(straight.model))
    for one, other in zip(after.parameters, state.parameters, strict=True):
        assert_equal(after.optimizer.state[one], state.optimizer.state[other])


def test_a_checkpoint_is_as_large_as_it_was_said_to_be_and_fits_nothing_else(tmp_path) -> None:
    whole = whole_of()
    said = size_of(state_of(whole))
    assert said == 12 * sum(weight.numel() for weight in whole.parameters())
    state = state_of(whole)
    learn(whole, state, until=2)
    save(state, tmp_path / "c")
    assert 0 <= (tmp_path / "c" / "state.safetensors").stat().st_size - said < 20_000
    with pytest.raises(RunError, match="belongs to other adapters"):
        restore(state_of(whole_of("gpt2")), tmp_path / "c")
    trainable = TrainableLoRA(inject(tiny_model("llama"), LoraConfig(rank=2)))
    adapter = TrainState(trainable, adamw(trainable, SPEC), lambda step: RATE, STEPS, 1.0, CPU)
    with pytest.raises(RunError, match="belongs to other adapters"):
        restore(adapter, tmp_path / "c")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_disabled_is_the_base_and_afterwards_what_was_there_before(architecture: str) -> None:
    base, whole = tiny_model(architecture), whole_of(architecture)
    learn(whole, state_of(whole))
    tuned, answered = weights_of(whole.model), logits(whole.model)
    for _ in range(2):
        with whole.base():
            assert_equal(weights_of(whole.model), weights_of(base))
            with whole.base():
                assert torch.equal(logits(whole.model), logits(base))
            assert torch.equal(logits(whole.model), logits(base)), "an inner block ends nothing of the outer one"
        assert_equal(weights_of(whole.model), tuned)
        assert torch.equal(logits(whole.model), answered)
    with pytest.raises(KeyboardInterrupt), whole.base():
        raise KeyboardInterrupt
    assert_equal(weights_of(whole.model), tuned)


def test_a_look_at_the_base_between_steps_changes_nothing_of_the_rest() -> None:
    straight, looked_at = whole_of(), whole_of()
    learn(straight, state_of(straight))
    state = state_of(looked_at)
    for step in (3, 7, STEPS):
        learn(looked_at, state, until=step)
        with torch.inference_mode(), looked_at.base():
            logits(looked_at.model)
    assert_equal(weights_of(looked_at.model), weights_of(straight.model))


def test_the_base_is_read_once_and_only_when_it_is_asked_for() -> None:
    read: list[int] = []

    def base() -> dict[str, torch.Tensor]:
        read.append(1)
        return weights_of(tiny_model("llama"))

    whole = FullFineTuning(tiny_model("llama"), base)
    learn(whole, state_of(whole), until=2)
    assert read == []
    for _ in range(3):
        with whole.base():
            pass
    assert read == [1]


def test_a_base_that_is_built_otherwise_is_refused_and_nothing_changes() -> None:
    for other in (tiny_model("gpt2"), tiny_model("llama", vocab=97)):
        whole = FullFineTuning(tiny_model("llama"), lambda other=other: weights_of(other))
        before = weights_of(whole.model)
        with pytest.raises(ModelError, match="different weights or shapes"), whole.base():
            pytest.fail("it was taken")
        assert_equal(weights_of(whole.model), before)


def test_no_kernel_takes_weights_that_learn() -> None:
    model = tiny_model("llama")
    model.requires_grad_(False)
    assert has_kernels(model, 100)
    FullFineTuning(model, lambda: {})
    assert not has_kernels(model, 100), "kernels give no gradient to a layer's own weights"
    loss = summed(SupervisedLogits(model))(collate(ROWS[:2]))
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_model_with_adapters_does_not_learn_whole() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    inject(model, LoraConfig(rank=2))
    with pytest.raises(TargetError, match="already has adapters"):
        FullFineTuning(model, lambda: {})
