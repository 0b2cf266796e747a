"""The plain form with blocks computed twice: less is kept, and losses and gradients have the same bits."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version

from conftest import tiny_model
from kit.fast_forms import rows, unsettle
from kit.summed_losses import summed
from rankwise.config.adapters import LoraConfig
from rankwise.forward.activation_memory import (
    activation_checkpointing,
    blocks_in_order,
    eager_saved_activations,
    saved_bytes,
)
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import collate

KINDS = ["llama", "neox", "gpt2", "gptj"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "dropout", "full"])
def test_blocks_computed_twice_keep_less_and_give_the_same_bits(kind, method):
    model = tiny_model(kind)
    if method == "full":
        tuned = FullFineTuning(model, dict)
    else:
        tuned = inject(model, LoraConfig(rank=3, dropout=0.3 if method == "dropout" else 0.0))
        unsettle(tuned)
    tuned.train()
    batch, loss_of = collate(rows(5)), summed(SupervisedLogits(model))
    blocks = blocks_in_order(model)
    assert len(blocks) > 1
    kept, found = [], []
    for twice in range(len(blocks) + 1):
        with activation_checkpointing(blocks[:twice]):
            torch.manual_seed(0)
            total = loss_of(batch)
            found.append((total, torch.autograd.grad(total, list(tuned.parameters()), allow_unused=True)))
            kept.append(saved_bytes(loss_of, batch, model))
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    for total, gradients in found[1:]:
        assert torch.equal(total, found[0][0])
        for one, other in zip(gradients, found[0][1], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_nothing_is_left_behind_when_it_ends_badly():
    model = tiny_model("llama")
    blocks = blocks_in_order(model)
    with pytest.raises(KeyError), activation_checkpointing(blocks):
        raise KeyError
    assert not any("forward" in vars(block) for block in blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_what_many_tokens_keep_is_known_from_a_few(kind):
    if kind == "gptj" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("GPT-J stores less for the backward pass than what is forecast, before transformers 5.24")
    from rankwise.forward.reference import random_documents

    model = tiny_model(kind)
    FullFineTuning(model, dict)
    loss_of = summed(SupervisedLogits(model))

    def one_row(length):
        return collate(random_documents(96, [length], torch.Generator().manual_seed(0)))

    length = 40  # the tiny models have few positions
    batch = collate(random_documents(96, [length] * 6, torch.Generator().manual_seed(1)))
    assert eager_saved_activations(model, loss_of, one_row, None).of(batch.input_ids.numel()) == pytest.approx(
        saved_bytes(loss_of, batch, model), rel=0.05
    )
