"""Runs of an earlier version are read, gone on with, evaluated and exported, in another folder than they were made in.

`make.py` made them. Where torch and the processor are those that they were made with, numbers are the same to the last
bit; elsewhere products are added in another order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise
from golden.make import CHECKPOINT, RUNS, STEPS, machine
from kit.command import printed
from rankwise.config.reading import read_experiment as read_settings
from rankwise.runs.own_files import read_experiment
from rankwise.runs.queue import read_entry

GOLDEN = Path(__file__).parent
WEIGHTS = "adapter_model.safetensors"
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def assert_same(one: Path, other: Path) -> None:
    """Bytes where the machine is the same, and else numbers."""
    if machine() == (GOLDEN / "machine.txt").read_text():
        assert one.read_bytes() == other.read_bytes()
    torch.testing.assert_close(load_file(one), load_file(other), rtol=1e-3, atol=1e-5)


def measured(name: str) -> dict[str, float]:
    """Every number of a run's evaluation, by where it stands."""
    evaluation = json.loads(Path(f"runs/{name}/evaluations/held-out.json").read_text())
    sides = {side: evaluation[side]["scores"] for side in ("tuned", "base") if evaluation[side] is not None}
    return {f"{side} {metric} {end}": value for side, scores in sides.items() for metric, one in scores.items()
            for end, value in one["measured"].items()}  # fmt: skip


@every_run
def test_it_is_read(name: str) -> None:
    assert printed("runs", "verify", name)["whole"]
    run = rankwise.load_run(name)
    assert run.results["steps"] == run.metrics[-1]["step"] == STEPS
    assert "held-out" in printed("report", name)["verdict"]


def test_what_was_forgotten_and_the_curve_of_strengths_are_read() -> None:
    printed("report", "lora")
    forgetting = json.loads(Path("runs/lora/report.json").read_text())["forgetting"]
    strengths = json.loads((GOLDEN / "runs/lora/strength.json").read_text())
    assert forgetting["forgetting"]["kl"] > 0
    assert forgetting["strength"]["points"] == strengths["points"]


def as_earlier(config: Path, products: str) -> None:
    """With `training.matmul` as versions before it wrote it, in a file of settings or of a run that waits."""
    settings = json.loads(config.read_text())
    settings["training"] = {**settings["training"], "products": products}
    config.write_text(json.dumps(settings))


def test_a_setting_that_has_another_name_now_is_read_wherever_a_run_stored_it(tmp_path: Path) -> None:
    config = Path("runs/lora/config.json")
    as_earlier(config, "int8")
    entry = {"run": "lora", "added": "", "order": 1, "config": json.loads(config.read_text())}
    (tmp_path / "lora.json").write_text(json.dumps(entry))
    stored = (read_experiment(config.parent), read_entry(tmp_path / "lora.json").config, read_settings(config))
    assert [one.training.matmul for one in stored] == ["int8"] * 3


@every_run
def test_it_goes_on_to_the_same_result(name: str) -> None:
    shutil.rmtree(Path("runs") / name)
    shutil.move(Path("killed") / name, Path("runs") / name)
    as_earlier(Path("runs") / name / "config.json", "auto")
    printed("train", f"runs/{name}/config.json", "--resume", "--force-memory")
    assert printed("runs", "show", name)["manifest"]["resumed"][-1]["step"] == CHECKPOINT
    assert_same(Path("runs") / name / "adapter" / WEIGHTS, GOLDEN / "runs" / name / "adapter" / WEIGHTS)


@every_run
def test_it_is_evaluated_to_the_same_numbers(name: str) -> None:
    before = measured(name)
    printed("evaluate", name, "--no-forgetting")
    assert measured(name) == pytest.approx(before, rel=1e-4, abs=1e-6)


@every_run
def test_it_is_exported(name: str) -> None:
    printed("export", name, "--to", "peft")
    assert_same(Path("peft") / WEIGHTS, Path("runs") / name / "adapter" / WEIGHTS)
    merged = printed("export", name, "--to", "merged", "--format", "merged", "--dtype", "float32")
    assert merged["logits_difference"] < 1e-5
    assert merged["logits_change"] is None or merged["logits_change"] > 1e-3
