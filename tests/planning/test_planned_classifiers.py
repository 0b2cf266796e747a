"""A planned classifier is the one that training builds: its parameters, its rows and what its blocks keep."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from kit.classifiers import encoder_folder, labelled, scaled, write_rows
from kit.planning_models import SMALL, shape_of
from rankwise.adapters.set import AdapterSet
from rankwise.base.loading import load
from rankwise.cli.main import app
from rankwise.config.adapters import AdaLoraConfig, FullConfig, HeadConfig, LoraConfig
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Planned
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, DataError
from rankwise.forward.activation_memory import saved_bytes
from rankwise.forward.encoders import FusedEncoder, has_encoder_kernels
from rankwise.forward.model_shape import shape_of_config
from rankwise.forward.plan import plan
from rankwise.methods.inject import add_layers
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.planning.batches import AtOnce, padded_load
from rankwise.planning.devices import Device
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import forecast, form_of
from rankwise.planning.parameters import parameters_of
from rankwise.planning.rows import Drawn, PlannedRows, fixed_rows_of
from rankwise.planning.shape import ModelShape, NewHead, shape_from_json, shape_to_json
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.classes import read_targets
from rankwise.rows.sources import open_source
from rankwise.runs.records import silent
from rankwise.runs.row_facts import TargetFacts
from rankwise.training.probe import probe

CLASSES = TargetFacts(classes=("bad", "good"), counts=(1, 1))
FAMILIES = ["bert", "roberta", "deberta-v3", "llama", "gpt2", "gpt_neox"]
METHODS = {"lora": LoraConfig(rank=2), "dora": LoraConfig(rank=2, dora=True), "adalora": AdaLoraConfig(budget="2")}


PROCESSOR = Device("here", "processor", 10**10, 0, None, 1e11, "a test")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    tokenizer = encoder_folder(folder / "tiny-bert")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=19, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder / "tiny-llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "tiny-llama" / name).write_text((tokenizer / name).read_text())
    write_rows(folder / "rows.jsonl", labelled(40))
    write_rows(folder / "scaled.jsonl", scaled(30))
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def planned(model: str = "tiny-bert", data: str | None = "rows.jsonl", dtype: str = "float32", **more: Any) -> Planned:
    rows = {} if data is None else {"data": data}
    return Planned.model_validate({"model": {"name": model, "dtype": dtype}, **rows, **more})


def trained(config: Planned) -> ModelShape:
    return plan(config).shape


@cache
def shape_with_head(name: str, outputs: int = 3) -> ModelShape:
    family, settings = SMALL[name]
    return shape_of_config({"model_type": family} | settings, name, "config.json", NewHead(outputs))


def built(name: str, outputs: int = 3) -> nn.Module:
    family, settings = SMALL[name]
    config = CONFIG_MAPPING[family](**settings, num_labels=outputs)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return model.to_empty(device="cpu").float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_of_a_classifier_is_what_its_training_attaches(name: str, method: str) -> None:
    model, shape = built(name), shape_with_head(name)
    total = sum(one.numel() for one in model.parameters())
    adapters = AdapterSet(model)
    children = [(path, child) for path, child in model.named_children() if path != model.base_model_prefix]
    adapters.add_heads([path for path, child in children if next(child.parameters(), None) is not None])
    add_layers(adapters, METHODS[method])
    counted = parameters_of(shape, METHODS[method])
    assert counted.total == shape.parameters == total
    assert counted.trainable == sum(one.numel() for one in adapters.parameters())
    assert [one.layer.path for one in counted.adapted] == list(adapters.layers)
    assert sum(many for _, many in counted.by_leaf.values()) == counted.trainable


def test_the_head_alone_and_the_whole_model() -> None:
    shape = shape_with_head("roberta", 1)
    assert parameters_of(shape, HeadConfig()).trainable == sum(
        one.numel() for one in built("roberta", 1).get_submodule("classifier").parameters()
    )
    assert parameters_of(shape, FullConfig()).trainable == shape.parameters


def test_a_classifier_is_stored_and_read_again() -> None:
    shape = shape_with_head("bert")
    assert shape_from_json(json.loads(json.dumps(shape_to_json(shape))), "bert") == shape


@pytest.mark.parametrize("method", ["lora", "adalora", "full", "head"])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_padded_rows_keep_what_the_plan_says(here: Path, model: str, method: str) -> None:
    config = planned(model, objective="sequence-classification", adapter={"method": method})
    objective = objective_named("sequence-classification", Facts(CLASSES))
    loaded = load(ModelConfig(name=model, dtype="float32"), silent, objective.kind)
    setup = Setup(TrainingConfig(steps=10), 10, heads=objective.heads(loaded))
    trainable = method_of(config.adapter).attach(loaded, setup)
    amounts, lengths = [], (16, 48)
    made = plan(config)
    for length in lengths:
        rows = objective.loss.random_rows(
            loaded.module, [length] * 6 + [length // 2] * 2, torch.Generator().manual_seed(0)
        )
        (batch,) = objective.loss.batches(rows, 10**6)
        autograd = saved_bytes(lambda batch: objective.loss(loaded.module, batch), batch, loaded.module)
        blocks = replace(made.forecast, form="plain", amount=AtOnce(batch.size, 8, length)).saved
        amounts.append((autograd, blocks))
    assert trainable.parameters()
    grown = [large - small for small, large in zip(*amounts, strict=True)]
    if method == "head":
        assert amounts[1][1] == 0 and grown[0] <= 4 * 32 * 8 * (48 - 16)  # what the head reads alone
    else:  # what is kept outside blocks is no more than a few numbers for each token
        assert grown[1] == pytest.approx(grown[0], rel=0.12) and grown[1] <= 1.03 * grown[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_do_blocks_that_kernels_compute(here: Path, dtype: str) -> None:
    """What is kept outside of blocks, which the plan leaves out, is small."""
    shape, spec, objective = (
        trained(planned()),
        METHODS["lora"],
        objective_named("sequence-classification", Facts(CLASSES)),
    )
    loaded = load(ModelConfig(name="tiny-bert", dtype=dtype), silent, objective.kind)
    setup = Setup(TrainingConfig(steps=10), 10, heads=objective.heads(loaded))
    trainable = method_of(spec).attach(loaded, setup)
    fused = FusedEncoder(loaded.module, lambda batch: objective.loss(loaded.module, batch))
    amounts = []
    for count in (3, 8):
        rows = objective.loss.random_rows(loaded.module, [40] * count, torch.Generator().manual_seed(0))
        (batch,) = objective.loss.batches(rows, 10**6)
        with fused.active():
            amounts.append(saved_bytes(fused, batch, loaded.module))
    config = planned(dtype=dtype).model_copy(update={"adapter": spec})
    forecasted = forecast(config, shape, PROCESSOR, AtOnce(5 * 40, 5, 40)).saved
    assert trainable.parameters() and 1 <= (amounts[1] - amounts[0]) / forecasted < 1.1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_with_kernels_are_those_that_training_has(name: str) -> None:
    has_kernels = has_encoder_kernels(built(name).eval().requires_grad_(False))
    forms = [form_of(shape_with_head(name), one, TrainingConfig(), PROCESSOR) for one in (LoraConfig(), FullConfig())]
    assert forms == ["fast" if has_kernels else "plain", "plain"]


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
@pytest.mark.parametrize(("data", "limit"), [("rows.jsonl", 1024), ("rows.jsonl", 12), ("scaled.jsonl", 1024)])
def test_tokens_are_those_that_training_counts(here: Path, data: str, limit: int, too_long: str) -> None:
    spec = DataConfig(path=data, max_length=limit, too_long=too_long)
    objective = objective_named("sequence-classification", Facts(read_targets(spec, ClassificationConfig())))
    loaded = load(ModelConfig(name="tiny-bert", dtype="float32"), silent, objective.kind)
    encoder = objective.rows.encoder(loaded.template, loaded.tokenizer, spec, min(limit, 64))
    (source,) = spec.all_sources
    examples = [one for chunk in open_source(spec, source).chunks() for row in chunk for one in row]
    lengths = sorted(len(row.ids) for outcome in encoder.encode(examples) for row in outcome.sequences)
    rows = fixed_rows_of(spec, TokenCounter(Path("tiny-bert")), min(limit, 64), labelled=True)
    assert list(rows.lengths) == lengths and rows.exact
    assert (rows.documents.likely, rows.tokens.likely) == (len(lengths), sum(lengths))


@pytest.mark.parametrize("tokens", [64, 200, 10_000])
def test_padding_is_what_micro_batches_have(tokens: int) -> None:
    lengths = torch.randint(1, 60, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    model = built("bert")
    objective = objective_named("sequence-classification", Facts(CLASSES))
    rows = objective.loss.random_rows(model, lengths, torch.Generator())
    count = Estimate.exactly(50)
    drawn = tuple(Drawn((length,), 1, length) for length in sorted(lengths))
    longest = max(lengths)
    planned = PlannedRows(count, Estimate.exactly(sum(lengths)), count, 0.0, longest, longest, drawn, exact=True)
    load = padded_load(planned, TrainingConfig(batch_size=50, max_batch_tokens=tokens))
    assert load.tokens == sum(batch.size for batch in objective.loss.batches(rows, tokens))
    assert load.supervised == 50


def test_the_largest_micro_batch_has_the_longest_row(here: Path) -> None:
    made = plan(planned(training={"batch_size": 8, "max_batch_tokens": 100}))
    assert made.rows is not None and made.amount.longest == made.rows.longest
    assert made.amount.tokens == made.rows.longest * (100 // made.rows.longest) <= 100


def test_a_head_alone_computes_nothing_back_and_no_vocabulary_is_predicted(here: Path) -> None:
    alone, adapter = (plan(planned(adapter={"method": method})) for method in ("head", "lora"))
    assert alone.forecast.memory["activations"] == 0 < adapter.forecast.memory["activations"]
    assert alone.flops_per_token < 0.5 * adapter.flops_per_token
    assert adapter.forecast.memory["logits"] == 12 * 2 * adapter.forecast.amount.learned
    assert alone.forecast.form == "fast"


def test_the_objective_follows_from_model_and_rows(here: Path) -> None:
    assert trained(planned()).outputs == 2 and trained(planned(data="scaled.jsonl")).outputs == 1
    assert trained(planned(data=None)) == shape_of("tiny-bert")
    assert trained(planned(data=None, objective="sequence-classification")).outputs == 2
    assert trained(planned("tiny-llama")).outputs is None
    assert trained(planned("tiny-llama", objective="sequence-classification")).outputs == 2
    with pytest.raises(ConfigError, match=r"data\.packing has no effect with the objective sequence-classification"):
        plan(planned(data={"path": "rows.jsonl", "packing": True}))
    with pytest.raises(ConfigError, match=r"adapter\.method head has no effect with the objective causal-lm"):
        plan(planned("tiny-llama", adapter={"method": "head"}))
    write_rows("one.jsonl", [row | {"label": "good"} for row in labelled(4)])
    with pytest.raises(DataError, match="nothing to learn"):
        plan(planned(data="one.jsonl"))


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama"])
def test_a_probe_measures_the_classifier(here: Path, model: str) -> None:
    """By steps that are large enough for their time to grow with their tokens."""
    heard: list[Any] = []
    write_rows("many.jsonl", labelled(1200))
    config = planned(model, "many.jsonl", objective="sequence-classification", training={"batch_size": 1024})
    found = probe(config, heard.append)
    backend = "fused" if model == "tiny-bert" else "eager"
    assert found.per_token > 0 and any(f"probed with the {backend} backend" in one.text for one in heard)


def test_the_command_names_the_classes_and_all_parts(here: Path) -> None:
    words = ["plan", "--objective", "sequence-classification", "--model", "tiny-llama", "--data", "rows.jsonl"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "a classifier that predicts one of 2 classes for each row" in result.output
    assert "one target per row" in result.output and "with padding" in result.output
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["outputs"] == 2 and told["trained_by_rankwise"] and told["fits"] is not None
    assert told["trainable_by_layer"]["score"] == {"layers": 1, "parameters": 64}
