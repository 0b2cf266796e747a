"""A step is the same however its rows are portioned; the end token is trained; nothing bad is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from conftest import tiny_model
from kit.sampling import draws
from kit.summed_losses import summed
from kit.trainers import random_rows, train
from rankwise.adapters.set import AdapterSet
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, TrainingError
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.objectives.causal_lm import token_loss
from rankwise.rows.encoded.batches import Batch, Batches, collate, portion
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import StepRecord
from rankwise.training.losses import sum_loss
from rankwise.training.state import TrainState, adamw
from rankwise.training.step import optimizer_step
from rankwise.training.trainer import rate_factor

CPU = torch.device("cpu")


def adapted(architecture: str = "llama") -> tuple[torch.nn.Module, AdapterSet]:
    model = tiny_model(architecture)
    adapters = inject(model, LoraConfig(rank=4))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for adapter in adapters.adapters().values():
            adapter.B.copy_(torch.randn(adapter.B.shape, generator=generator) * 0.05)
    return model, adapters


def state_of(adapters: AdapterSet, steps: int = 10, rate: float = 1e-2) -> TrainState:
    trainable = TrainableLoRA(adapters)
    return TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: rate, steps, 1.0, CPU)


def gradients(batches: list[Batch]) -> tuple[list[torch.Tensor], float]:
    """Of the step's loss as optimizer_step makes it, caught before the update."""
    model, adapters = adapted()
    state = state_of(adapters, rate=0.0)
    kept: list[torch.Tensor] = []
    state.optimizer.register_step_pre_hook(lambda *_: kept.extend(p.grad.clone() for p in state.parameters))
    state.clip = 1e9
    record, _ = optimizer_step(state, batches, summed(SupervisedLogits(model)), 0.0)
    return kept, record.loss


@pytest.mark.parametrize("budget", [1, 60, 200])
def test_k_micro_batches_are_one_large_batch(budget: int) -> None:
    rows = random_rows(9)
    parts = portion(rows, budget)
    assert len(parts) > 1 and len({int(part.loss_mask.sum()) for part in parts}) > 1, "the counts must differ"
    whole, whole_loss = gradients([collate(rows)])
    portioned, portioned_loss = gradients(parts)
    largest = max(gradient.abs().max() for gradient in whole)
    assert largest > 1e-4
    assert max((a - b).abs().max() for a, b in zip(whole, portioned, strict=True)) <= 1e-6 * max(1, largest)
    assert abs(whole_loss - portioned_loss) <= 1e-6 * whole_loss


def test_the_loss_of_a_step_is_the_mean_over_all_its_loss_tokens() -> None:
    rows = random_rows(5, seed=1)
    model, adapters = adapted()
    total, count = 0.0, 0
    for row in rows:  # written out plainly, one row at a time, with full logits
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for place in range(1, len(row.ids)):
            if row.loss_mask[place]:
                total -= logits[place - 1, row.ids[place]].item()
                count += 1
    record, _ = optimizer_step(state_of(adapters), portion(rows, 50), summed(SupervisedLogits(model)), 0.0)
    assert record.loss_tokens == count and record.tokens == sum(len(row.ids) - 1 for row in rows)
    assert math.isclose(record.loss, total / count, rel_tol=1e-5)


def test_padding_changes_nothing() -> None:
    rows = random_rows(4, seed=2)
    model, _ = adapted()
    forward = SupervisedLogits(model)
    together = sum_loss(summed(forward), [collate(rows)], CPU)
    alone = sum_loss(summed(forward), [collate([row]) for row in rows], CPU)
    assert together[1] == alone[1] and math.isclose(together[0], alone[0], rel_tol=1e-5)


