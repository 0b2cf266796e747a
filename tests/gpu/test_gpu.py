"""The laws that a GPU could break: run with `make gpu` on a machine that has one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from kit.plain_kernels import (
    plain_activated,
    plain_head_loss,
    plain_layer_norm,
    plain_rms_norm,
    plain_rotated,
    plain_shared_linears,
    plain_shifted_rms_norm,
)
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.adapters.formats.peft import read_peft, write_peft
from rankwise.adapters.set import merge
from rankwise.base.loading import load
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import GenerationConfig
from rankwise.forward.fused import FusedLoss
from rankwise.forward.reference import SupervisedLogits
from rankwise.inference.generate import answer
from rankwise.kernels.attention import causal_attention, plain_causal_attention, rotated
from rankwise.kernels.linear import Identity, LinearSpec, apply_prologue, shared_linears
from rankwise.kernels.loss import head_loss
from rankwise.kernels.norm import ActivationPrologue, LayerNorm, RmsNorm, ShiftedRmsNorm
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches, collate
from rankwise.rows.encoded.packing import flat
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import StepRecord
from rankwise.training.state import TrainState, adamw

DEVICE = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE is None, reason="no CUDA or Apple GPU here")]
IDS = torch.arange(48).reshape(2, 24) % 96


def losses(device: str, dtype: torch.dtype) -> list[float]:
    model = tiny_model("llama").to(device, dtype)
    adapters = inject(model, LoraConfig(rank=4))
    rows = [Tokens(tuple(range(k, k + 20)), (False,) * 5 + (True,) * 15) for k in range(8)]
    trainable = TrainableLoRA(adapters)
    state = TrainState(trainable, adamw(trainable, TrainingConfig()), lambda step: 1e-2, 10, 1.0, torch.device(device))
    records: list[StepRecord] = []
    train(state, Batches(rows, 4, 64, 0), loss_of=summed(SupervisedLogits(model)), callback=records.append)
    return [record.loss for record in records]


def test_an_untrained_adapter_changes_nothing() -> None:
    model = tiny_model("llama").to(DEVICE)
    ids = IDS.to(DEVICE)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        inject(model, LoraConfig(targets=("all-linear", "embed_tokens")))
        assert torch.equal(model(input_ids=ids).logits, before)


def test_training_follows_the_processor() -> None:
    reference = losses("cpu", torch.float32)
    assert losses(str(DEVICE), torch.float32) == pytest.approx(reference, rel=1e-3)
    assert all(
        math.isclose(a, b, abs_tol=0.05) for a, b in zip(losses(str(DEVICE), torch.bfloat16), reference, strict=True)
    )


def test_an_adapter_goes_to_disk_and_back(tmp_path: Path) -> None:
    model = tiny_model("gpt2").to(DEVICE)
    adapters = inject(model, LoraConfig(rank=3))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
        write_peft(adapters, tmp_path, base_model="tiny")
        expected = model(input_ids=IDS.to(DEVICE)).logits
        adapters.remove()
        read_peft(model, tmp_path)
        assert torch.equal(model(input_ids=IDS.to(DEVICE)).logits, expected)


def test_the_starter_answers(starter_folder: Path) -> None:
    model = load(ModelConfig(name="smollm2-135m", device=str(DEVICE)))
    said = answer(model, [Message("user", "What is the capital of France?")], GenerationConfig(max_new_tokens=32))
    assert "Paris" in said.text and said.stopped == "end"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_their_plain_twins(dtype: torch.dtype) -> None:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)

    q, k, v, x, turns = drawn(4, 30, 8), drawn(2, 30, 8), drawn(2, 30, 9)[..., :8], drawn(30, 12), drawn(30, 8)
    specs = [LinearSpec(drawn(5, 12), drawn(5), drawn(3, 12), drawn(5, 3)), LinearSpec(drawn(7, 12), None)]
    targets = torch.arange(30, device=DEVICE) % 11
    pairs = [
        (causal_attention(q, k, v, (13, 17), 0.3), plain_causal_attention(q, k, v, (13, 17), 0.3)),
        (rotated(q, turns, turns), plain_rotated(q, turns, turns)),
        (apply_prologue(RmsNorm(drawn(12), 1e-5), x), plain_rms_norm(x, drawn(12), 1e-5)),
        (head_loss(x, drawn(11, 12), targets), plain_head_loss(x, drawn(11, 12), targets)),
        (apply_prologue(ShiftedRmsNorm(drawn(12), 1e-5), x), plain_shifted_rms_norm(x, drawn(12), 1e-5)),
        (apply_prologue(LayerNorm(drawn(12), drawn(12), 1e-5), x), plain_layer_norm(x, drawn(12), drawn(12), 1e-5)),
        (apply_prologue(ActivationPrologue("silu"), x, x + 1), plain_activated("silu", x, x + 1)),
        (apply_prologue(ActivationPrologue("gelu-tanh"), x), plain_activated("gelu-tanh", x)),
        *zip(shared_linears(Identity(), (x,), specs), plain_shared_linears(x, specs), strict=True),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=0.02)


@pytest.mark.parametrize("kind", ["llama", "neox", "gpt2"])
@pytest.mark.parametrize("recomputed", [0, 2])
def test_the_fast_form_computes_what_the_plain_one_does(kind: str, recomputed: int) -> None:
    """A run takes it on processors only; here it is asked for by name."""
    model = tiny_model(kind).to(DEVICE)
    adapters = inject(model, LoraConfig(rank=4))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 0.1)
    sequences = [Tokens(tuple(range(k, k + 20)), (False,) * 5 + (True,) * 15) for k in range(4)]
    (batch,) = flat(sequences, 100)
    ours = FusedLoss(model, recomputed=recomputed)(batch.to(str(DEVICE)))
    theirs = summed(SupervisedLogits(model))(collate(sequences).to(str(DEVICE)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    pairs = zip(*(torch.autograd.grad(total, adapters.parameters()) for total in (ours, theirs)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("budget", ["2", "900 parameters", "6kB"])
def test_ranks_are_decided_as_on_the_processor(budget: str) -> None:
    ranks = []
    for device in ("cpu", str(DEVICE)):
        model = tiny_model("llama").to(device)
        spec = AdaLoraConfig(budget=budget)
        adapters = inject(model, spec)
        trainable = TrainableAdaLora(adapters, spec, 6)
        optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=1e-2)
        for step in range(6):
            model(input_ids=IDS.to(device)).logits.logsumexp(-1).mean().backward()
            trainable.add_penalty()
            optimizer.step()
            trainable.after_step(step, optimizer)
            optimizer.zero_grad(set_to_none=False)
        ranks.append(trainable.triplets.ranks)
        assert merge(adapters) is model
    assert sum(abs(one - other) for one, other in zip(*ranks, strict=True)) <= 2, "scores may tip by rounding"
