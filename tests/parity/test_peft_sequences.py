"""Adapters over an encoder, a decoder and its cross-attention: they learn, are removed, stored, merged and read by
PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, TaskType

from kit.sequence_models import KINDS, lands, sequence_folder
from rankwise.adapters.formats.peft import read_peft, write_peft
from rankwise.adapters.set import AdapterSet, merge
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.methods.inject import inject
from rankwise.objectives.registry import objective_named
from rankwise.objectives.sequence_to_sequence import SequenceEncoder, batch_of
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.example import Example, Message
from rankwise.runs.records import silent

METHODS = {"lora": LoraConfig(rank=4), "dora": LoraConfig(rank=4, dora=True)}
LEAVES = {"t5": {"q", "k", "v", "o", "wi_0", "wi_1", "wo"},
          "bart": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}}  # fmt: skip
CROSS = {"t5": "EncDecAttention", "bart": "encoder_attn"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(sequence_folder(kind, tmp_path_factory.mktemp("models") / kind))


def fresh(folder: str) -> LoadedModel:
    return load(ModelConfig(name=folder, dtype="float32"), silent, objective_named("sequence-to-sequence").kind)


def batch(model: LoadedModel) -> Batch:
    examples = [
        Example((Message("user", row["input"]), Message("assistant", row["output"])), "rows:1") for row in lands(6)
    ]
    outcomes = SequenceEncoder(model.tokenizer, DataConfig(path="rows"), 64).encode(examples)
    return batch_of([outcome.sequences[0] for outcome in outcomes])


@torch.no_grad()
def logits(module: Any, given: Batch) -> torch.Tensor:
    """By the model's own code, with labels as anybody would give them."""
    return module(**given.inputs, labels=given.targets).logits[given.loss_mask]


def trained(folder: str, spec: LoraConfig) -> tuple[LoadedModel, AdapterSet, Batch, list[float]]:
    """Five steps of AdamW."""
    model = fresh(folder)
    given, adapters = batch(model), inject(model.module, spec)
    optimizer, losses = torch.optim.AdamW(adapters.parameters(), lr=0.02), []
    for _ in range(5):
        loss = objective_named("sequence-to-sequence").loss(model.module, given) / given.count
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, adapters, given, losses


def test_all_linear_layers_of_both_sides_but_the_head_and_the_embeddings(kind, folder):
    model = fresh(folder)
    adapters = inject(model.module, LoraConfig(rank=2))
    assert {path.rpartition(".")[2] for path in adapters.layers} == LEAVES[kind]
    sides = ("encoder.", "decoder.", f"{CROSS[kind]}.")
    assert all(any(side in path for path in adapters.layers) for side in sides)
    others = [path for path, part in model.module.named_modules()
              if isinstance(part, torch.nn.Linear)
               and path.removesuffix(".base_layer") not in adapters.layers]  # fmt: skip
    assert others == ["lm_head"]


@pytest.mark.parametrize("method", METHODS)
def test_five_steps_lower_the_loss_and_the_file_gives_the_same_outputs(folder, tmp_path, method):
    model, adapters, given, losses = trained(folder, METHODS[method])
    assert losses[-1] < losses[0] - 0.05
    adapted, base = logits(model.module, given), logits(fresh(folder).module, given)
    largest = base.abs().max()
    assert (adapted - base).abs().max() > 0.01 * largest
    write_peft(adapters, tmp_path / "adapter", base_model=folder)
    assert PeftConfig.from_pretrained(tmp_path / "adapter").task_type == TaskType.SEQ_2_SEQ_LM
    other = fresh(folder)
    read_peft(other.module, tmp_path / "adapter")
    assert (logits(other.module, given) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    theirs = PeftModel.from_pretrained(fresh(folder).module, str(tmp_path / "adapter")).eval()
    assert (logits(theirs, given) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    merged = merge(read_peft(fresh(folder).module, tmp_path / "adapter"))
    assert (logits(merged, given) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
    adapters.remove()
    assert torch.equal(logits(model.module, given), base)


def test_a_change_of_cross_attention_alone_needs_the_input(kind, folder):
    """What the encoder read reaches the answer through these layers, so their adapter sees another input."""
    model = fresh(folder)
    given, adapters = batch(model), inject(model.module, LoraConfig(rank=2, targets=rf".*{CROSS[kind]}\.(v|v_proj)"))
    assert adapters.layers and all(CROSS[kind] in path for path in adapters.layers)
    with torch.no_grad():
        for adapter in adapters.adapters().values():
            adapter.B.normal_()
    shuffled = Batch({name: value.flip(0) for name, value in given.inputs.items()}, given.targets, given.count, 0)
    with adapters.base():
        base = [logits(model.module, one) for one in (given, shuffled)]
    changes = [logits(model.module, one) - other for one, other in zip((given, shuffled), base, strict=True)]
    assert (changes[0] - changes[1]).abs().max() > 0.01 * changes[0].abs().max()
