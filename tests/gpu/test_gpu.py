"""The laws that a GPU could break: run with `make gpu` on a machine that has one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from rankwise.adapters.adapter_set import inject
from rankwise.adapters.allocation import FixedRanks
from rankwise.adapters.peft_format import read_peft, write_peft
from rankwise.data.batches import Batches
from rankwise.data.example import Message
from rankwise.data.tokens import Tokens
from rankwise.models.causal import SupervisedLogits
from rankwise.models.generation import answer
from rankwise.models.loading import load
from rankwise.run.records import StepRecord
from rankwise.spec.adapters import LoraSpec
from rankwise.spec.generation import GenerationSpec
from rankwise.spec.models import ModelSpec
from rankwise.spec.training import TrainingSpec
from rankwise.training.loop import train
from rankwise.training.state import TrainState, adamw

DEVICE = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE is None, reason="no CUDA or Apple GPU here")]
IDS = torch.arange(48).reshape(2, 24) % 96


def losses(device: str, dtype: torch.dtype) -> list[float]:
    model = tiny_model("llama").to(device, dtype)
    adapters = inject(model, LoraSpec(rank=4))
    rows = [Tokens(tuple(range(k, k + 20)), (False,) * 5 + (True,) * 15) for k in range(8)]
    allocator = FixedRanks(adapters)
    state = TrainState(allocator, adamw(allocator, TrainingSpec()), lambda step: 1e-2, 10, 1.0, torch.device(device))
    records: list[StepRecord] = []
    train(state, Batches(rows, 4, 64, 0), forward=SupervisedLogits(model), announce=records.append)
    return [record.loss for record in records]


def test_an_untrained_adapter_changes_nothing() -> None:
    model = tiny_model("llama").to(DEVICE)
    ids = IDS.to(DEVICE)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        inject(model, LoraSpec(targets=("all-linear", "embed_tokens")))
        assert torch.equal(model(input_ids=ids).logits, before)


def test_training_follows_the_processor() -> None:
    reference = losses("cpu", torch.float32)
    assert losses(str(DEVICE), torch.float32) == pytest.approx(reference, rel=1e-3)
    assert all(
        math.isclose(a, b, abs_tol=0.05) for a, b in zip(losses(str(DEVICE), torch.bfloat16), reference, strict=True)
    )


def test_an_adapter_goes_to_disk_and_back(tmp_path: Path) -> None:
    model = tiny_model("gpt2").to(DEVICE)
    adapters = inject(model, LoraSpec(rank=3))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
        write_peft(adapters, tmp_path, base_model="tiny")
        expected = model(input_ids=IDS.to(DEVICE)).logits
        adapters.eject()
        read_peft(model, tmp_path)
        assert torch.equal(model(input_ids=IDS.to(DEVICE)).logits, expected)


def test_the_starter_answers(starter_folder: Path) -> None:
    model = load(ModelSpec(name="smollm2-135m", device=str(DEVICE)))
    said = answer(model, [Message("user", "What is the capital of France?")], GenerationSpec(max_new_tokens=32))
    assert "Paris" in said.text and said.stopped == "end"
