"""`rankwise inspect`: the ranks that are there, told the same in a table, in JSON and to a pipe, from files alone."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from conftest import tiny_model
from kit.command import done, printed, rankwise
from kit.sampling import draws
from rankwise.adapters.formats.peft import WEIGHTS, write_peft
from rankwise.config.adapters import LoraConfig
from rankwise.methods.inject import inject
from rankwise.reporting.markup import lines_of
from rankwise.reporting.training import rank_map


def facts(*words):
    return printed("inspect", *words)


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "adalora"))
    return tmp_path / "home"


def test_a_lora_has_one_rank_and_no_history(home):
    found = facts("lora")
    keys = {"run", "label", "ranks", "mean_rank", "total_rank", "parameters", "bytes", "history", "integrity"}
    assert set(found) == keys | {"adapter", "lineage"}
    assert set(found["ranks"].values()) == {4} and len(found["ranks"]) == 14
    assert (found["mean_rank"], found["total_rank"], found["history"]) == (4, 56, [])
    tensors = load_file(home / "runs" / "lora" / "adapter" / "adapter_model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["bytes"] == (home / "runs" / "lora" / "adapter" / "adapter_model.safetensors").stat().st_size


def test_an_adalora_has_the_ranks_of_its_last_decision_and_those_before(home):
    found = facts("adalora")
    *before, last = found["history"]
    assert last["final"] and not any(plan["final"] for plan in before) and before
    assert found["ranks"] == last["ranks"] and found["total_rank"] == 42 == last["budget"]
    assert all(set(plan) == {"step", "budget", "of", "ranks", "final", "unit"} for plan in found["history"])
    assert [plan["step"] for plan in found["history"]] == sorted(plan["step"] for plan in found["history"])
    stored = facts(home / "runs" / "adalora" / "adapter")
    assert stored["ranks"] == {path: rank for path, rank in sorted(found["ranks"].items()) if rank}
    assert stored["history"] == []


def test_ranks_that_were_only_silenced_count_as_taken_away(home, tiny_folder):
    words = ("--model", tiny_folder, "--data", "rows.jsonl", "--steps", 30, "--batch-size", 2, "--run", "silenced")
    done("train", *words, "--method", "adalora", "--budget", 3, "--set", "adapter.shrink=false")
    assert facts("silenced")["total_rank"] == 42


def test_a_metrics_log_that_cannot_be_right_does_not_outvote_the_file(home):
    file = home / "runs" / "adalora" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "ranks" and row["final"]:
            row["ranks"] = dict.fromkeys(row["ranks"], 1000)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert facts("adalora")["ranks"] == facts(home / "runs" / "adalora" / "adapter")["ranks"]


@pytest.mark.parametrize("run", ["lora", "adalora"])
def test_a_pipe_gets_a_plain_table_that_adds_up_and_fits(home, run):
    result = rankwise("inspect", run)
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.isascii() and "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert all(len(line) <= 79 for line in lines[: lines.index("")])
    assert lines[0].split() == [
        "layer", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "total"
    ]  # fmt: skip
    body, foot = [[int(word) for word in line.split()] for line in lines[1:3]], lines[3].split()
    assert [row[0] for row in body] == [0, 1] and all(sum(row[1:-1]) == row[-1] for row in body)
    assert foot[0] == "total"
    assert [int(word) for word in foot[1:]] == [sum(row[place] for row in body) for place in range(1, 9)]
    assert int(foot[-1]) == facts(run)["total_rank"]
    assert ("  final" in result.stdout) == (run == "adalora")


def test_a_folder_of_any_lora_will_do(tmp_path):
    spec = LoraConfig(rank=3, targets=("c_attn", "attn.c_proj", "mlp.c_proj", "wte"), rank_pattern={r"h\.1\..*": 5})
    write_peft(inject(tiny_model("gpt2"), spec), tmp_path / "a", base_model="tiny")
    found = facts(tmp_path / "a")
    assert found["ranks"] == {
        "transformer.h.0.attn.c_attn": 3, "transformer.h.0.attn.c_proj": 3, "transformer.h.0.mlp.c_proj": 3,
        "transformer.h.1.attn.c_attn": 5, "transformer.h.1.attn.c_proj": 5, "transformer.h.1.mlp.c_proj": 5,
        "transformer.wte": 3,
    }  # fmt: skip
    lines = rankwise("inspect", tmp_path / "a").stdout.splitlines()
    assert lines[0].split() == ["layer", "c_attn", "attn.c_proj", "mlp.c_proj", "wte", "total"]
    assert lines[3].split() == ["other", "-", "-", "-", "3", "3"]


def test_factors_that_do_not_belong_together_are_refused(home):
    file = home / "runs" / "lora" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: torch.zeros(9, 3)}, file)
    result = rankwise("inspect", "lora", "--force-result")
    assert result.exit_code == 2 and "but its rank is 4" in result.stderr
    save_file({}, file)
    result = rankwise("inspect", "lora", "--force-result")
    assert result.exit_code == 2 and "has no factors" in result.stderr


NAMES = st.sampled_from(["q_proj", "mlp.up_proj", "attn.c_proj", "mlp.c_proj", "x" * 40, "y" + "x" * 39, "experts.3.w"])
PATHS = st.one_of(
    st.builds(lambda block, name: f"model.layers.{block}.{name}", st.integers(0, 120), NAMES),
    st.builds(
        lambda a, b: f"{a}.{b}", st.text("abc", min_size=1, max_size=30), st.text("abc", min_size=1, max_size=30)
    ),
    NAMES,
)


@settings(max_examples=draws(150), deadline=None, derandomize=True)
@given(st.dictionaries(PATHS, st.integers(0, 4096), min_size=1, max_size=40))
def test_any_ranks_are_a_table_that_holds_them_all(ranks):
    _, *rows, sums = (line.split()[1:] for line in lines_of(rank_map(ranks)))
    columns = [[int(cell.replace(",", "")) for cell in column if cell != "-"] for column in zip(*rows, strict=True)]
    assert [sum(column) for column in columns] == [int(cell.replace(",", "")) for cell in sums]
    assert sums[-1] == f"{sum(ranks.values()):,}"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda config, tensors, key: tensors[key].fill_(torch.nan), "NaN or infinity"),
        (lambda config, tensors, key: config.update(r=3), "but its rank is 3"),
        (lambda config, tensors, key: config.update(lora_alpha=0), "lora_alpha"),
        (lambda config, tensors, key: tensors.update(weight=tensors[key].clone()), "must not contain other weights"),
        (lambda config, tensors, key: config.update(target_modules=["q_proj"]), "not among the targets"),
    ],
)
def test_what_export_would_refuse_is_not_shown(home, damage, said):
    folder = home / "runs" / "lora" / "adapter"
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS)
    damage(config, tensors, next(key for key in tensors if "lora_A" in key))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)
    shown, exported = (
        rankwise(*words, "--force-result") for words in (("inspect", "lora"), ("export", "lora", "--to", "out"))
    )
    assert shown.exit_code == exported.exit_code == 2
    assert shown.stderr == exported.stderr and said in shown.stderr


def test_a_lost_metrics_log_costs_the_history_alone(home):
    whole = facts("adalora")
    (home / "runs" / "adalora" / "metrics.jsonl").unlink()
    left = facts("adalora")
    assert left["history"] == [] and left["total_rank"] == whole["total_rank"]


def test_peft_s_own_adalora_shows_what_is_left(tmp_path):
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_model("llama"), config)
    layers = [f"model.layers.{block}.self_attn.{name}" for block in (0, 1) for name in ("q_proj", "v_proj")]
    rows = {path: [place < rank for place in range(4)] for path, rank in zip(layers, (4, 1, 0, 3), strict=True)}
    pattern = {f"{path}.lora_E": kept for path, kept in rows.items()}
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
    model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(tmp_path)
    found = facts(tmp_path)
    assert found["ranks"] == dict(zip(layers, (4, 1, 0, 3), strict=True))
    assert found["parameters"] == sum(tensor.numel() for tensor in load_file(tmp_path / WEIGHTS).values())


def test_the_parts_of_a_fused_layer_are_shown_apart(hub_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2", vocab=len(hub_tokenizer)).save_pretrained("base")
    hub_tokenizer.save_pretrained("base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What?", "completion": "It."}\n' * 2)
    words = ("--model", "./base", "--data", "rows.jsonl", "--steps", 20, "--targets", "c_attn", "--run", "fused")
    done("train", *words, "--method", "adalora", "--budget", 2)
    found = facts("fused")
    assert list(found["ranks"]) == [f"transformer.h.{n}.attn.c_attn.{part}" for n in (0, 1) for part in "qkv"]
    stored = facts(tmp_path / "runs" / "fused" / "adapter")
    assert stored["total_rank"] == found["total_rank"] == 12
    assert rankwise("inspect", "fused").stdout.splitlines()[0].split() == ["layer", "q", "k", "v", "total"]
