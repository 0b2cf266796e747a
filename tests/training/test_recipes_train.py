"""Each seed recipe trains a tiny model of its own architecture, and the run is asked in the recipe's own words."""

from __future__ import annotations

import contextlib
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import StableLmConfig, StableLmForCausalLM

from conftest import CHATML, tiny_model
from kit.families import BY_NAME, Family, hub_of
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.config.recipe import recipe_named
from rankwise.config.validation import GenerationConfig
from rankwise.inference.tuned_model import load_tuned
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.snapshot import RunSnapshot

pytestmark = pytest.mark.slow  # for its fixtures
LLAMA = Family("llama", "", "</s>", ())
PYTHIA = Family("pythia", "", "<|endoftext|>", (), bos=None, eos="<|endoftext|>")
CONTEXT = 700
TRAINED = {
    "alpaca-lora": ("alpaca-lora", "llama", LLAMA, "prepend", "dolly/train_alpaca.jsonl"),
    "vicuna": ("vicuna", "llama", LLAMA, "prepend", "sharegpt/vicuna_dummy_conversation.json"),
    "gpt4all-j": ("gpt4all-j", "gptj", PYTHIA, "gpt2", "dolly/train.jsonl"),
    "dolly": ("dolly", "neox", PYTHIA, "neox", "dolly/train_alpaca.jsonl"),
    "stablelm-2": ("stablelm", "stablelm", PYTHIA, "neox", "sharegpt/vicuna_dummy_conversation.json"),
}
"""Recipe, architecture, tokenizer, rows."""
ROWS, STEPS = 12, 8


