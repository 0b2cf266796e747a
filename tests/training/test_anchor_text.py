"""By default half of an anchor's blocks are the base's own text and half are code, and neither shows forgetting."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rankwise.config.adapters import LoraConfig
from rankwise.config.anchor import BLOCKS, AnchorConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import DataError
from rankwise.evaluation.text import Text, cut, read_text, refuse_trained_on
from rankwise.inference.own_text import own_blocks
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import silent
from rankwise.training import anchor_text as module
from rankwise.training.anchor_text import anchor_text, facts_of, source_code, text_of_run

LENGTH = 10


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"), silent)


def default_text(model: LoadedModel, steps: int = 5) -> Text:
    return anchor_text(AnchorConfig(tokens=LENGTH), model, steps, silent)


def test_blocks_of_both_kinds_take_turns(model: LoadedModel) -> None:
    text, own = default_text(model), own_blocks(model, 1, LENGTH, silent)
    code = source_code()
    assert code is not None
    assert torch.equal(text.blocks[::2], own)
    assert torch.equal(text.blocks[1::2], cut(code, model, blocks=len(own), length=LENGTH).blocks)
    assert len(text.blocks) == 2 * len(own) and text.length == LENGTH and text.kinds == 2


def test_a_long_run_has_as_many_blocks_as_are_drawn_from_and_the_base_writes_half(model: LoadedModel) -> None:
    assert len(default_text(model, 10_000).blocks) == BLOCKS


def test_the_text_of_a_run_is_the_text_whoever_wrote_it(model: LoadedModel) -> None:
    """It goes from the first process to the others."""
    trainable = TrainableLoRA(inject(model.module, LoraConfig(rank=2)))
    config = TrainingConfig(anchor=AnchorConfig(tokens=LENGTH), steps=5)
    expected, got = default_text(model), text_of_run(config, model, trainable, silent)
    assert got is not None and torch.equal(got.blocks, expected.blocks)
    assert replace(got, blocks=expected.blocks) == expected


def test_the_files_of_the_code_cannot_show_forgetting(model: LoadedModel) -> None:
    facts = facts_of(default_text(model))
    assert len(facts.origins) >= len(module.MODULES) - 1, "more than `turtle` is missing in this Python"
    other = cut(read_text(statistics.__file__), model, blocks=2, length=LENGTH)
    with pytest.raises(DataError, match="held to its base on this text"):
        refuse_trained_on(other, DataReport.model_construct(files=(), replay=None), facts)


def test_a_python_without_source_files_leaves_the_base_s_own_text(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    text = default_text(model)
    assert torch.equal(text.blocks, own_blocks(model, 1, LENGTH, silent)) and text.origins == () and text.kinds == 1
    assert text.about == f"text that the base model wrote itself: 32 blocks of {LENGTH} tokens"
