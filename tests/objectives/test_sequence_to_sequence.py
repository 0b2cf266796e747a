"""Sequence to sequence: loss and gradients are transformers' own, and neither padding nor batches change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from kit.sequence_models import KINDS, lands, sequence_folder
from rankwise.base.inspection import is_encoder_decoder
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.objectives.registry import objective_named
from rankwise.objectives.sequence_to_sequence import SequenceEncoder, batch_of, parted
from rankwise.rows.encoded.batches import IGNORED, Batch
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.targets import input_and_output
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import silent
from rankwise.system.foreign_json import read_json


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sequence_folder(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(ModelConfig(name=str(folder), dtype="float32"), silent, objective_named("sequence-to-sequence").kind)


def examples(count: int = 6) -> list[Example]:
    return [
        Example((Message("user", row["input"]), Message("assistant", row["output"])), f"rows:{at + 1}")
        for at, row in enumerate(lands(count))
    ]


def rows_of(model: LoadedModel, limit: int = 64, **settings: str) -> list[Tokens]:
    spec = DataConfig.model_validate({"path": "rows", **settings})
    outcomes = SequenceEncoder(model.tokenizer, spec, limit).encode(examples())
    assert [outcome.problem for outcome in outcomes] == [None] * len(outcomes)
    return [row for outcome in outcomes for row in outcome.sequences]


def gradients(model: LoadedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def their_batch(model: LoadedModel) -> dict[str, torch.Tensor]:
    """As transformers' own collator would make it: texts and targets tokenised by the tokenizer, padded apart."""
    hub, rows = AutoTokenizer.from_pretrained(model.source.folder), lands(6)
    inputs = hub([row["input"] for row in rows], padding=True, return_tensors="pt")
    labels = hub(text_target=[row["output"] for row in rows], padding=True, return_tensors="pt")
    labels = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, IGNORED)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}


def test_loss_and_gradients_are_those_of_transformers(model):
    batch = batch_of(rows_of(model))
    ours = objective_named("sequence-to-sequence").loss(model.module, batch) / batch.count
    theirs = model.module(**their_batch(model)).loss
    assert abs(ours.item() - theirs.item()) <= 1e-6
    of_ours, of_theirs = gradients(model, ours), gradients(model, theirs)
    assert set(of_ours) == set(of_theirs)
    for name, value in of_theirs.items():
        assert (of_ours[name] - value).abs().max() <= 1e-6, name


def test_the_batch_is_that_of_transformers(model):
    batch, theirs = batch_of(rows_of(model)), their_batch(model)
    real = theirs["attention_mask"].bool()
    assert torch.equal(batch.inputs["attention_mask"], theirs["attention_mask"])
    assert torch.equal(batch.input_ids[real], theirs["input_ids"][real])
    assert torch.equal(batch.targets, theirs["labels"])
    assert batch.count == int((theirs["labels"] != IGNORED).sum())
    assert batch.size == theirs["input_ids"].numel() + theirs["labels"].numel()


@pytest.mark.parametrize("tokens", [1, 40, 100, 10_000])
def test_how_rows_are_cut_into_batches_changes_no_loss(model, tokens):
    rows = rows_of(model)
    with torch.no_grad():
        alone = sum(objective_named("sequence-to-sequence").loss(model.module, batch_of([row])).item() for row in rows)
        batches = objective_named("sequence-to-sequence").loss.batches(rows, tokens)
        together = sum(objective_named("sequence-to-sequence").loss(model.module, batch).item() for batch in batches)
    assert together == pytest.approx(alone, rel=1e-5)
    assert sum(batch.count for batch in batches) == sum(row.loss_count for row in rows)
    assert all(batch.size <= tokens or len(batch.targets) == 1 for batch in batches)


def test_the_ids_in_padding_do_not_matter(model):
    batch = batch_of(rows_of(model))
    hidden = batch.inputs["attention_mask"] == 0
    assert bool(hidden.any())
    other = Batch({**batch.inputs, "input_ids": batch.input_ids.masked_fill(hidden, 7)}, batch.targets, batch.count, 0)
    with torch.no_grad():
        assert objective_named("sequence-to-sequence").loss(model.module, batch) == objective_named(
            "sequence-to-sequence"
        ).loss(model.module, other)


def test_rows_are_tokenised_apart_and_end(model):
    for row, raw in zip(rows_of(model), lands(6), strict=True):
        given, output = parted(row)
        hub = model.tokenizer.hub
        assert given.tolist() == hub(raw["input"])["input_ids"]
        assert output.tolist() == hub(text_target=raw["output"])["input_ids"]
        assert row.ended and not any(row.loss_mask[: len(given)]) and all(row.loss_mask[len(given) :])


def test_control_tokens_that_somebody_typed_stay_text(model):
    typed = Example((Message("user", "What is </s> land 1?"), Message("assistant", "It is </s> town.")), "rows:1")
    (outcome,) = SequenceEncoder(model.tokenizer, DataConfig(path="rows"), 64).encode([typed])
    given, output = parted(outcome.sequences[0])
    end = model.tokenizer.hub.eos_token_id
    assert given.tolist().count(end) == output.tolist().count(end) == 1


def test_a_long_row_is_left_out_or_cut(model):
    longest = max(max(map(len, parted(row))) for row in rows_of(model))
    assert len(rows_of(model, longest)) == 6
    dropped = SequenceEncoder(model.tokenizer, DataConfig(path="rows"), longest - 1).encode(examples())
    assert sum(outcome.too_long for outcome in dropped) >= 1
    cut = rows_of(model, 6, too_long="truncate")
    assert all(max(map(len, parted(row))) <= 6 for row in cut)
    assert not any(row.ended for row in cut)
    assert all(parted(row)[0][-1] == model.tokenizer.hub.eos_token_id for row in cut)


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (Example((), "rows:3", text="plain"), "rows:3: is a plain text"),
        (Example((Message("system", "s"), Message("user", "q"), Message("assistant", "a")), "rows:4"), "rows:4: is a"),
        (Example((Message("user", " "), Message("assistant", "a")), "rows:5"), "rows:5: the input is empty"),
        (Example((Message("user", "q"), Message("assistant", "")), "rows:6"), "rows:6: the output is empty"),
    ],
)
def test_bad_rows_are_named(example, problem):
    with pytest.raises(DataError, match=problem):
        input_and_output(example)


def test_the_model_is_known_by_its_config(folder, tiny_folder):
    assert is_encoder_decoder(read_json(folder / "config.json"))
    assert not is_encoder_decoder(read_json(tiny_folder / "config.json"))
