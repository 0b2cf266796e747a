"""`rankwise train`: one JSON object on stdout, a whole run on the disk, a loss that falls, the same bytes again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import tiny_model
from kit.command import done, printed, rankwise
from rankwise import __version__
from rankwise.base.inspection import fingerprint
from rankwise.runs.metrics_log import read_metrics_log

KEYS = {
    "run", "adapter", "steps", "loss", "validation_loss_before", "validation_loss_after", "validation_loss_tokens",
    "train_seconds", "tokens_per_second", "peak_rss_bytes", "trainable_parameters", "total_parameters",
    "adapter_bytes", "kept_step", "kept_why", "ended_early", "temperature", "forecast", "warnings",
    "validation_accuracy",
    "validation_accuracy_before", "validation_accuracy_after", "images_per_second", "budget", "learning_rate", "tuning",
    "replay", "baselines", "earlier_rounds", "accuracy_budget", "preference",
}  # fmt: skip
STEPS = 30
RECIPE = ("--batch-size", "4", "--rank", "4", "--learning-rate", "0.02", "--steps", str(STEPS), "--held-out", "3")


def write_rows(file: Path) -> Path:
    rows = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(15)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder with rows in it."""
    folder = tmp_path_factory.mktemp("home")
    write_rows(folder / "rows.jsonl")
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def told(home, tiny_folder):
    """What `--json` printed for the run "first"."""
    result = done("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", "first", *RECIPE, "--json")
    return result.stdout


@pytest.fixture
def run(home, told):
    return home / "runs" / "first"


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def spec_of(home: Path, name: str) -> dict:
    spec = json.loads((home / "runs" / name / "config.json").read_text())
    assert spec.pop("run") == name
    return spec


def test_json_prints_exactly_one_object_with_every_promised_key(told):
    assert told.endswith("}\n") and told.count("\n") == 1
    assert set(json.loads(told)) == KEYS


def test_what_json_says_agrees_with_what_lies_on_the_disk(told, run, home, tiny_folder):
    facts = json.loads(told)
    assert home / facts["run"] == run and home / facts["adapter"] == run / "adapter"
    assert facts["adapter_bytes"] == len(weights(run))
    factors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert facts["trainable_parameters"] == sum(factor.numel() for factor in factors.values())
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert facts["total_parameters"] == sum(parameter.numel() for parameter in base.parameters())
    assert facts["steps"] == STEPS
    assert facts["train_seconds"] > 0 and facts["peak_rss_bytes"] > 50_000_000


def test_tokens_per_second_are_the_tokens_of_all_steps_in_the_time_they_took(told, run):
    facts = json.loads(told)
    tokens = sum(row["tokens"] for row in read_metrics_log(run / "metrics.jsonl") if row["kind"] == "step")
    assert facts["tokens_per_second"] * facts["train_seconds"] == pytest.approx(tokens)


def test_the_loss_falls_in_training_and_on_rows_held_out(told, run):
    losses = [row["loss"] for row in read_metrics_log(run / "metrics.jsonl") if row["kind"] == "step"]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    facts = json.loads(told)
    assert facts["validation_loss_after"] < facts["validation_loss_before"] - 0.1


def test_a_finished_run_is_these_files_and_no_leftovers(run):
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert found == {
        ".lock", "config.json", "data_report.json", "manifest.json", "metrics.jsonl", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "adapter/data_report.json", "adapter/base_model.json",
        "adapter/tokenizer.json", "adapter/tokenizer_config.json", "adapter/chat_template.jinja", "adapter/README.md",
        "adapter/training.json", "report.html", "report.json",
    }  # fmt: skip


def test_the_manifest_says_what_made_the_run(run, home, tiny_folder):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["problem"] is None
    assert manifest["started"] <= manifest["ended"]
    assert manifest["versions"]["rankwise"] == __version__
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["data"]["sha256"] == hashlib.sha256((home / "rows.jsonl").read_bytes()).hexdigest()
    counted = [manifest["data"][key] for key in ("rows", "training_sequences", "validation_sequences")]
    assert counted == [15, 12, 3]
    assert manifest["base_model"]["fingerprint"] == fingerprint(tiny_folder)
    assert manifest["base_model"]["name"] == str(tiny_folder)
    assert manifest["learning_rate"] == 0.02


