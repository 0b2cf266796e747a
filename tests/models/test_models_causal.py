"""SupervisedLogits computes the head only where something is learned, and changes nothing else about the model."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from rankwise.data.batches import Batch, collate
from rankwise.data.tokens import Tokens
from rankwise.models.causal import SupervisedLogits

CAUSAL = ("llama", "gpt2", "neox", "gptj")


def batch_of(lengths=(11, 5, 8), seed=0):
    """Rows of different length, each learned in two places apart."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 96, (length,), generator=generator).tolist()
        rows.append(Tokens(tuple(ids), tuple(place in {2, 3, length - 1} for place in range(length))))
    return collate(rows)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_they_are_the_full_logits_at_the_supervised_positions(architecture):
    model, batch = tiny_model(architecture), batch_of()
    with torch.no_grad():
        few = SupervisedLogits(model)(batch)
        full = model(input_ids=batch.inputs).logits
    assert few.shape == (9, 96)
    torch.testing.assert_close(few, full[batch.supervised], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_padding_on_the_right_does_not_change_a_row(architecture):
    model = tiny_model(architecture)
    together, alone = batch_of((11, 5)), batch_of((11, 5))
    narrow = Batch(alone.inputs[1:, :4], alone.targets[1:, :4], 4)
    with torch.no_grad():
        rows = SupervisedLogits(model)(together)[3:]
        row = SupervisedLogits(model)(narrow)
    torch.testing.assert_close(rows, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_gradients_are_those_of_the_full_logits(architecture):
    model, batch = tiny_model(architecture), batch_of()
    targets = batch.targets[batch.supervised]
    gradients = []
    for logits in (SupervisedLogits(model)(batch), model(input_ids=batch.inputs).logits[batch.supervised]):
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 5
    for few, full in zip(*gradients, strict=True):
        torch.testing.assert_close(few, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_model_has_whole_logits_again_afterwards_even_if_it_failed(architecture):
    model, batch = tiny_model(architecture), batch_of()
    outside = Batch(torch.full_like(batch.inputs, 96), batch.targets, batch.tokens)  # no such token
    with torch.no_grad():
        before = model(input_ids=batch.inputs).logits
        with pytest.raises(IndexError):
            SupervisedLogits(model)(outside)
        assert not model.get_output_embeddings()._forward_pre_hooks
        SupervisedLogits(model)(batch)
        assert not model.get_output_embeddings()._forward_pre_hooks
        assert torch.equal(model(input_ids=batch.inputs).logits, before)
