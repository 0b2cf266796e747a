"""An anchor's text is the base's own; with `code`, every second block is code, and neither shows forgetting."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.forgetting import BLOCKS, AnchorConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.evaluation.text import Text, cut, read_text, refuse_trained_on
from rankwise.inference.own_text import own_blocks
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import silent
from rankwise.training.extras import anchor as module
from rankwise.training.extras.anchor import HeldToBase, anchor_text, source_code
from rankwise.training.training import Training

LENGTH = 10


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"), silent)


def default_text(model: LoadedModel, steps: int = 5, *, code: bool = False) -> Text:
    return anchor_text(AnchorConfig(tokens=LENGTH, code=code), model, steps, silent)


def test_blocks_of_both_kinds_take_turns(model: LoadedModel) -> None:
    text, own = default_text(model, code=True), own_blocks(model, 1, LENGTH, silent)
    code = cut(source_code(), model, blocks=3, length=LENGTH).blocks
    assert torch.equal(text.blocks[::2], own[:3]) and torch.equal(text.blocks[1::2], code)
    assert text.length == LENGTH and text.kinds == 2


def test_without_code_the_base_writes_every_block(model: LoadedModel) -> None:
    text = default_text(model)
    assert torch.equal(text.blocks, own_blocks(model, 1, LENGTH, silent)) and text.kinds == 1 and text.origins == ()


@pytest.mark.parametrize("code", [True, False])
@pytest.mark.parametrize(("steps", "least"), [(1, 1), (65, 65), (10_000, BLOCKS)])
def test_no_block_comes_twice_in_a_run_of_few_steps(model: LoadedModel, steps: int, least: int, code: bool) -> None:
    assert len(default_text(model, steps, code=code).blocks) >= least


def test_blocks_may_be_longer_than_the_code_has_enough_of(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then each kind has as many as the code, and the base writes no others."""
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    (tmp_path / "csv.py").write_bytes(b"# \xe9 is not UTF-8\n" + b"import io  # for reading\n" * 3)
    count = len(source_code().content) // (LENGTH + 1)
    text = default_text(model, 1000, code=True)
    assert 4 <= len(text.blocks) < 2 * count
    assert len(next((tmp_path / "cache" / "anchors").iterdir()).read_bytes()) < 10_000


def test_a_python_without_source_files_is_named(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match="has no source files"):
        default_text(model, code=True)
    assert not (tmp_path / "cache" / "anchors").exists(), "nothing was written for it"


def test_the_text_of_a_run_is_the_text_whoever_wrote_it(model: LoadedModel) -> None:
    """It goes from the first process to the others as JSON does."""
    trainable = TrainableLoRA(inject(model.module, LoraConfig(rank=2)))
    held = HeldToBase(AnchorConfig(tokens=LENGTH, code=True))
    expected = default_text(model, code=True)
    world = SimpleNamespace(share=lambda value: json.loads(json.dumps(value())))
    session = SimpleNamespace(callback=silent, world=world)
    held.attached(cast("Training", SimpleNamespace(trainable=trainable, model=model, steps=5, session=session)))
    assert torch.equal(held.text.blocks, expected.blocks)
    assert replace(held.text, blocks=expected.blocks) == expected


def test_the_files_of_the_code_cannot_show_forgetting(model: LoadedModel) -> None:
    held = HeldToBase(AnchorConfig())
    held.text = default_text(model, code=True)
    facts = held.facts()["anchor"]
    assert len(facts.origins) >= len(module.MODULES) - 1, "more than `turtle` is missing in this Python"
    other = cut(read_text(statistics.__file__), model, blocks=2, length=LENGTH)
    with pytest.raises(DataError, match="held to its base on this text"):
        refuse_trained_on(other, DataReport.model_construct(files=(), replay=None), facts)