def test_the_data_report_says_what_the_rows_were_and_goes_with_the_adapter(run, home):
    data_report = json.loads((run / "data_report.json").read_text())
    assert json.loads((run / "adapter" / "data_report.json").read_text()) == data_report
    assert [data_report[key] for key in ("rows", "used", "validation_rows", "skipped")] == [15, 15, 3, 0]
    (file,) = data_report["files"]
    assert (file["name"], file["format"], file["rows"]) == ("rows.jsonl", "prompt", 15)
    assert file["sha256"] == hashlib.sha256((home / "rows.jsonl").read_bytes()).hexdigest()
    assert data_report["sequences"] == data_report["eos_in_loss"] == 15 and data_report["template_parity"] is True
    assert data_report["template"]["kind"] == "model" and data_report["system"] is None and data_report["fatal"] == []
    manifest = json.loads((run / "manifest.json").read_text())
    steps = [row for row in read_metrics_log(run / "metrics.jsonl") if row["kind"] == "step"]
    assert manifest["data"]["loss_tokens"] < data_report["loss_tokens"] < data_report["tokens"], "3 are held out"
    # of 30 steps of 4 of the 12 rows, 3 are a pass
    assert sum(row["loss_tokens"] for row in steps) == manifest["data"]["loss_tokens"] * STEPS / 3


def test_the_same_command_under_another_name_gives_the_same_bytes(run, home, tiny_folder):
    done("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", "second", *RECIPE)
    assert weights(home / "runs" / "second") == weights(run)


def test_the_seed_decides_both_the_first_factors_and_the_order_of_the_rows(home, tiny_folder):
    factors, losses = [], []
    for seed in (0, 1):
        words = ("--run", f"seed-{seed}", "--steps", 1, "--batch-size", 4, "--seed", seed)
        assert rankwise("train", "--model", tiny_folder, "--data", "rows.jsonl", *words).exit_code == 0
        run = home / "runs" / f"seed-{seed}"
        losses.append(read_metrics_log(run / "metrics.jsonl")[0]["loss"])
        factors.append(load_file(run / "adapter" / "adapter_model.safetensors"))
    # B starts at zero: A has had no gradient yet, and the loss is the base's on whichever rows came first
    assert all((factors[0][key] != factors[1][key]).any() for key in factors[0] if "lora_A" in key)
    assert losses[0] != losses[1]


def test_a_yaml_file_asks_for_the_same_as_flags(run, home, tiny_folder):
    (home / "same.yaml").write_text(
        f"model: {tiny_folder}\n"
        "data: {path: rows.jsonl, held_out: 3}\n"
        "run: from-yaml\n"
        "adapter: {rank: 4}\n"
        f"training: {{batch_size: 4, learning_rate: 2e-2, steps: {STEPS}}}\n"
    )
    done("train", "same.yaml", "--json")
    assert spec_of(home, "from-yaml") == spec_of(home, "first")
    assert weights(home / "runs" / "from-yaml") == weights(run)


