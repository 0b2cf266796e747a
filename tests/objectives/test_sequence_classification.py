"""Sequence classification: the loss is transformers' own, padding and batches change nothing, and heads are the new
modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from kit.classifiers import encoder_folder
from rankwise.base.inspection import is_encoder
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.objectives.objective import Facts, Objective
from rankwise.objectives.registry import objective_named
from rankwise.objectives.text_classification import TextEncoder
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.system.foreign_json import read_json

CLASSES = TargetFacts(classes=("bad", "good", "so so"), counts=(1, 1, 1))
WEIGHTED = CLASSES.model_copy(update={"weights": (0.5, 1.0, 3.0)})
NUMBERS = TargetFacts(low=0.0, high=5.0)
TEXTS = [
    ("the film is kind", ""),
    ("a plot", "the film is dull and cold and vague"),
    ("cruel", ""),
    ("the the the", "a"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("models") / "tiny-bert")


def loaded(folder: Path, targets: TargetFacts, seed: int = 0) -> tuple[Objective, LoadedModel]:
    objective = objective_named("sequence-classification", Facts(targets, seed=seed))
    return objective, load(ModelConfig(name=str(folder), dtype="float32"), silent, objective.kind)


def batches(objective: Objective, model: LoadedModel, tokens: int) -> list[Batch]:
    names = objective.targets.classes or ("0.5", "2.25", "4")
    examples = [
        Example((Message("user", text, pair), Message("assistant", names[at % 3])), f"rows:{at + 1}")
        for at, (text, pair) in enumerate(TEXTS)
    ]
    made = TextEncoder(model.tokenizer, DataConfig(path="rows"), 64, objective.targets).encode(examples)
    assert [outcome.problem for outcome in made] == [None] * len(TEXTS)
    return objective.loss.batches([row for outcome in made for row in outcome.sequences], tokens)


@pytest.mark.parametrize("targets", [CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_the_loss_is_that_of_transformers(encoder, targets):
    objective, model = loaded(encoder, targets)
    (batch,) = batches(objective, model, 10_000)
    with torch.no_grad():
        ours = objective.loss(model.module, batch) / batch.count
        theirs = model.module(**batch.inputs, labels=batch.targets).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_weights_of_classes_make_the_weighted_mean(encoder):
    objective, model = loaded(encoder, WEIGHTED)
    (batch,) = batches(objective, model, 10_000)
    with torch.no_grad():
        ours = objective.loss(model.module, batch) / batch.count
        outputs = model.module(**batch.inputs).logits
    assert ours.item() == pytest.approx(F.cross_entropy(outputs, batch.targets, torch.tensor(WEIGHTED.weights)).item())


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("targets", [CLASSES, WEIGHTED, NUMBERS], ids=["classes", "weighted", "numbers"])
def test_how_rows_are_cut_into_batches_changes_no_loss(encoder, tiny_folder, base, targets):
    objective, model = loaded(encoder if base == "bert" else tiny_folder, targets)
    sums = []
    for tokens in (1, 20, 10_000):
        parts = batches(objective, model, tokens)
        with torch.no_grad():
            total = sum(objective.loss(model.module, part).item() for part in parts)
        sums.append((total, sum(part.count for part in parts), sum(part.tokens for part in parts)))
    assert len({len(batches(objective, model, tokens)) for tokens in (1, 10_000)}) == 2
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    assert sums[2] == pytest.approx(sums[0], rel=1e-5)


def test_a_pair_is_what_the_tokenizer_makes_of_it_with_its_token_types(encoder):
    objective, model = loaded(encoder, CLASSES)
    row = batches(objective, model, 1)[0]  # the longest alone
    hub = model.tokenizer.hub(*TEXTS[1])
    assert row.input_ids[0].tolist() == hub["input_ids"]
    assert row.inputs["token_type_ids"][0].tolist() == hub["token_type_ids"]
    assert set(hub["token_type_ids"]) == {0, 1}


def test_special_tokens_that_somebody_typed_are_plain_text(encoder):
    _, model = loaded(encoder, CLASSES)
    [(ids, _)] = model.tokenizer.encode_texts([("film [SEP] plot", "")])
    separator = model.tokenizer.hub.sep_token_id
    assert ids.count(separator) == 1
    assert model.tokenizer.encode("film [SEP] plot").count(separator) == 1, "elsewhere the tokenizer is as before"


def test_a_text_is_cut_to_the_limit_with_its_special_tokens(encoder):
    _, model = loaded(encoder, CLASSES)
    [(ids, types)] = model.tokenizer.encode_texts([("the film is kind and the plot", "a plot")], limit=8)
    hub = model.tokenizer.hub
    assert len(ids) == len(types or []) == 8
    assert ids[0] == hub.cls_token_id and ids[-1] == hub.sep_token_id and ids.count(hub.sep_token_id) == 2
    assert len(model.tokenizer.encode_texts([("the film is kind and the plot", "")])[0][0]) == 9, (
        "the limit is forgotten"
    )


def test_the_heads_are_the_modules_that_the_folder_lacks(encoder, tiny_folder):
    objective, model = loaded(encoder, CLASSES)
    assert objective.heads(model) == ("classifier", "bert.pooler.dense")
    objective, model = loaded(tiny_folder, CLASSES)
    assert objective.heads(model) == ("score",)


def test_a_new_head_is_drawn_by_the_seed_and_leaves_no_trace_in_the_random_numbers(encoder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [loaded(encoder, CLASSES, seed)[1].module.classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_model_knows_its_classes_by_name(encoder):
    _, model = loaded(encoder, CLASSES)
    assert model.module.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    assert model.module.config.label2id == {"bad": 0, "good": 1, "so so": 2}


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "XLMRoberta"])
def test_the_longest_text_that_is_allowed_fits_where_positions_are_reserved_for_padding(encoder, tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    objective, model = loaded(tmp_path, CLASSES)
    assert model.context_length == 32
    row = objective.loss.batches(objective.loss.random_rows(model.module, [32], torch.Generator().manual_seed(0)), 100)[
        0
    ]
    row.input_ids.masked_fill_(row.input_ids == 1, 2)
    assert objective.loss.predict(model.module, row).shape == (1, 3)
    with pytest.raises((IndexError, RuntimeError)):
        row = objective.loss.batches([Tokens((2,) * 33, (False,) * 33, target=0.0)], 100)[0]
        objective.loss.predict(model.module, row)


def test_an_encoder_is_told_from_models_that_generate(encoder, tiny_folder):
    assert is_encoder(read_json(encoder / "config.json"))
    assert not is_encoder(read_json(tiny_folder / "config.json"))
    assert not is_encoder({"model_type": "bert", "is_decoder": True})
    assert not is_encoder({"model_type": "bert", "architectures": ["BertLMHeadModel"]})
    assert not is_encoder({"model_type": "t5", "is_encoder_decoder": True})


def test_targets_are_whole_numbers_for_classes_and_decimals_for_numbers(encoder):
    for targets, kind, values in ((CLASSES, torch.int64, {0, 1, 2}), (NUMBERS, torch.float32, {0.5, 2.25, 4.0})):
        objective, model = loaded(encoder, targets)
        (batch,) = batches(objective, model, 10_000)
        assert batch.targets.dtype == kind
        assert set(np.asarray(batch.targets).tolist()) == values
