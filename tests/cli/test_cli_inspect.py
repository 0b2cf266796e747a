"""`rankwise inspect`: the ranks that are there, told the same in a table, in JSON and to a pipe, from files alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from conftest import tiny_model
from rankwise.adapters.adapter_set import inject
from rankwise.adapters.peft_format import write_peft
from rankwise.cli.main import app
from rankwise.cli.rank_map import rank_tables
from rankwise.errors import AdapterError
from rankwise.run.tensors import shapes_of
from rankwise.spec.adapters import LoraSpec


def rankwise(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def facts(*words):
    result = rankwise("inspect", *words, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_folder):
    """Two finished runs of the same rows: "fixed" with LoRA and "given" with AdaLoRA."""
    folder = tmp_path_factory.mktemp("inspecting")
    with contextlib.chdir(folder):
        rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(6)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ("--model", tiny_folder, "--data", "rows.jsonl", "--steps", 30, "--batch-size", 2)
        for run, method in (("fixed", ("--rank", 4)), ("given", ("--method", "adalora", "--budget", 3))):
            result = rankwise("train", *words, "--run", run, *method)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def home(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_a_lora_has_one_rank_and_no_history(home):
    found = facts("fixed")
    assert set(found) == {"run", "ranks", "mean_rank", "total_rank", "parameters", "bytes", "history"}
    assert set(found["ranks"].values()) == {4} and len(found["ranks"]) == 14
    assert (found["mean_rank"], found["total_rank"], found["history"]) == (4, 56, [])
    tensors = load_file(home / "runs" / "fixed" / "adapter" / "adapter_model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["bytes"] == (home / "runs" / "fixed" / "adapter" / "adapter_model.safetensors").stat().st_size


def test_an_adalora_has_the_ranks_of_its_last_decision_and_those_before(home):
    found = facts("given")
    *before, last = found["history"]
    assert last["final"] and not any(plan["final"] for plan in before) and before
    assert found["ranks"] == last["ranks"] and found["total_rank"] == 42 == last["budget"]
    assert all(set(plan) == {"step", "budget", "of", "ranks", "final"} for plan in found["history"])
    assert [plan["step"] for plan in found["history"]] == sorted(plan["step"] for plan in found["history"])
    stored = facts(home / "runs" / "given" / "adapter")
    assert stored["ranks"] == {path: rank for path, rank in sorted(found["ranks"].items()) if rank}
    assert stored["history"] == []


def test_ranks_that_were_only_silenced_count_as_taken_away(home, tiny_folder):
    words = ("--model", tiny_folder, "--data", "rows.jsonl", "--steps", 30, "--batch-size", 2, "--run", "silenced")
    result = rankwise("train", *words, "--method", "adalora", "--budget", 3, "--set", "adapter.shrink=false")
    assert result.exit_code == 0, result.output
    assert facts("silenced")["total_rank"] == 42


def test_a_journal_that_cannot_be_right_does_not_outvote_the_file(home):
    file = home / "runs" / "given" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "ranks" and row["final"]:
            row["ranks"] = dict.fromkeys(row["ranks"], 1000)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert facts("given")["ranks"] == facts(home / "runs" / "given" / "adapter")["ranks"]


@pytest.mark.parametrize("run", ["fixed", "given"])
def test_a_pipe_gets_a_plain_table_that_adds_up_and_fits(home, run):
    result = rankwise("inspect", run)
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.isascii() and "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert all(len(line) <= 79 for line in lines)
    assert lines[0].split() == [
        "layer", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "total"
    ]  # fmt: skip
    body, foot = [[int(word) for word in line.split()] for line in lines[1:3]], lines[3].split()
    assert [row[0] for row in body] == [0, 1] and all(sum(row[1:-1]) == row[-1] for row in body)
    assert foot[0] == "total"
    assert [int(word) for word in foot[1:]] == [sum(row[place] for row in body) for place in range(1, 9)]
    assert int(foot[-1]) == facts(run)["total_rank"]
    assert ("for good" in result.stdout) == (run == "given")


def test_a_terminal_with_colours_gets_the_same_table_in_shades(home, monkeypatch):
    plain = rankwise("inspect", "given").stdout
    monkeypatch.delenv("NO_COLOR")
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", "inspect", "given"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"},
    )  # fmt: skip
    assert "\x1b[" in done.stdout
    assert re.sub(r"\x1b\[[0-9;]*m", "", done.stdout) == plain


def test_a_folder_of_any_lora_will_do(tmp_path):
    spec = LoraSpec(rank=3, targets=("c_attn", "attn.c_proj", "mlp.c_proj", "wte"), rank_pattern={r"h\.1\..*": 5})
    write_peft(inject(tiny_model("gpt2"), spec), tmp_path / "a", base_model="tiny")
    found = facts(tmp_path / "a")
    assert found["ranks"] == {
        "transformer.h.0.attn.c_attn": 3, "transformer.h.0.attn.c_proj": 3, "transformer.h.0.mlp.c_proj": 3,
        "transformer.h.1.attn.c_attn": 5, "transformer.h.1.attn.c_proj": 5, "transformer.h.1.mlp.c_proj": 5,
        "transformer.wte": 3,
    }  # fmt: skip
    lines = rankwise("inspect", tmp_path / "a").stdout.splitlines()
    assert lines[0].split() == ["layer", "c_attn", "attn.c_proj", "mlp.c_proj", "wte", "total"]
    assert lines[3].split() == ["-", "-", "-", "-", "3", "3"]


def test_factors_that_do_not_belong_together_are_refused(home):
    file = home / "runs" / "fixed" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: torch.zeros(9, 3)}, file)
    result = rankwise("inspect", "fixed")
    assert result.exit_code == 2 and "do not belong together" in result.stderr
    save_file({"x": torch.zeros(1)}, file)
    result = rankwise("inspect", "fixed")
    assert result.exit_code == 2 and "no LoRA factor" in result.stderr


NAMES = st.sampled_from(["q_proj", "mlp.up_proj", "attn.c_proj", "mlp.c_proj", "x" * 40, "y" + "x" * 39, "experts.3.w"])
PATHS = st.one_of(
    st.builds(lambda block, name: f"model.layers.{block}.{name}", st.integers(0, 120), NAMES),
    st.builds(
        lambda a, b: f"{a}.{b}", st.text("abc", min_size=1, max_size=30), st.text("abc", min_size=1, max_size=30)
    ),
    NAMES,
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(PATHS, st.integers(0, 4096), min_size=1, max_size=40))
def test_any_ranks_are_tables_that_fit_and_hold_them_all(ranks):
    total = 0
    for table in rank_tables(ranks):
        lines = ["".join(cell.text for cell in row) for row in table]
        assert all(len(line) <= 79 for line in lines) and len({len(line) for line in lines}) == 1
        total += int(table[-1][-1].text)
        for place in range(1, len(table[0])):
            column = [int(row[place].text) for row in table[1:-1] if row[place].text.strip() != "-"]
            assert sum(column) == int(table[-1][place].text)
    assert total == sum(ranks.values())


def test_shapes_are_those_that_safetensors_wrote_and_any_cut_is_noticed(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    assert shapes_of(tmp_path / "t.safetensors") == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    whole = (tmp_path / "t.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="damaged"):
            shapes_of(tmp_path / "cut.safetensors")


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets"]), inner, max_size=4)
        ),
    ).map(lambda value: len(text := json.dumps(value).encode()).to_bytes(8, "little") + text)
)
def test_no_header_is_anything_but_shapes_or_told_as_damaged(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("headers") / "x.safetensors"
    file.write_bytes(content)
    with contextlib.suppress(AdapterError):
        assert all(isinstance(shape, tuple) for shape in shapes_of(file).values())


def test_the_parts_of_a_fused_layer_are_shown_apart(hub_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2", vocab=len(hub_tokenizer)).save_pretrained("base")
    hub_tokenizer.save_pretrained("base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What?", "completion": "It."}\n' * 2)
    words = ("--model", "./base", "--data", "rows.jsonl", "--steps", 20, "--targets", "c_attn", "--run", "fused")
    result = rankwise("train", *words, "--method", "adalora", "--budget", 2)
    assert result.exit_code == 0, result.output
    found = facts("fused")
    assert list(found["ranks"]) == [f"transformer.h.{n}.attn.c_attn.{part}" for n in (0, 1) for part in "qkv"]
    stored = facts(tmp_path / "runs" / "fused" / "adapter")
    assert stored["total_rank"] == found["total_rank"] == 12
    assert rankwise("inspect", "fused").stdout.splitlines()[0].split() == ["layer", "q", "k", "v", "total"]