def test_set_wins_over_a_flag_and_a_flag_over_the_yaml_file(home, tiny_folder):
    (home / "short.yaml").write_text(
        f"model: {tiny_folder}\ndata: rows.jsonl\nrun: mixed\nadapter:\n  rank: 2\ntraining:\n  steps: 7\n  seed: 5\n"
    )
    result = done(
        "train", "short.yaml", "--steps", 3, "--batch-size", 2, "--set", "training.batch_size=3", "--set",
        "adapter.alpha=8", "--set", "data.held_out=2", "--json",
    )  # fmt: skip
    spec = spec_of(home, "mixed")
    assert (spec["training"]["steps"], spec["training"]["batch_size"], spec["training"]["seed"]) == (3, 3, 5)
    assert (spec["adapter"]["rank"], spec["adapter"]["alpha"], spec["data"]["held_out"]) == (2, 8, 2)
    config = json.loads((home / "runs" / "mixed" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 8)
    assert json.loads(result.stdout)["steps"] == 3


def test_without_json_the_words_hold_the_same_numbers_and_say_what_to_do_next(home, tiny_folder):
    words = ("--run", "spoken", "--steps", 2, "--held-out", 3)
    result = done("train", "--model", tiny_folder, "--data", "rows.jsonl", *words)
    results = json.loads((home / "runs" / "spoken" / "manifest.json").read_text())["results"]
    assert f"loss {results['loss']:.3f}" in " ".join(result.stdout.split())
    assert f"{results['validation_loss_before']:.4f} -> {results['validation_loss_after']:.4f}" in result.stdout
    assert "runs/spoken/adapter" in result.stdout and "rankwise chat spoken --both" in result.stdout


def test_rows_too_long_are_left_out_whole_and_counted(home, tiny_folder):
    lines = (home / "rows.jsonl").read_text() + json.dumps({"prompt": "long " * 100, "completion": "word " * 100})
    (home / "mixed.jsonl").write_text(lines)
    words = ("--run", "lengths", "--steps", 2, "--max-length", 100)
    result = done("train", "--model", tiny_folder, "--data", "mixed.jsonl", *words)
    data = json.loads((home / "runs" / "lengths" / "manifest.json").read_text())["data"]
    assert (data["rows"], data["training_sequences"], data["rows_too_long"]) == (16, 15, 1)
    assert "left out: 1 too long" in result.stderr
    data_report = json.loads((home / "runs" / "lengths" / "data_report.json").read_text())
    assert (data_report["rows"], data_report["used"], data_report["skipped_why"]) == (16, 15, {"too long": 1})
    [skipped] = data_report["skipped_rows"]
    assert skipped["where"] == "mixed.jsonl:16" and "more than 100" in skipped["why"]


def test_training_does_not_touch_the_base_model_on_the_disk(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl")
    before = {file.name: file.read_bytes() for file in tiny_folder.iterdir()}
    words = ("--data", "rows.jsonl", "--run", "x", "--steps", 1)
    assert rankwise("train", "--model", tiny_folder, *words).exit_code == 0
    assert {file.name: file.read_bytes() for file in tiny_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", 2), r"AdaLoRA starts with 42 triplets, prunes from step 3 on, and has 28 left after step 7"),
        (("--budget", 500), r"384 triplets, .* 384 left after .*; the budget of 7,000 is more than these layers"),
        (("--budget", "3kB"), r"starts with [\d,]+ bytes, .* has (2,9\d\d|3,000) left"),
    ],
)
def test_what_adalora_will_do_is_told_before(home, tiny_folder, words, said):
    command = ("train", "--model", tiny_folder, "--data", "rows.jsonl", "--run", f"told-{words[1]}", "--steps", 10)
    result = rankwise(*command, "--method", "adalora", *words)
    assert result.exit_code == 0 and re.search(said, result.stderr), result.stderr


def test_an_adapter_on_a_table_that_is_the_head_too_is_told(tmp_path, monkeypatch, hub_tokenizer):
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2", vocab=len(hub_tokenizer)).save_pretrained("base")
    hub_tokenizer.save_pretrained("base")
    write_rows(tmp_path / "rows.jsonl")
    words = ("train", "--model", "base", "--data", "rows.jsonl", "--steps", 1)
    shared = rankwise(*words, "--run", "shared", "--targets", "wte,c_attn")
    assert "transformer.wte shares its weight with the output head" in shared.stderr and shared.exit_code == 0
    assert "shares its weight" not in rankwise(*words, "--run", "other", "--targets", "wpe,c_attn").stderr
    told = printed("export", "shared", "--to", "whole", "--format", "merged")
    assert told["logits_difference"] < 1e-5
