"""The real starter, converted from GGUF: whole, plain, and an able speaker."""

from __future__ import annotations

import json

from rankwise.data.example import Example, Message
from rankwise.data.templates import render
from rankwise.data.tokens import tokenise
from rankwise.models.generation import answer
from rankwise.models.loading import load
from rankwise.models.sources import find
from rankwise.run.records import silent
from rankwise.spec.generation import GenerationSpec
from rankwise.spec.models import ModelSpec

ASKED = Message("user", "What is the capital of France?")


def test_the_starter_is_whole_answers_truly_and_stops_by_itself(starter_folder):
    model = load(ModelSpec(name=str(starter_folder)))
    assert sum(parameter.numel() for parameter in model.module.parameters()) == 134_515_008
    assert (model.width, model.context_length) == (576, 8192)
    given = answer(model, [ASKED], GenerationSpec(max_new_tokens=40))
    assert "Paris" in given.text and given.stopped == "end"

    row = Example((ASKED, Message("assistant", "It is Paris.")), "x:1")
    tokens = tokenise(render(row, model.template), model.tokenizer)
    learned = [token for token, flag in zip(tokens.ids, tokens.learned, strict=True) if flag]
    assert model.tokenizer.decode(learned) == "It is Paris.<|im_end|>"


def test_the_converted_folder_is_plain_and_found_by_its_name(starter_folder):
    config = json.loads((starter_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert list(starter_folder.glob("*.safetensors")) and (starter_folder / "tokenizer.json").exists()
    assert not list(starter_folder.parent.glob(".*.tmp"))
    source = find(ModelSpec(name="smollm2-135m"), silent)
    assert source.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