def test_a_pad_token_equal_to_the_end_token_still_leaves_the_end_token_trained(
    hub_tokenizer: PreTrainedTokenizerFast,
) -> None:
    # A collator that masks labels by the pad id would mask the end token too: the model would never learn to stop.
    assert hub_tokenizer.pad_token_id == hub_tokenizer.eos_token_id
    end = hub_tokenizer.eos_token_id
    tokenizer = HubTokenizer(hub_tokenizer, [end])
    template = ChatTemplate.of_model(tokenizer)
    questions = ("What is it?", "What is the capital of France, and what is it called in the language of the land?")
    examples = [Example((Message("user", q), Message("assistant", "Paris.")), "x:1") for q in questions]
    rows = [tokenise(render(example, template), tokenizer) for example in examples]
    batch = collate(rows)
    assert (batch.input_ids == 0).any(), "there is padding"
    assert [int((targets == end).sum()) for targets in batch.targets] == [1, 1]
    model = tiny_model("llama", vocab=len(hub_tokenizer))
    adapters = inject(model, LoraConfig(rank=8))
    state = state_of(adapters, steps=60)
    train(state, Batches(rows, 2, 4096, 0), loss_of=summed(SupervisedLogits(model)), callback=lambda event: None)
    for example in examples:
        prompt = tokenizer.encode(template.text(example.messages[:-1], answer_next=True))
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        assert tokenizer.decode(made[0, len(prompt) :].tolist()) == "Paris.<|im_end|>"


@pytest.mark.parametrize("architecture", ["gpt2", "neox"])
def test_training_lowers_the_loss_and_only_the_adapter_moves(architecture: str) -> None:
    rows = random_rows(2, seed=3)
    model = tiny_model(architecture)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = inject(model, LoraConfig(rank=8))
    records: list[StepRecord] = []
    state = state_of(adapters, 160, rate=3e-2)
    train(state, Batches(rows, 2, 100, 0), loss_of=summed(SupervisedLogits(model)), callback=records.append)
    assert [record.step for record in records] == list(range(1, 161))
    assert records[-1].loss < records[0].loss - 0.15  # the frozen random head is small, and bounds what can be learned
    assert all(adapter.B.abs().max() > 0 for adapter in adapters.adapters().values())
    adapters.remove()
    assert all(torch.equal(model.state_dict()[name], base[name]) for name in base)


def test_the_same_seed_gives_the_same_adapter_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        model = tiny_model("llama").train()
        adapters = inject(model, LoraConfig(rank=4, dropout=0.1), seed=4)
        torch.manual_seed(4)
        batches = Batches(random_rows(8), 4, 100, 4)
        train(state_of(adapters, 5), batches, loss_of=summed(SupervisedLogits(model)), callback=lambda event: None)
        results.append(adapters.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_stops_before_the_update(wrong: float) -> None:
    model, adapters = adapted()
    good = SupervisedLogits(model)
    state = state_of(adapters)
    optimizer_step(state, portion(random_rows(4), 100), summed(good), 0.0)
    before = [parameter.clone() for parameter in state.parameters]
    with pytest.raises(TrainingError, match="step 2 of 10"):
        optimizer_step(state, portion(random_rows(4), 100), summed(lambda batch: good(batch) * wrong), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))
    assert state.step == 1


def test_the_gradient_is_clipped_as_a_whole() -> None:
    model, adapters = adapted()
    state = state_of(adapters, rate=0.0)
    state.clip = 1e-3
    norms: list[float] = []

    def measure(*_: object) -> None:
        norms.append(math.sqrt(sum(float((p.grad**2).sum()) for p in state.parameters)))

    state.optimizer.register_step_pre_hook(measure)
    record, _ = optimizer_step(state, portion(random_rows(4), 100), summed(SupervisedLogits(model)), 0.0)
    assert record.gradient_norm > 1e-2 and math.isclose(norms[0], 1e-3, rel_tol=1e-3)