def model_of(architecture, vocab):
    torch.manual_seed(0)
    if architecture == "stablelm":
        config = StableLmConfig(
            vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return StableLmForCausalLM(config).eval()
    small = tiny_model(architecture, vocab=vocab)
    small.config.update({"n_positions" if architecture == "gptj" else "max_position_embeddings": CONTEXT})
    return type(small)(small.config).eval()


def folder_of(place, architecture, family, kind):
    """A model as a user would name it, with a chat template of its own."""
    hub = hub_of(family, kind, CHATML)
    model_of(architecture, len(hub)).save_pretrained(place)
    hub.save_pretrained(place)
    return place


@pytest.fixture(scope="module", params=TRAINED, ids=str)
def trained(request, shared_data, tmp_path_factory):
    """The recipe's name, the working folder, the model's folder and what training gave."""
    name, architecture, family, kind, rows = TRAINED[request.param]
    place = tmp_path_factory.mktemp(request.param)
    model = folder_of(place / "model", architecture, family, kind)
    experiment = Experiment.model_validate(
        {
            "model": {"name": str(model), "dtype": "float32"},
            "data": {"path": str(shared_data / rows), "rows": ROWS, "recipe": name},
            "training": {"steps": STEPS, "learning_rate": 0.02, "batch_size": ROWS, "schedule": "constant"},
            "run": "first",
        }
    )
    before = os.environ.get("RANKWISE_CACHE")
    os.environ["RANKWISE_CACHE"] = str(place / "cache")
    try:
        with contextlib.chdir(place):
            yield name, place, model, train(experiment)
    finally:
        os.environ.pop("RANKWISE_CACHE")
        if before is not None:
            os.environ["RANKWISE_CACHE"] = before


def test_the_loss_is_finite_and_falls(trained):
    _, place, _, found = trained
    losses = [row["loss"] for row in read_metrics_log(place / found.run.metrics) if row.get("kind", "step") == "step"]
    assert len(losses) >= STEPS - 1
    assert all(map(math.isfinite, losses))
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.02
    assert found.manifest.status == "finished"


def test_the_data_report_names_recipe_and_template_in_the_run_and_beside_the_adapter(trained):
    name, place, _, found = trained
    data_report = RunSnapshot.of(found.run).recorded_data
    beside = json.loads((place / found.result / "data_report.json").read_text())
    assert beside == json.loads((place / found.run.folder / "data_report.json").read_text())
    assert data_report.recipe == name
    assert data_report.template.kind == f"recipe {name}"
    assert data_report.template.sources == {"default": recipe_named(name).template}
    assert data_report.template == found.model.template.facts
    assert data_report.template_parity is True
    assert data_report.template.start == ("<s>" if name in ("alpaca-lora", "vicuna") else "")
    assert data_report.rows == ROWS
    assert data_report.sequences
    learned = data_report.loss_tokens / data_report.tokens
    assert learned > 0.99 if name == "alpaca-lora" else learned < 0.9


def test_the_tokens_that_a_system_added_are_tokens_of_their_own_with_trained_rows(trained):
    name, place, _, found = trained
    added = recipe_named(name).new_tokens.get("new_tokens", ())
    assert bool(added) == (name in ("dolly", "stablelm"))
    rows = [
        value
        for key, value in load_file(place / found.result / "adapter_model.safetensors").items()
        if "token_adapter" in key
    ]
    assert [tuple(value.shape) for value in rows] == [(len(added), 32)] * (2 if added else 0)
    assert all(len(found.model.tokenizer.encode(token)) == 1 for token in added)
    counts = RunSnapshot.of(found.run).recorded_data.new_tokens
    assert counts is None if not added else set(counts.counts) == set(added) and sum(counts.counts.values()) >= ROWS


ASKED = (Message("user", "Name the capital.", "France"),)


def test_a_run_is_asked_in_its_recipe_s_words_whatever_the_model_s_own_template_becomes(trained):
    name, _, model, found = trained
    config = model / "tokenizer_config.json"
    files = [file for file in (config, model / "chat_template.jinja") if file.exists()]
    kept = {file: file.read_text() for file in files}
    other = "{% for m in messages %}OTHER {{ m.content + eos_token }}{% endfor %}"
    try:
        (model / "chat_template.jinja").write_text(other)
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": other}))
        asked = load_tuned("first", force_base=True)
    finally:
        (model / "chat_template.jinja").unlink()
        for file, text in kept.items():
            file.write_text(text)
    hub = asked.model.tokenizer.hub
    assert hub.chat_template == other, "the model's own template did change"
    recipe = ChatTemplate.of_recipe(HubTokenizer(hub, [hub.eos_token_id]), recipe_named(name))
    assert asked.model.template.text(ASKED, answer_next=True) == recipe.text(ASKED, answer_next=True)
    assert "OTHER" not in asked.model.template.text(ASKED, answer_next=True)
    assert asked.model.template.facts == RunSnapshot.of(found.run).recorded_data.template
    assert asked.model.template.end_ids == recipe.end_ids
    assert asked.model.template.end_texts == recipe.end_texts
    reply = asked.answer([*asked.opening(None), *ASKED], GenerationConfig(max_new_tokens=4))
    assert reply.tokens <= 4


def test_a_recipe_of_one_turn_leaves_conversations_out(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    model = folder_of(tmp_path / "model", "llama", LLAMA, "prepend")
    data = {"path": str(shared_data / "sharegpt" / "vicuna_dummy_conversation.json"), "rows": 30, "recipe": "alpaca"}
    experiment = {"model": {"name": str(model)}, "data": data, "run": "r", "training": {"steps": 1}}
    with pytest.raises(
        Exception, match=r"vicuna_dummy_conversation\.json:\d+ \(element \d+\): .*place for one question"
    ):
        train(Experiment.model_validate(experiment))
    data["on_bad_row"] = "skip"
    data_report = RunSnapshot.of(train(Experiment.model_validate(experiment)).run).recorded_data
    assert data_report.used + data_report.skipped == 30
    assert data_report.used == data_report.sequences > 0
    assert data_report.skipped_why == {"cannot be written for this model": data_report.skipped}


def test_the_model_s_own_template_is_that_of_a_run_without_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    family = BY_NAME["chatml"]
    hub = hub_of(family, "gpt2")
    model_of("llama", len(hub)).save_pretrained(model)
    hub.save_pretrained(model)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Name the capital.", "completion": "Paris."}\n' * 4)
    experiment = {"model": {"name": str(model)}, "data": "rows.jsonl", "run": "r", "training": {"steps": 1}}
    template = RunSnapshot.of(train(Experiment.model_validate(experiment)).run).recorded_data.template
    assert (template.kind, template.sources) == ("model", {"default": family.template})
