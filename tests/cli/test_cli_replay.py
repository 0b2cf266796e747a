"""A run that replays: the same after a stop, recorded, planned, and never with a validation row in it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import Result

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.command import done, printed, rankwise
from kit.library import COMMON, Library, rows
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.inference import own_text
from rankwise.objectives.registry import objective_named
from rankwise.rows.instructions import instructions
from rankwise.rows.preparation import Prepared
from rankwise.rows.preparing import prepare
from rankwise.runs.records import silent
from rankwise.training.extras.replay import ReplayedRows
from rankwise.training.trainer import Trainer

SHORT = ("--steps", "12")
OTHERS = ("--rank", "4", "--held-out", "4", "--replay", "0.25", "--replay-data", "others.jsonl")


def trained(name: str, *more: str) -> Result:
    return done("train", *COMMON, *SHORT, "--run", name, *more)


def stopped(name: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in its step 10."""
    original = Trainer._timed_step

    def stops(self: Trainer):
        if self.state.step == 9:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_timed_step", stops)
        assert rankwise("train", *COMMON, *SHORT, "--run", name, *options).exit_code == 130


def weights(name: str) -> bytes:
    return Path("runs", name, "adapter", "adapter_model.safetensors").read_bytes()


def losses(name: str) -> list[float]:
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"]


def recorded(name: str, file: str = "manifest.json") -> dict[str, Any]:
    return json.loads(Path("runs", name, file).read_text())


