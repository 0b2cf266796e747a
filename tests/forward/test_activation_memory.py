"""Counting what a forward pass keeps leaves nothing of that pass behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from conftest import tiny_model
from kit.fast_forms import unsettle
from kit.summed_losses import summed
from rankwise.config.adapters import LoraConfig
from rankwise.forward.activation_memory import eager_saved_activations, saved_activations
from rankwise.forward.reference import SupervisedLogits, random_documents
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.rows.encoded.batches import collate


def one_row(length):
    return collate(random_documents(96, [length], torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("form", ["plain", "fast"])
def test_a_count_leaves_no_graph(method, form):
    model = tiny_model("llama")
    if method == "full":
        FullFineTuning(model, dict)
    else:
        unsettle(inject(model, LoraConfig(rank=3)))
    parameters = [weakref.ref(one) for one in model.parameters()]
    saved_activations(model) if form == "fast" else eager_saved_activations(
        model, summed(SupervisedLogits(model)), one_row, None
    )
    del model
    gc.collect()
    assert not [one for one in parameters if one() is not None]
