"""A run that is held to its base: the same after a stop, told in its records, and within its budget of forgetting."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import Result

from kit.command import done, printed, rankwise
from kit.library import COMMON, Library
from rankwise.training.extras import anchor as anchoring
from rankwise.training.trainer import Trainer

ANCHOR = ("--rank", "4", "--held-out", "4", "--anchor", "2", "--anchor-text", "other.txt",
          "--set", "training.anchor.tokens=16")  # fmt: skip
OTHER = " ".join(
    f"At {hour} the ferry to harbour {hour * 7 % 24} leaves with {hour * 5} people." for hour in range(150)
)


def trained(name: str, *more: str) -> Result:
    return done("train", *COMMON, "--run", name, *ANCHOR, *more)


def rows_of(name: str, kind: str) -> list[dict[str, float]]:
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(name: str) -> bytes:
    return Path("runs", name, "adapter", "adapter_model.safetensors").read_bytes()


def _stop_at(step: int) -> Callable[[Trainer], Any]:
    original = Trainer._timed_step

    def stops(self: Trainer) -> Any:
        if self.state.step == step:
            raise KeyboardInterrupt
        return original(self)

    return stops


@pytest.fixture
def home(library: Library, tmp_path: Path):
    with contextlib.chdir(library.lay_out(tmp_path / "home")):
        Path("other.txt").write_text(OTHER)
        yield


@pytest.mark.usefixtures("home")
def test_a_run_that_was_stopped_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget, whose weight must go on where it was, on the base's own text and code."""
    text = ("--set", "training.anchor.text=null", "--set", "training.anchor.code=true")
    options = ("--forget-at-most", "0.5", "--set", "training.checkpoint_steps=5", "--backend", "eager", *text,
               "--steps", "20")  # fmt: skip
    trained("whole", *options)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_timed_step", _stop_at(12))
        assert rankwise("train", *COMMON, "--run", "stopped", *ANCHOR, *options).exit_code == 130
    trained("stopped", *options, "--resume")
    assert weights("stopped") == weights("whole")
    assert rows_of("stopped", "budget") == rows_of("whole", "budget") and len(rows_of("whole", "budget")) > 5


@pytest.mark.usefixtures("home")
def test_a_run_with_code_goes_on_where_what_was_read_of_the_library_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "argparse.py"
    read = Path(argparse.__file__).read_text()
    library.write_text(read)
    monkeypatch.setattr(anchoring, "sysconfig", SimpleNamespace(get_path=lambda _: str(tmp_path)))
    code = ("--set", "training.anchor.text=null", "--set", "training.anchor.code=true", "--steps", "4")
    stops = ("--set", "training.checkpoint_steps=2")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_timed_step", _stop_at(3))
        assert rankwise("train", *COMMON, "--run", "coded", *ANCHOR, *code, *stops).exit_code == 130
    library.write_text("# an earlier Python\n" + read)
    refused = rankwise("train", *COMMON, "--run", "coded", *ANCHOR, *code, *stops, "--resume")
    told = " ".join(refused.output.split())
    assert refused.exit_code == 2 and "Traceback" not in told
    assert "the anchor's text (text that the base model wrote itself, and source code of Python's standard" in told
    assert "changed since it was started (sha256)" in told
    library.write_text(read + "# beyond what is read\n")
    trained("coded", *code, *stops, "--resume")


@pytest.mark.usefixtures("home")
def test_an_anchored_run_forgets_less_and_says_how_far_it_is() -> None:
    trained("held", "--anchor", "300", "--set", "training.anchor.text=null")
    done("train", *COMMON, "--run", "free", "--rank", "4", "--held-out", "4")
    apart = [row["divergence"] for row in rows_of("held", "step")]
    assert len(apart) == 40 and apart[0] == 0.0 and max(apart) > 0
    assert all("divergence" not in row for row in rows_of("free", "step"))
    manifest = json.loads(Path("runs/held/manifest.json").read_text())
    assert manifest["anchor"]["text"] == "text that the base model wrote itself: 64 blocks of 16 tokens"
    forgotten = {}
    for name in ("held", "free"):
        forgotten[name] = printed("evaluate", name, "--blocks", "4")["forgetting"]["kl"]
    assert forgotten["held"] < 0.5 * forgotten["free"]


@pytest.mark.usefixtures("home")
def test_the_result_keeps_its_budget() -> None:
    """A tiny budget, for which the change must be scaled down, and what is written is what was measured."""
    result = trained("tight", "--forget-at-most", "0.0005", "--json")
    told = json.loads(result.stdout)
    budget = told["budget"]
    assert budget["strength"] < 1 and budget["divergence"] <= 0.0005 < budget["divergence_at_full_strength"]
    assert told["validation_loss_after"] != budget["validation_loss_at_full_strength"]
    trained("loose", "--forget-at-most", "9")
    loose = json.loads(Path("runs/loose/manifest.json").read_text())["results"]["budget"]
    assert loose["strength"] == 1 and loose["divergence"] == loose["divergence_at_full_strength"]
    assert [row["weight"] for row in rows_of("loose", "budget")][-1] == 0.01, "no weight is needed"
    tight, adapter = load_file("runs/tight/adapter/adapter_model.safetensors"), Path("runs/tight/adapter")
    assert adapter.exists() and all(value.isfinite().all() for value in tight.values())
    measured = rankwise("evaluate", "tight", "--json", "--no-forgetting")
    loss = json.loads(measured.stdout)["metrics"]["loss"]["value"]
    assert abs(loss - told["validation_loss_after"]) <= 1e-3


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--method", "full", "--anchor", "1"), "changes the base itself"),
        (("--set", "adapter.dora=true", "--forget-at-most", "0.1"), "DoRA"),
        (("--anchor", "0"), "greater than 0"),
        (("--anchor", "1", "--anchor-text", "nowhere.txt"), "nowhere.txt"),
        (("--anchor", "1", "--anchor-text", "short.txt"), "Give a longer text"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(options: tuple[str, ...], expected: str) -> None:
    Path("short.txt").write_text("One sentence is no text.")
    result = rankwise("train", *COMMON, "--run", "refused", *options)
    assert result.exit_code == 2 and expected in " ".join(result.output.split()), result.output
    assert not Path("runs/refused/manifest.json").exists()


@pytest.mark.usefixtures("home")
def test_forgetting_is_not_measured_on_the_anchors_own_text() -> None:
    trained("mine")
    result = rankwise("evaluate", "mine", "--text", "other.txt", "--blocks", "2")
    assert result.exit_code == 2 and "held to its base on this text" in " ".join(result.output.split())


@pytest.mark.usefixtures("home")
def test_forgetting_of_a_run_with_code_is_not_measured_on_like_text_in_silence() -> None:
    code = ("--set", "training.anchor.text=null", "--set", "training.anchor.code=true")
    trained("coded", *code, "--steps", "2")
    trained("given", "--steps", "2")
    Path("elsewhere.txt").write_text("The tide turns at noon. " * 400)
    for command, run, text, warned in (
        ("evaluate", "coded", (), True), ("strength", "coded", (), True), ("evaluate", "given", (), False),
        ("evaluate", "coded", ("--text", "elsewhere.txt"), False),
    ):  # fmt: skip
        result = done(command, run, "--blocks", "2", *text)
        assert ("which is like it" in " ".join(result.output.split())) == warned, (command, run, text)
    (held,) = [
        line for line in Path("runs/coded/adapter/README.md").read_text().splitlines() if "held to its base" in line
    ]
    assert "and source code of Python" in held