@pytest.fixture
def home(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a few instructions and short answers, so that the base writes them fast."""
    monkeypatch.setattr(own_text, "ANSWER_TOKENS", 8)
    monkeypatch.setattr(own_text, "instructions", lambda: instructions()[:6])
    with contextlib.chdir(library.lay_out(tmp_path / "home")):
        Path("others.jsonl").write_text(rows(9, 60))
        yield


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("source", ["answers", "others"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*OTHERS[: 6 if source == "answers" else None], "--set", "training.checkpoint_steps=4")
    trained("whole", *options)
    stopped("stopped", options, monkeypatch)
    trained("stopped", *options, "--resume")
    assert weights("stopped") == weights("whole") and losses("stopped") == losses("whole")


@pytest.mark.usefixtures("home")
def test_a_run_does_not_go_on_with_other_replay_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*OTHERS, "--set", "training.checkpoint_steps=4")
    stopped("stopped", options, monkeypatch)
    Path("others.jsonl").write_text(rows(9, 61))
    result = rankwise("train", *COMMON, *SHORT, "--run", "stopped", *options, "--resume")
    assert result.exit_code != 0 and "replay.sha256" in result.output


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "method", [("--rank", "4"), ("--method", "adalora", "--budget", "3"), ("--rank", "4", "--set", "adapter.dora=true"),
               ("--method", "full", "--learning-rate", "0.001")], ids=["lora", "adalora", "dora", "full"],
)  # fmt: skip
def test_packed_equals_padded_with_every_method(method: tuple[str, ...]) -> None:
    options = ("--replay", "0.4", "--steps", "4", "--batch-size", "5", "--backend", "eager", *method)
    for packing in ("false", "true"):
        trained(packing, *options, "--set", f"data.packing={packing}")
    assert np.allclose(losses("false"), losses("true"), rtol=1e-5)


@pytest.mark.usefixtures("home")
def test_what_was_replayed_is_recorded_told_and_planned() -> None:
    told = json.loads(trained("mine", *OTHERS, "--json").stdout)["replay"]
    report, manifest = recorded("mine", "data_report.json"), recorded("mine")
    assert told == report["replay"] == manifest["replay"]
    assert (told["source"], told["share"], told["rows"]) == ("others.jsonl", 0.25, 9)
    assert told["rows_in_pass"] == round(8 / 3) and told["left_out"] == 0
    assert manifest["data"]["training_sequences"] == 8 and report["rows"] == 12, "the run's own rows alone"
    assert "replay" in Path("runs/mine/adapter/README.md").read_text()
    assert "others.jsonl" in Path("runs/mine/report.html").read_text()
    assert recorded("mine", "config.json")["training"]["replay"]["data"]["path"] == "others.jsonl"


@pytest.mark.usefixtures("home")
def test_new_tokens_are_counted_in_the_own_rows_alone() -> None:
    trained("counted", *OTHERS, "--new-tokens", "<never>")
    about = [text for text in recorded("counted")["warnings"] if "<never>" in text]
    assert about == ["the new token '<never>' never occurs in the training rows, so the model cannot learn where to "
                     "use it"]  # fmt: skip


@pytest.mark.usefixtures("home")
def test_nothing_is_measured_on_rows_that_were_replayed() -> None:
    Path("texts.jsonl").write_text(
        "".join(json.dumps({"text": f"The ferry leaves at {hour}."}) + "\n" for hour in range(40))
    )
    trained("mine", "--replay", "0.25", "--replay-data", "texts.jsonl", "--held-out", "4")
    refused = rankwise("evaluate", "mine", "--text", "texts.jsonl", "--blocks", "1")
    assert refused.exit_code == 2 and "texts.jsonl belongs to the data of the run" in refused.output
    refused = rankwise("evaluate", "mine", "--data", "texts.jsonl", "--no-forgetting")
    assert refused.exit_code == 2 and "texts.jsonl: belongs to the data of the run" in refused.output


@pytest.mark.usefixtures("home")
def test_without_replay_nothing_is_replayed_and_with_the_bases_answers_the_loss_falls_on_them_too() -> None:
    told = json.loads(trained("own", "--replay", "0.5", "--held-out", "4", "--json").stdout)["replay"]
    assert told["source"].startswith("the base model's own answers") and told["rows"] == 6
    learned = told["loss_tokens"] * told["rows_in_pass"] / told["rows"]
    own = recorded("own", "manifest.json")["data"]["loss_tokens"]
    assert told["origins"] == [] and told["loss_share"] == pytest.approx(learned / (learned + own), abs=1e-4)
    assert json.loads(trained("none", "--held-out", "4", "--json").stdout)["replay"] is None
    assert recorded("none", "data_report.json")["replay"] is None
    replayed = load_file("runs/own/adapter/adapter_model.safetensors")
    none = load_file("runs/none/adapter/adapter_model.safetensors")
    assert any(not np.array_equal(replayed[name], none[name]) for name in none)


def prepared_with(share: float, others: str, **data: Any) -> tuple[Prepared, Prepared]:
    """The rows without and with replay."""
    settings = {"replay": {"share": share, "data": others}, "epochs": 1, "batch_size": 4}
    experiment = Experiment(model="tiny-llama", run="x", data={"path": "rows.jsonl"} | data, training=settings)  # pyright: ignore
    model = load(ModelConfig(name="tiny-llama", dtype="float32"), silent)
    writing = objective_named("causal-lm").rows.encoding(model)
    plain = prepare(experiment.data, writing, silent)
    replay = experiment.training.replay
    assert replay is not None, "it is asked for"
    replayed = ReplayedRows(replay, experiment.data, experiment.training)
    return plain, replayed.among(plain, model, writing, silent)


@pytest.mark.usefixtures("home")
def test_no_replay_row_is_a_validation_row() -> None:
    Path("others.jsonl").write_text(rows(3, 0) + rows(9, 60))
    Path("apart.jsonl").write_text(rows(2, 1))
    plain, mixed = prepared_with(0.25, "others.jsonl", validation="apart.jsonl")
    assert mixed.replay is not None and mixed.data_report.replay is not None
    assert mixed.data_report.replay.left_out == 2 and len(mixed.replay.numbers) == 10
    measured = [tuple(row.ids) for row in mixed.measured_rows]
    assert measured == [tuple(row.ids) for row in plain.measured_rows]
    assert not {tuple(row.ids) for row in mixed.shown_rows[len(plain.trained) :]} & set(measured)
    assert [tuple(row.ids) for row in mixed.trained_rows] == [tuple(row.ids) for row in plain.trained_rows]


@pytest.mark.usefixtures("home")
def test_the_plan_has_the_rows_and_the_steps_of_the_training() -> None:
    words = ("--model", "tiny-llama", "--data", "rows.jsonl", "--batch-size", "2", "--epochs", "3", "--rank", "4",
             "--set", "model.dtype=float32", "--set", "data.held_out=4")  # fmt: skip
    plain, mixed = (
        printed("plan", *words, *more) for more in ((), ("--replay", "0.5", "--replay-data", "others.jsonl"))
    )
    assert (plain["replay_rows"], mixed["replay_rows"]) == (0, 8)
    assert (plain["steps"], mixed["steps"]) == (12, 24)
    _, prepared = prepared_with(0.5, "others.jsonl", held_out=4)
    assert prepared.rows_in_pass == 16
    assert mixed["tokens"]["likely"] == pytest.approx(prepared.tokens_in_pass, rel=0.1)
    answers = printed("plan", *words, "--replay", "0.5")
    assert answers["steps"] == 24 and answers["tokens"]["likely"] > mixed["tokens"]["likely"]
    assert "8 of the sequences are replay rows" in rankwise("plan", *words, "--replay", "0.5").output


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--replay", "1"), "less than 1"),
        (("--replay", "0"), "greater than 0"),
        (("--replay", "0.2", "--replay-data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--replay", "0.2", "--replay-data", "broken.jsonl"), "replay rows"),
        (("--replay", "0.2", "--validation-data", "others.jsonl", "--replay-data", "others.jsonl"), "none is left"),
        (("--replay", "0.2", "--max-length", "36"), "--replay-data"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(options: tuple[str, ...], expected: str) -> None:
    Path("broken.jsonl").write_text('{"prompt": "What?", "completion": ""}\n')
    result = rankwise("train", *COMMON, "--run", "refused", *options)
    assert result.exit_code == 2 and expected in " ".join(result.output.split()), result.output
    assert not Path("runs/refused/manifest.json").exists()


@pytest.mark.usefixtures("home")
def test_classes_have_no_replay() -> None:
    encoder_folder(Path("tiny-bert"))
    write_rows("labels.jsonl", labelled(20))
    for model, data in (("tiny-bert", "labels.jsonl"), ("tiny-llama", "rows.jsonl")):
        objective = () if model == "tiny-bert" else ("--objective", "sequence-classification")
        result = rankwise("train", "--model", model, "--data", data, "--run", "x", "--replay", "0.2", *objective)
        assert result.exit_code == 2
        assert "the setting training.replay has no effect with the objective" in " ".join(result.output.split())


def test_replay_rows_are_read_by_their_own_settings() -> None:
    from rankwise.config.forgetting import ReplayDataConfig, replay_rows

    data = DataConfig(path="mine.jsonl", format="dolly", held_out=5, group="customer", system="Be brief.", rows=50,
                      max_length=300, validation=None, learned="everything")  # fmt: skip
    other = replay_rows(ReplayDataConfig(path="others.jsonl", columns={"prompt": "q", "completion": "a"}), data)
    assert (other.path, other.format, other.columns) == ("others.jsonl", "auto", {"prompt": "q", "completion": "a"})
    assert (other.held_out, other.group, other.system, other.rows) == (0, None, None, None)
    assert (other.max_length, other.learned) == (300, "everything")
