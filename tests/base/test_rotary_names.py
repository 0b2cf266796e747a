"""What we write is the same model to readers of transformers 5 and of the names before it."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, LlamaConfig

from rankwise.base.rotary_names import missing_names, with_older_names, write_older_names

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}
GEMMA_3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
OLDER = [
    ("llama", {"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
    ("qwen3", YARN, {"rope_theta": 1e6, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}}),
    ("glm", {"rope_theta": 5e4, "partial_rotary_factor": 0.5}, {"rope_theta": 5e4, "partial_rotary_factor": 0.5}),
    ("gemma3_text", GEMMA_3, {"rope_theta": 3e6, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR}),
]


@pytest.mark.parametrize(("kind", "parameters", "older"), OLDER)
def test_both_generations_read_the_same_rotary_settings(kind, parameters, older, tmp_path):
    AutoConfig.for_model(kind, rope_parameters=parameters).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    before, read = json.loads(file.read_text()), AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert missing_names(tmp_path) == older
    write_older_names(tmp_path)
    after = json.loads(file.read_text())
    assert missing_names(tmp_path) == missing_names(tmp_path / "nowhere") == {}
    assert {key: value for key, value in after.items() if key not in before} == older
    assert {key: after[key] for key in before} == before
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == read
    file.write_text(json.dumps({key: value for key, value in after.items() if key != "rope_parameters"}))
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == read, "the older names alone say the same"


def test_names_that_are_there_stay_and_a_model_without_angles_gets_none():
    own = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).to_dict()
    assert with_older_names(own | {"rope_theta": 8.0})["rope_theta"] == 8.0
    for plain in ({"model_type": "gpt2"}, {"rope_parameters": None}, {"rope_parameters": {"rope_type": "default"}}):
        assert with_older_names(plain) == plain
    part = with_older_names({"text_config": own, "vision_config": {"rope_parameters": {"rope_theta": 3.0}}})
    assert part["text_config"]["rope_theta"] == 7.0 and part.keys() == {"text_config", "vision_config"}


def test_a_file_without_anything_to_add_stays_byte_for_byte(tmp_path):
    (tmp_path / "config.json").write_text('{"a":1}')
    write_older_names(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"a":1}'
