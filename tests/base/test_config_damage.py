"""A config.json with wrong sizes or kinds of values is refused in one sentence, by a plan and by a training alike."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankwise.base.inspection import inspect_folder
from rankwise.cli.main import app
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, ModelError


def _deep(file: Path) -> None:
    file.write_bytes(b'{"model_type": "llama", "x": ' + b"[" * 900 + b"]" * 900 + b"}")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _one_key_head_less(file: Path) -> None:
    """Than there are heads, which divides them by nothing."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_key_value_heads": config["num_attention_heads"] - 1}))


def _changed(name: str, value: Any) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))


BROKE: dict[str, Callable[[Path], object]] = {
    "a thousand million layers": _changed("num_hidden_layers", 10**9), "labels": _changed("num_labels", 10**8),
    "model_type is a list": _changed("model_type", ["llama"]), "nested 900 deep": _deep, "a pipe": _pipe,
    "no positions": _changed("max_position_embeddings", 0), "fewer": _changed("max_position_embeddings", -5),
    "architectures is [5]": _changed("architectures", [5]), "architectures is a number": _changed("architectures", 5),
    "a thousand million wide": _changed("hidden_size", 10**9), "key heads that divide nothing": _one_key_head_less,
}  # fmt: skip
"""What hung, filled the memory, ended in a traceback or was taken before there were bounds."""


@pytest.fixture
def model(tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", BROKE)
def test_what_once_hung_or_filled_the_memory_is_refused_before_anything_is_built(name, model):
    BROKE[name](model / "config.json")
    with pytest.raises(ModelError) as caught:
        inspect_folder(model)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("damage", [*[*BROKE.values()][:3], _changed("hidden_size", 0), _changed("hidden_size", 10**9)])
def test_a_command_says_so_and_ends_with_two(command, damage, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    damage(model / "config.json")
    words = [command, "--model", "model", "--data", "rows.jsonl", *(["--steps", "1"] if command == "train" else [])]
    result = CliRunner().invoke(app, [*words, "--quiet"] if command == "train" else words)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.output
    assert result.stderr.startswith("rankwise: ") and "Traceback" not in result.stderr and len(result.stderr) < 1000


NAMED = {"name": "default", "template": "{{ messages }}"}


@pytest.mark.parametrize("template", [5, [1, 2], ["a", "b"], [NAMED, {"name": "x", "template": 5}], {"x": 5}, [{}]])
def test_a_chat_template_that_is_no_text_is_refused_in_one_sentence(template, model):
    file = model / "tokenizer_config.json"
    for given in (NAMED["template"], [NAMED], None):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": given}))
        inspect_folder(model)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    with pytest.raises(
        ModelError, match=r'tokenizer_config\.json: "chat_template" is [^\n]*a text, or several with names'
    ):
        inspect_folder(model)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "more.safetensors"])
def test_a_pipe_or_a_device_in_a_model_s_folder_is_refused(name, model):
    (model / name).unlink(missing_ok=True)
    if name.startswith("more"):
        (model / name).symlink_to("/dev/zero")
    else:
        os.mkfifo(model / name)
    with pytest.raises(ModelError, match=f"{name} is a pipe or a device"):
        inspect_folder(model)


def test_settings_of_the_largest_models_are_taken(model):
    file = model / "config.json"
    large = {"num_hidden_layers": 1000, "num_labels": 30_000, "vocab_size": 300_000, "rope_theta": 1e10}
    file.write_text(json.dumps(json.loads(file.read_text()) | large))
    inspect_folder(model)


def test_steps_beyond_a_million_passes_are_refused():
    config = TrainingConfig(steps=10**9, batch_size=2)
    with pytest.raises(ConfigError, match=r"333,333,333 times"):
        config.resolved(6, 32, 1e-4)
    assert TrainingConfig(steps=10**6, batch_size=2).resolved(6, 32, 1e-4).steps == 10**6


@pytest.mark.parametrize("file", ["pipe", "/dev/zero", "/dev/null"])
def test_a_file_of_settings_that_may_never_end_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    result = CliRunner().invoke(app, ["train", file])
    assert result.exit_code == 2 and f"{file}: is a pipe or a device" in result.stderr
