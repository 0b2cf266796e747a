"""Memory that runs out: a step is begun again with less at once, and what is learned is as if it always had been."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import is_out_of_memory
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import StepRecord, WarningMessage, silent
from rankwise.training.state import TrainState, adamw

LENGTHS = (30, 9, 14, 22, 6, 17, 11, 25)


def sequences() -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    return [Tokens(tuple(torch.randint(0, 96, (length + 1,), generator=generator).tolist()), (True,) * (length + 1))
            for length in LENGTHS]  # fmt: skip


def trained(
    tokens: int, method: str, room: int | None = None, callback=silent
) -> tuple[list[torch.Tensor], TrainState]:
    """With a loss that asks torch for more memory than there is where more than `room` tokens come at once."""
    torch.manual_seed(0)
    model = tiny_model("llama").double()
    spec = LoraConfig(rank=3) if method == "lora" else AdaLoraConfig(budget="2")
    adapters = inject(model, spec)
    trainable = TrainableLoRA(adapters) if method == "lora" else TrainableAdaLora(adapters, spec, 6)
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 1e-2, 6, 1.0, torch.device("cpu"))
    plain = summed(SupervisedLogits(model))

    def loss_of(batch):
        total = plain(batch)
        if room is not None and batch.input_ids.numel() > room:
            total.backward(retain_graph=True)  # some gradients are there by then
            torch.empty(2**58, dtype=torch.uint8)
        return total

    batches = Batches(sequences(), 6, tokens, 0)
    train(state, batches, loss_of=loss_of, callback=callback, auto_batch=room is not None)
    return [parameter.detach().clone() for parameter in state.parameters], state


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_what_is_learned_is_as_if_it_had_been_small_from_the_beginning(method):
    heard: list[object] = []
    halved, _ = trained(128, method, room=64, callback=heard.append)
    small, _ = trained(64, method)
    assert all(torch.equal(one, other) for one, other in zip(halved, small, strict=True))
    said = [event.text for event in heard if isinstance(event, WarningMessage)]
    assert len(said) == 1 and "training.max_batch_tokens=64" in said[0]
    assert [event.step for event in heard if isinstance(event, StepRecord)] == [1, 2, 3, 4, 5, 6]


def test_a_document_alone_is_the_least_and_then_memory_has_run_out():
    with pytest.raises(MemoryError) as caught:
        trained(128, "lora", room=16)
    assert is_out_of_memory(caught.value)


def test_nobody_who_did_not_ask_for_it_gets_other_portions():
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(rank=3))
    trainable = TrainableLoRA(adapters)
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 1e-2, 6, 1.0, torch.device("cpu"))

    def loss_of(batch):
        return torch.empty(2**58, dtype=torch.uint8).sum()

    with pytest.raises(MemoryError):
        train(state, Batches(sequences(), 6, 128, 0), loss_of=loss_of, callback=silent)
    assert state.step == 0
