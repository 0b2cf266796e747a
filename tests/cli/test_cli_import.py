"""Adapters of other tools where a run or PEFT's folder may stand: inspect, export, generate and evaluate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from kit.command import rankwise
from kit.dialect_files import gguf, mlx

WRITERS = {"mlx-lm": mlx, "llama.cpp": gguf}


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model in tiny-llama, where its user works."""
    shutil.copytree(tiny_folder, tmp_path / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "tiny-llama", dtype=torch.float32).eval()


def invoke(*words: object, code: int = 0) -> Any:
    result = rankwise(*words)
    assert result.exit_code == code, result.output
    return result


def asked(*words: object) -> dict[str, Any]:
    return json.loads(invoke(*words, "--json").stdout)


@pytest.mark.parametrize("label", [*WRITERS])
def test_an_adapter_of_another_tool_is_used_like_one_of_pefts(label: str, base: nn.Module, tmp_path: Path) -> None:
    writer: Callable[..., Any] = WRITERS[label]
    (folder := tmp_path / "theirs").mkdir()
    path = writer(folder, base).path
    inspected = asked("inspect", path)
    assert inspected["label"] == f"an adapter of {label}"
    assert set(inspected["ranks"].values()) == {3}
    with_base = ("--base-model", "tiny-llama")
    for format in ("peft", "portable", "merged"):
        exported = asked("export", path, "--to", format, "--format", format, *with_base)
        assert exported["format"] == format
    asked("merge", path, "--to", "whole", *with_base)
    (adapter,) = json.loads((tmp_path / "whole" / "merge.json").read_text())["adapters"]
    assert adapter["files"] and "" not in adapter["files"].values()
    answer = ("--prompt", "What is the capital of France?", "--max-new-tokens", "8")
    theirs = asked("generate", path, *answer, *with_base)["answer"]
    assert theirs == asked("generate", "peft", *answer)["answer"]  # "portable" rounds otherwise in bfloat16
    (tmp_path / "rows.jsonl").write_text('{"prompt": "the quick brown", "completion": "fox jumps"}\n' * 3)
    rows = ("--task", "rows.jsonl", "--no-forgetting")
    one, other = asked("evaluate", path, *rows, *with_base), asked("evaluate", "peft", *rows)
    loss = one["metrics"]["loss"]["value"]
    assert loss == pytest.approx(other["metrics"]["loss"]["value"], rel=1e-5)
    assert loss != pytest.approx(one["base"]["loss"]["value"], rel=1e-3)


def test_a_base_that_nobody_names_is_asked_for(base: nn.Module, tmp_path: Path) -> None:
    path = gguf(tmp_path, base).path
    for words in (("generate", path, "--prompt", "x"), ("export", path, "--to", "out")):
        assert "names no base model. Name it with --base-model." in " ".join(invoke(*words, code=2).output.split())


def test_what_was_assumed_is_said(base: nn.Module, tmp_path: Path) -> None:
    path = gguf(tmp_path, base, alpha=0.0).path
    for words in (("inspect", path), ("export", path, "--to", "out", "--base-model", "tiny-llama")):
        assert "it is read at scale 1" in " ".join(invoke(*words).stderr.split())


def test_a_pickled_file_is_refused_with_its_command(tmp_path: Path) -> None:
    torch.save({"q.lora_A": torch.ones(2, 2)}, tmp_path / "lora.pt")
    for words in (("inspect",), ("generate", "--prompt", "x"), ("evaluate",), ("export", "--to", "out")):
        output = invoke(words[0], tmp_path / "lora.pt", *words[1:], code=2).output
        assert "python -c" in output
        assert "Traceback" not in output


def test_an_adapter_of_another_model_is_refused_at_once(base: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = mlx(tmp_path).path  # for a smaller vocabulary
    output = invoke("export", path, "--to", tmp_path / "out", "--base-model", "tiny-llama", code=2).output
    assert "embed_tokens" in output
    assert not (tmp_path / "out").exists()
