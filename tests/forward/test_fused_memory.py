"""What the fast form keeps: less where blocks are computed twice, and once where nothing learns; the sums stay."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from kit.fast_forms import rows, unsettle
from rankwise.config.adapters import LoraConfig
from rankwise.forward import fused as fast
from rankwise.forward.activation_memory import saved_activations, saved_bytes
from rankwise.forward.fused import FusedLoss, Prefix, blocks_of, lowest_that_learns
from rankwise.forward.reference import random_documents
from rankwise.methods.inject import inject
from rankwise.rows.encoded.packing import flat
from rankwise.training.workload import KEPT_SHARE, recomputed

KINDS = ["llama", "neox", "gpt2"]
"""With what their blocks share: angles, angles, nothing."""


def learned_from(loss_of, batch, parameters):
    total = loss_of(batch)
    return total, torch.autograd.grad(total, parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [LoraConfig(rank=3), LoraConfig(rank=3, dropout=0.3)])
def test_blocks_that_are_computed_twice_keep_less_and_give_the_same_bits(kind, spec):
    model = tiny_model(kind).bfloat16()
    adapters = inject(model, spec)
    unsettle(adapters)
    adapters.train()
    (batch,) = flat(rows(5), 500)
    kept, found = [], []
    for twice in range(blocks_of(model) + 1):
        torch.manual_seed(0)
        found.append(learned_from(FusedLoss(model, recomputed=twice), batch, adapters.parameters()))
        kept.append(saved_bytes(FusedLoss(model, recomputed=twice), batch, model))
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept) > 2
    for total, gradients in found[1:]:
        assert torch.equal(total, found[0][0])
        assert all(torch.equal(*pair) for pair in zip(gradients, found[0][1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_below_what_learns_is_computed_once(kind, monkeypatch):
    model = tiny_model(kind).double()
    blocks = blocks_of(model)
    adapters = inject(model, LoraConfig(rank=3, targets="all-linear", layers=(blocks - 1,)))
    unsettle(adapters)
    assert lowest_that_learns(model) == blocks - 1
    (batch,) = flat(rows(5), 500)
    loss_of, wanted = FusedLoss(model, lowest=blocks - 1, room=10**6), FusedLoss(model)
    calls: list[int] = []
    original = fast._block

    def counted(*given, **named):
        calls.append(1)
        return original(*given, **named)

    monkeypatch.setattr(fast, "_block", counted)
    for expected in (len(batch.lengths) * (blocks - 1) + 1, 1, 1):
        total, gradients = learned_from(loss_of, batch, adapters.parameters())
        assert len(calls) == expected
        calls.clear()
        right, theirs = learned_from(wanted, batch, adapters.parameters())
        calls.clear()
        assert total.item() == pytest.approx(right.item(), rel=1e-10)
        largest = max(gradient.abs().max() for gradient in theirs)
        assert all((one - other).abs().max() < 1e-9 * largest for one, other in zip(gradients, theirs, strict=True))


def test_the_lowest_that_learns_is_below_all_that_do():
    model = tiny_model("llama").requires_grad_(False)
    model.model.layers[1].self_attn.q_proj.requires_grad_(True)
    assert lowest_that_learns(model) == 1
    model.model.embed_tokens.requires_grad_(True)
    assert lowest_that_learns(model) == 0, "what comes before all blocks learns"
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.requires_grad_(True)
    assert lowest_that_learns(model) == 0


def test_a_prefix_keeps_what_there_is_room_for_and_gives_the_same_without():
    made: list[int] = []

    def compute(ids, positions):
        made.append(ids.shape[1])
        return ids[0, :, None].float() * 2 + positions[0, :, None]

    ids = torch.tensor([[1, 2, 3, 4, 5, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1]])
    whole, none, some = Prefix(compute, 100), Prefix(compute, 0), Prefix(compute, 13)
    for prefix, expected in ((whole, [3, 2, 2]), (none, [3, 2, 2, 3, 2, 2]), (some, [3, 2, 2, 2, 2])):
        first, second = prefix(ids, positions, (3, 2, 2)), prefix(ids, positions, (3, 2, 2))
        assert made == expected
        made.clear()
        assert torch.equal(first, second) and first[:, 0].tolist() == [2, 5, 8, 8, 11, 2, 5]


@pytest.mark.parametrize("spec", [LoraConfig(rank=3), LoraConfig(rank=24), LoraConfig(rank=3, dropout=0.3)])
@pytest.mark.parametrize("lowest", [0, 1])
def test_what_many_tokens_keep_is_known_from_a_few(spec, lowest):
    model = tiny_model("llama").bfloat16()
    adapters = inject(model, spec)
    adapters.train()
    (batch,) = flat(random_documents(96, (120,) * 10, torch.Generator()), 2000)
    counted = saved_bytes(FusedLoss(model, lowest=lowest), batch, model)
    assert saved_activations(model, lowest).of(1200) == pytest.approx(counted, rel=0.02)
    (batch,) = flat(random_documents(96, (20,), torch.Generator()), 2000)
    counted = saved_bytes(FusedLoss(model, lowest=lowest), batch, model)
    assert saved_activations(model, lowest).of(20) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("needed", "free", "expected"), [(7e9, 10e9, 0), (8e9, 10e9, 4), (70e9, 10e9, 29), (8e9, 0, 32)]
)
def test_as_many_blocks_are_computed_twice_as_must_be(needed, free, expected):
    found = recomputed(needed, free, 32)
    assert found == expected
    assert needed * (1 - found / 32) <= max(free * KEPT_SHARE, 0)
