"""`rankwise strength` and `rankwise export --strength`: the curve of a run, and the run at a point of it."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

import rankwise as library
from kit.command import done, printed, rankwise
from kit.library import rows
from rankwise.adapters.formats.peft import read_peft
from rankwise.rows.encoded.sequences import evenly
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import read_strength

IDS = torch.arange(48).reshape(2, 24) % 96
QUICK = ("--blocks", 2)


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "adalora", "dora", "full"))
    return tmp_path / "home"


@pytest.mark.parametrize("run", ["lora", "full"])
def test_the_curve_of_a_run_lies_in_its_folder_and_is_printed_as_one_object(home, run):
    told = printed("strength", run, *QUICK)
    held = read_strength(RunDirectory(home / "runs" / run))
    assert told == {"run": f"runs/{run}"} | held.model_dump(mode="json", exclude={"format"})
    assert [point["strength"] for point in told["points"]] == [0, 0.25, 0.5, 0.75, 0.9, 1, 1.25, 1.5]
    assert told["n"] == 4 and told["task"] == "the 4 validation sequences" and "2 blocks of 256" in told["text"]
    base, whole = told["points"][0], told["points"][5]
    assert base["kl"] == {"value": 0, "low": 0, "high": 0} and base["delta_nll"] == 0
    kls = [point["kl"]["value"] for point in told["points"]]
    assert kls == sorted(kls) and kls[-1] > 1e-3
    results = json.loads((home / "runs" / run / "manifest.json").read_text())["results"]
    assert base["loss"]["value"] == pytest.approx(results["validation_loss_before"], rel=1e-4)
    assert whole["loss"]["value"] == pytest.approx(results["validation_loss_after"], rel=1e-4)
    assert 0 < told["recommended"] <= 1


def test_at_strength_one_it_is_what_an_evaluation_finds(home):
    """Of a model that is held in bfloat16, too: both measure in float32 on a processor."""
    words = ("--model", json.loads((home / "runs/lora/config.json").read_text())["model"]["name"])
    words += ("--data", "rows.jsonl", "--steps", 8, "--held-out", 4, "--set", "model.dtype=bfloat16", "--rank", 4)
    done("train", *words, "--learning-rate", 0.05, "--run", "half")
    told = [rankwise(verb, "half", "--blocks", 32, "--json") for verb in ("strength", "evaluate")]
    curve, evaluation = (json.loads(one.stdout) for one in told)
    (whole,) = [point for point in curve["points"] if point["strength"] == 1]
    assert whole["kl"]["value"] == evaluation["forgetting"]["kl"] > 0
    assert curve["points"][0]["kl"]["value"] == 0


def test_in_words_it_says_what_is_recommended_and_how_to_have_it(home):
    (home / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    result = rankwise("strength", "adalora", *QUICK, "--text", "text.txt", "--quiet")
    assert result.exit_code == 0 and result.stderr == "", result.output
    curve = read_strength(RunDirectory(home / "runs" / "adalora"))
    assert curve.task == "apart.jsonl" and curve.text.startswith("text.txt: 2 blocks")
    lines = result.stdout.splitlines()
    (starred,) = [line for line in lines if "*" in line]
    assert float(starred.split("*")[0]) == curve.recommended
    assert f"rankwise export runs/adalora --to FOLDER --strength {curve.recommended:g}" in lines[-1]
    assert all(ord(sign) < 127 for sign in "".join(lines[:9]))


def test_each_line_of_the_table_is_a_point_of_the_curve_and_a_gain_is_positive(home):
    result = done("strength", "lora", *QUICK, "--quiet")
    lines = [line.replace("*", " ").split() for line in result.stdout.splitlines()]
    first = 1 + next(at for at, cells in enumerate(lines) if cells[:1] == ["strength"])
    points = read_strength(RunDirectory(home / "runs" / "lora")).points
    gains = [points[0].loss.value - point.loss.value for point in points]
    assert max(gains) > 1e-3, "without a gain no sign could be wrong"
    for point, gain, cells in zip(points, gains, lines[first : first + len(points)], strict=True):
        shown = [float(cells[at]) for at in (0, 1, 5, 6, -1)]
        known = [point.strength, point.loss.value, gain, point.kl.value, point.delta_nll]
        assert shown == pytest.approx(known, rel=1e-3, abs=6e-5)


def test_of_many_rows_some_of_each_source_are_measured_and_said_to_be_some(home, tiny_folder, monkeypatch):
    """The first hundred were once taken, which may all be of one source, and called all of them."""
    files = []
    for start in (0, 40):
        files.append(f"from{start}.jsonl")
        Path(files[-1]).write_text(rows(12, start))
    sources = json.dumps([{"path": file} for file in files])
    words = ("--model", tiny_folder, "--steps", 2, "--held-out", 10, "--keep", "best", "--validate-every", 1)
    result = done("train", *words, "--run", "many", "--set", f"data.sources={sources}")
    monkeypatch.setattr("rankwise.commands.strength.MOST", 5)
    result = done("strength", "many", *QUICK)
    assert "5 of the 10 validation sequences, 5 sequences" in result.stdout
    assert "chose the step that was kept" in result.stdout
    assert "strength: the rows it was measured on chose" in Path("runs/many/report.html").read_text()
    Path("others.jsonl").write_text(rows(7, 80))
    result = rankwise("strength", "many", "--data", "others.jsonl", *QUICK)
    assert "5 of the 7 sequences of others.jsonl" in result.stdout and "chose the step" not in result.stdout


@pytest.mark.parametrize("count", [1, 2, 7, 100, 499, 500, 501])
def test_rows_are_spread_over_all_of_them(count):
    rows = list(range(500))
    found = evenly(rows, count)
    assert len(found) == len(set(found)) == min(count, 500) and found == sorted(found)
    gaps = {b - a for a, b in pairwise([*found, 500])}
    assert max(gaps) - min(gaps) <= 1, "evenly"


def test_a_run_that_held_nothing_out_wants_rows(home):
    result = rankwise("strength", "dora", *QUICK)
    assert result.exit_code == 2 and "has no validation rows" in result.stderr and "--data FILE" in result.stderr
    told = printed("strength", "dora", "--data", "apart.jsonl", *QUICK)
    assert told["task"] == "apart.jsonl" and told["n"] == 3
    other = rankwise("strength", "adalora", *QUICK, "--json")
    assert json.loads(other.stdout)["points"][0]["loss"] == told["points"][0]["loss"], "one base, the same rows"


def test_what_was_trained_on_measures_nothing(home):
    result = rankwise("strength", "lora", "--data", "rows.jsonl", *QUICK)
    assert result.exit_code == 2 and "rows.jsonl: belongs to the data of the run" in result.stderr
    shutil.copy("rows.jsonl", "same.txt")
    result = rankwise("strength", "lora", "--text", "same.txt", "--blocks", 1)
    assert result.exit_code == 2 and "rows.jsonl belongs to the data of the run" in result.stderr
    Path("rows.jsonl").write_text(rows(12, 1))
    result = rankwise("strength", "lora", *QUICK)
    assert result.exit_code == 2 and "have changed" in result.stderr
    assert not (home / "runs" / "lora" / "strength.json").exists()


def test_too_many_blocks_and_a_run_that_is_not_there_are_told(home):
    result = rankwise("strength", "lora", "--blocks", 100_000)
    assert result.exit_code == 2 and "100000 blocks of 257" in result.stderr
    result = rankwise("strength", "kpt", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["kind"] == "RunError"


@pytest.fixture
def base(tiny_folder):
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def turned(model: nn.Module, run: Path, strength: float) -> torch.Tensor:
    adapters = read_peft(model, run / "adapter")
    with adapters.scaled(strength):
        return logits(model)


@pytest.mark.parametrize(
    ("run", "format"),
    [("lora", "peft"), ("adalora", "portable"), ("adalora", "merged"), ("dora", "peft"), ("dora", "merged")],
)
def test_an_export_at_a_strength_is_the_model_at_that_strength(home, base, run, format):
    result = rankwise("export", run, "--to", "out", "--format", format, "--strength", 0.4, "--json")
    if run == "dora" and format != "merged":
        assert result.exit_code == 2 and "is DoRA" in result.stderr and not (home / "out").exists()
        return
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["strength"] == 0.4
    assert json.loads((home / "out" / "strength.json").read_text()) == {"run": run, "strength": 0.4}
    wanted, whole = turned(base(), home / "runs" / run, 0.4), turned(base(), home / "runs" / run, 1)
    scale = wanted.abs().max()
    assert (whole - wanted).abs().max() > 1e-3 * scale
    if format == "merged":
        found = [AutoModelForCausalLM.from_pretrained(home / "out", dtype=torch.float32).eval()]
    else:
        ours = base()
        read_peft(ours, home / "out")
        found = [ours, PeftModel.from_pretrained(base(), home / "out").eval()]
    for model in found:
        assert (logits(model) - wanted).abs().max() <= 1e-5 * scale


def test_a_model_that_learned_whole_is_exported_at_a_strength(home, base):
    result = rankwise("export", "full", "--to", "out", "--format", "merged", "--strength", 0.4)
    assert result.exit_code == 0 and "at strength 0.4" in result.stdout, result.output
    found, ours, before = (
        dict(model.named_parameters())
        for model in (
            AutoModelForCausalLM.from_pretrained(home / "out", dtype=torch.float32),
            AutoModelForCausalLM.from_pretrained(home / "runs" / "full" / "model", dtype=torch.float32),
            base(),
        )
    )
    assert any(not torch.equal(ours[name], before[name]) for name in ours)
    for name, weight in found.items():
        assert (weight - before[name].lerp(ours[name], 0.4)).abs().max() < 1e-6


def test_at_one_an_export_is_what_it_was(home):
    for number, words in enumerate([(), ("--strength", 1)]):
        assert rankwise("export", "adalora", "--to", f"out{number}", *words).exit_code == 0
    names = sorted(path.name for path in (home / "out0").iterdir())
    assert names == sorted(path.name for path in (home / "out1").iterdir()) and "strength.json" not in names
    assert all((home / "out0" / name).read_bytes() == (home / "out1" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("strength", "said"), [(-1, "out of range"), ("nan", "out of range"), (11, "out of range"), (0, "base model")]
)
@pytest.mark.parametrize("format", ["peft", "merged"])
def test_a_strength_that_means_nothing_is_not_exported(home, format, strength, said):
    result = rankwise("export", "lora", "--to", "out", "--format", format, f"--strength={strength}")
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not (home / "out").exists()


def test_from_python_the_curve_has_the_strengths_one_asks_for(home):
    found = library.strength("lora", blocks=1, strengths=[0.1])
    assert [point.strength for point in found.curve.points] == [0, 0.1, 1]
    with pytest.raises(library.RankwiseError, match="is out of range"):
        library.strength("lora", strengths=[float("nan")])