def test_the_loss_is_summed_in_float32_whatever_the_model_computes_in() -> None:
    batch = collate(random_rows(3))
    count = int(batch.loss_mask.sum())
    logits = torch.randn(count, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    total, tokens = token_loss(logits, batch), batch.count
    assert tokens == count and total.dtype == torch.float32


@given(warmup=st.floats(0, 0.9), steps=st.integers(1, 300), schedule=st.sampled_from(["linear", "cosine", "constant"]))
@settings(max_examples=draws(60), deadline=None)
def test_the_rate_rises_then_never_rises_again_and_stays_within_its_bounds(
    warmup: float, steps: int, schedule: str
) -> None:
    spec = TrainingConfig(warmup=warmup, schedule=schedule)
    rates = [rate_factor(spec, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    warm = round(warmup * steps)
    if warm < steps:
        assert rates[warm] == 1.0


def test_rate_schedules_at_known_points() -> None:
    by_hand: dict[str, Callable[[float], float]] = {
        "linear": lambda p: 1 - p,
        "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
        "constant": lambda p: 1.0,
    }
    for schedule, expected in by_hand.items():
        spec = TrainingConfig(schedule=schedule, warmup=0.1)
        for step in (10, 37, 99):
            assert math.isclose(rate_factor(spec, step, 100), expected((step - 10) / 90), abs_tol=1e-12)


def test_a_warmup_may_be_a_number_of_steps() -> None:
    config = TrainingConfig(steps=40, warmup_steps=10, warmup=0.5, schedule="constant").resolved(100, 576, 1e-3)
    assert [rate_factor(config, step, 40) for step in range(40)] == [
        *((step + 1) / 11 for step in range(10)),
        *[1] * 30,
    ]
    assert rate_factor(TrainingConfig(epochs=1, warmup_steps=0).resolved(100, 576, 1e-3), 0, 7) == 1
    with pytest.raises(ConfigError, match="--warmup-steps"):
        TrainingConfig(steps=10, warmup_steps=10).resolved(100, 576, 1e-3)


def test_the_automatic_rate_falls_with_width_and_an_asked_one_is_kept() -> None:
    auto, given = TrainingConfig(), TrainingConfig(learning_rate=3e-4)
    for config in (LoraConfig(), AdaLoraConfig()):
        assert auto.highest_rate(576, config.auto_rate) == pytest.approx(2e-3)
        assert auto.highest_rate(4096, config.auto_rate) == pytest.approx(4.16e-4, rel=0.01)
        assert given.highest_rate(4096, config.auto_rate) == 3e-4
    for width in (576, 4096):
        assert auto.highest_rate(width, FullConfig().auto_rate) == pytest.approx(
            auto.highest_rate(width, LoraConfig().auto_rate) / 20
        )
    assert given.highest_rate(576, FullConfig().auto_rate) == 3e-4


def test_the_automatic_rate_of_a_classifier_is_lower_and_follows_from_the_objective() -> None:
    for adapter, at_384 in ((LoraConfig(), 9.96e-4), (AdaLoraConfig(), 4.15e-4), (FullConfig(), 8.3e-5)):
        given = {"model": "m", "data": "d", "run": "r", "adapter": adapter}
        classifier = Experiment(**given, objective="sequence-classification")
        assert TrainingConfig().highest_rate(384, classifier.auto_rate) == pytest.approx(at_384, rel=0.01)
        assert Experiment(**given, objective="causal-lm").auto_rate == adapter.auto_rate > classifier.auto_rate
    for adapter, at_384 in ((LoraConfig(), 5.8e-4), (AdaLoraConfig(), 5.8e-4), (FullConfig(), 8.3e-5)):
        images = Experiment(model="m", data="d", run="r", adapter=adapter, objective="image-classification")
        assert TrainingConfig().highest_rate(384, images.auto_rate) == pytest.approx(at_384, rel=0.01)


def test_steps_follow_epochs_and_batch_size() -> None:
    assert TrainingConfig(epochs=2, batch_size=16).total_steps(400) == 50
    assert TrainingConfig(epochs=0.5, batch_size=16).total_steps(10) == 1
    assert TrainingConfig(steps=7).total_steps(400) == 7
    assert TrainingConfig(batch_size=8).total_steps(400) == 100
