"""What a base writes by itself: the same for the same base, written once, and by the base alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.forgetting import AnchorConfig
from rankwise.config.models import ModelConfig
from rankwise.inference import own_text
from rankwise.inference.own_text import OPENINGS, own_blocks
from rankwise.methods.inject import inject
from rankwise.runs.records import Event, ProgressUpdate, silent
from rankwise.training.extras.anchor import anchor_text

LENGTH = 12


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"), silent)


def cached(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "anchors").iterdir()
    return file


def test_the_same_base_writes_the_same_and_only_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = own_blocks(model, 40, LENGTH, silent)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are as they were"
    assert first.shape == (64, LENGTH + 1) and len({tuple(row) for row in first.tolist()}) == 64
    opened = [
        row[: len(model.tokenizer.encode(opening)[:2])]
        for row, opening in zip(first[:32].tolist(), OPENINGS, strict=True)
    ]
    assert opened == [list(model.tokenizer.encode(opening)[:2]) for opening in OPENINGS]

    def refused(*_: object) -> None:
        raise AssertionError("it is in the cache")

    with monkeypatch.context() as patched:
        patched.setattr(own_text, "_batch", refused)
        assert torch.equal(own_blocks(model, 40, LENGTH, silent), first)
        assert torch.equal(own_blocks(model, 3, LENGTH, silent), first[:32])
    events: list[Event] = []
    more = own_blocks(model, 70, LENGTH, events.append)
    assert torch.equal(more[:64], first) and len(more) == 96
    assert [event.done for event in events if isinstance(event, ProgressUpdate)] == [2, 3]


def test_a_damaged_entry_is_written_again(model: LoadedModel, tmp_path: Path) -> None:
    first = own_blocks(model, 1, LENGTH, silent)
    file = cached(tmp_path)
    for damage in (b"", file.read_bytes()[:-40], file.read_bytes().replace(b"I64", b"F64")):
        file.write_bytes(damage)
        assert torch.equal(own_blocks(model, 1, LENGTH, silent), first)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("start", [[], [0]], ids=["", "a token before every text"])
def test_blocks_may_be_as_short_as_their_openings(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, start: list[int], length: int
) -> None:
    monkeypatch.setattr(own_text, "_openings", lambda _: [[*start, 5, 6] for _ in OPENINGS])
    assert own_blocks(model, 1, length, silent).shape == (len(OPENINGS), length + 1)


def test_an_adapter_does_not_write_the_text_of_its_base(model: LoadedModel, tmp_path: Path) -> None:
    expected = own_blocks(model, 1, LENGTH, silent)
    cached(tmp_path).unlink()
    adapters = inject(model.module, LoraConfig(rank=4))
    with torch.no_grad():
        for adapter in adapters.adapters().values():
            adapter.B.normal_()
    with adapters.base():
        text = anchor_text(AnchorConfig(tokens=LENGTH), model, 5, silent)
    assert torch.equal(text.blocks, expected) and text.length == LENGTH
    cached(tmp_path).unlink()
    assert not torch.equal(own_blocks(model, 1, LENGTH, silent), expected), "or the adapter would not matter"
