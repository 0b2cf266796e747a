"""A base's answers to general instructions: drawn once, by the base alone, and learned where it wrote them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.inference import own_text as module
from rankwise.inference.generate import asking_ids
from rankwise.inference.own_text import own_answers
from rankwise.methods.inject import inject
from rankwise.rows.instructions import instructions
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import Event, ProgressUpdate, silent

LIMIT = 400


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(module, "instructions", lambda: instructions()[:5])
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"), silent)


def cached(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "answers").iterdir()
    return file


def ids(rows: list[Tokens]) -> list[tuple[int, ...]]:
    return [tuple(row.ids) for row in rows]


def test_the_instructions_are_many_short_and_different() -> None:
    texts = instructions()
    assert len(texts) == len(set(texts)) == 64
    assert all(2 < len(text) < 500 for text in texts)


def test_a_row_is_the_prompt_of_the_template_and_what_was_drawn_after_it(model: LoadedModel) -> None:
    rows = own_answers(model, 1, LIMIT, silent)
    assert len(rows) == 5
    for text, row in zip(instructions(), rows, strict=False):
        prompt = asking_ids(model, [Message("user", text)])
        assert list(row.ids[: len(prompt)]) == prompt
        assert list(row.loss_mask) == [False] * len(prompt) + [True] * (len(row.ids) - len(prompt))
        answer = row.ids[len(prompt) :]
        assert 1 <= len(answer) <= 6
        ends = [place for place, token in enumerate(answer) if token in model.template.end_ids]
        assert ends in ([], [len(answer) - 1]), "nothing is learned behind an end"
        assert ends or len(answer) == 6, "only a cut answer has none"


def test_the_same_base_draws_the_same_and_only_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = own_answers(model, 2, LIMIT, silent)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are as they were"
    assert len(first) == 10 and ids(first[:5]) != ids(first[5:]), "each draw is another one"

    def refused(*_: object) -> None:
        raise AssertionError("it is in the cache")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_draw", refused)
        assert ids(own_answers(model, 2, LIMIT, silent)) == ids(first)
        assert ids(own_answers(model, 1, LIMIT, silent)) == ids(first[:5])
    events: list[Event] = []
    assert ids(own_answers(model, 3, LIMIT, events.append)[:10]) == ids(first)
    assert [event.done for event in events if isinstance(event, ProgressUpdate)][-1] == 15


def test_a_damaged_entry_is_drawn_again(model: LoadedModel, tmp_path: Path) -> None:
    first = ids(own_answers(model, 1, LIMIT, silent))
    file = cached(tmp_path)
    for damage in (b"", file.read_bytes()[:-8], file.read_bytes().replace(b"I64", b"F64")):
        file.write_bytes(damage)
        assert ids(own_answers(model, 1, LIMIT, silent)) == first


def test_another_template_has_answers_of_its_own(model: LoadedModel, tmp_path: Path) -> None:
    own_answers(model, 1, LIMIT, silent)
    template = type(model.template)(model.tokenizer, "{% for m in messages %}{{ m.content }}: {% endfor %}", "other")
    other = own_answers(model.with_template(template), 1, LIMIT, silent)
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 2
    assert ids(other) != ids(own_answers(model, 1, LIMIT, silent))


def test_an_adapter_does_not_write_the_answers_of_its_base(model: LoadedModel, tmp_path: Path) -> None:
    expected = ids(own_answers(model, 1, LIMIT, silent))
    cached(tmp_path).unlink()
    adapters = inject(model.module, LoraConfig(rank=4))
    with torch.no_grad():
        for adapter in adapters.adapters().values():
            adapter.B.normal_()  # pyright: ignore[reportCallIssue]
    with adapters.base():
        assert ids(own_answers(model, 1, LIMIT, silent)) == expected


def test_no_row_is_longer_than_the_limit_and_one_that_no_instruction_fits_is_refused(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TOKENS", 10_000)
    shortest = min(len(asking_ids(model, [Message("user", text)])) for text in instructions()[:5])
    limit = 2 * shortest + 3
    rows = own_answers(replace(model, context_length=None), 1, limit, silent)
    assert rows and max(len(row.ids) for row in rows) <= limit
    with pytest.raises(DataError, match="--replay-data"):
        own_answers(model, 1, 2 * shortest - 1, silent)
