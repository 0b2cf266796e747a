"""A run that was killed goes on with --resume, and nobody can tell from its adapter or its losses that it ever stopped.

Real processes are killed while they train, each by what it has written and never by the clock.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time

import pytest

from kit.command import done, rankwise
from kit.processes import Command
from kit.small_runs import as_first_format
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.training.trainer import Trainer

STEPS, EVERY = 70, 7
pytestmark = pytest.mark.slow  # for its fixtures
LORA = ("--rank", 2, "--dropout", 0.3)
EVA = ("--rank", 2, "--set", "adapter.start=eva")
ADALORA = ("--method", "adalora", "--budget", 2, "--dropout", 0.3)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("resuming")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny_folder, folder / "base")
    with contextlib.chdir(folder):
        yield folder


def words_of(run, *words, every=EVERY, steps=STEPS):
    return (
        "train", "--model", "base", "--data", "rows.jsonl", "--run", run, "--batch-size", 3, "--steps", steps,
        "--held-out", 2, "--set", f"training.checkpoint_steps={every}",
        *(("--backend", "eager") if steps > STEPS else ()), *words,  # a run so long is worth compiling
    )  # fmt: skip


def weights(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def told(run):
    """What the metrics log tells apart from time and memory."""
    rows = read_metrics_log(run / "metrics.jsonl")
    return [
        {key: row[key] for key in row if key not in ("seconds", "tokens_per_second", "resident_bytes")} for row in rows
    ]


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


def stopped(run, words, when, number=signal.SIGKILL):
    """Begin it as a process of its own, and end it as soon as `when()`. Returns what it said."""
    process = Command(*words)
    try:
        while not when(run):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err
    finally:
        process.kill()
        process.communicate()


def lines(run):
    return (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0


def saved(run):
    found = (path.name for path in run.glob("checkpoints/step-*"))
    return sorted(int(name.removeprefix("step-")) for name in found)


@pytest.fixture(scope="module")
def undisturbed(home):
    """The same runs, never stopped."""
    for name, method in (("lora", LORA), ("eva", EVA), ("adalora", ADALORA)):
        done(*words_of(f"whole-{name}", *method))
    return home / "runs"


def assert_is_as_if_never_stopped(run, whole, times):
    assert weights(run) == weights(whole)
    assert told(run) == told(whole)
    found = manifest(run)
    assert (found["status"], found["problem"], len(found["resumed"])) == ("finished", None, times)
    ours, theirs = found["results"], manifest(whole)["results"]
    same = ("loss", "steps", "validation_loss_before", "validation_loss_after", "adapter_bytes", "trainable_parameters")
    for key in same:
        assert ours[key] == theirs[key], key
    seconds = sum(row["seconds"] for row in read_metrics_log(run / "metrics.jsonl") if row["kind"] == "step")
    assert ours["train_seconds"] >= seconds
    assert {path.name for path in run.iterdir()} == {
        ".lock", "config.json", "data_report.json", "manifest.json", "metrics.jsonl", "adapter", "report.html",
        "report.json",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "method"), [("eva", EVA), ("adalora", ADALORA)])
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(home, undisturbed, name, method):
    run = home / "runs" / f"killed-{name}"
    words = words_of(run.name, *method)
    stopped(run, words, lambda run: lines(run) > EVERY + 2 and saved(run))
    for times, until in enumerate((20, 45), start=1):
        at = saved(run)[-1]
        stopped(run, (*words, "--resume"), lambda run, until=until: saved(run) and saved(run)[-1] >= until)
        found = manifest(run)
        assert (found["status"], len(found["resumed"])) == ("running", times)
        assert found["resumed"][-1]["step"] == at
        assert not (run / "adapter").exists() and saved(run)[-1] % EVERY == 0
    result = done(*words, "--resume", "--json")
    assert "continuing after step" in result.stderr and "EVA read" not in result.stderr
    assert json.loads(result.stdout)["steps"] == STEPS
    assert_is_as_if_never_stopped(run, undisturbed / f"whole-{name}", 3)


def test_a_run_that_was_told_to_end_names_the_way_on(home, undisturbed):
    run = home / "runs" / "ended"
    words = words_of(run.name, *LORA)
    code, out, _ = stopped(run, (*words, "--json"), lambda run: saved(run) and lines(run) % EVERY == 4, signal.SIGTERM)
    assert code == 143
    step, message = saved(run)[-1], json.loads(out)["error"]
    assert f"--resume to continue from step {step}" in message and "--restart" in message
    refused = rankwise(*words)
    assert refused.exit_code == 2 and f"--resume to continue from step {step}, or --restart" in refused.stderr
    # as if the power had failed while a record, the next checkpoint and the adapter were being written
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    (run / "checkpoints" / ".step-999.1.tmp").mkdir()
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"of a run whose manifest was never written")
    assert rankwise(*words, "--resume").exit_code == 0
    assert_is_as_if_never_stopped(run, undisturbed / "whole-lora", 1)


@pytest.fixture(scope="module")
def begun(home):
    """A run that was killed with a checkpoint; each test has its own copy, "it"."""
    run = home / "runs" / "begun"
    stopped(run, words_of("it", *LORA, steps=1_000_000), lambda _: saved(home / "runs" / "it"))
    (home / "runs" / "it").rename(run)
    return run


@pytest.fixture
def it(home, begun):
    run = home / "runs" / "it"
    shutil.copytree(begun, run)
    yield run
    shutil.rmtree(run)


def content(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(it, *words):
    """Nothing of the run has changed. A run that is not refused would train for hours, so its first step fails."""
    before = content(it)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Trainer, "run")
        result = rankwise(*words_of("it", *LORA, steps=1_000_000), *words, "--resume")
    assert result.exit_code == 2, result.output
    assert content(it) == before
    return result.stderr


def test_other_settings_are_refused_by_name(it):
    message = refused(it, "--seed", 3, "--rank", 4)
    assert "training.seed was 0 and is now 3" in message and "adapter.rank was 2 and is now 4" in message
    assert "other settings" in message and "training.steps" not in message


def test_other_data_are_refused(it, home):
    file = home / "rows.jsonl"
    text = file.read_text()
    file.write_text(text.replace("town 3", "town 4"))
    try:
        assert "the data changed" in (message := refused(it)) and "files" in message
    finally:
        file.write_text(text)


def test_another_base_model_is_refused(it, home):
    file = home / "base" / "model.safetensors"
    old = file.read_bytes()
    file.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    try:
        assert "the base model changed" in (message := refused(it)) and "fingerprint" in message
    finally:
        file.write_bytes(old)


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "metrics.jsonl", "manifest.json"])
def test_a_damaged_checkpoint_without_another_is_refused(it, file):
    path = it / "checkpoints" / f"step-{saved(it)[-1]}" / file
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(it)
    assert "no checkpoint that is whole" in message and "--restart" in message
    assert message.count(f"was passed over: {file}: ") == len(saved(it)) == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.split("\n", 5)[5], "lacks steps"),
        (lambda text: "", "lacks steps"),
        (lambda text: text.replace('"loss"', '"less"'), "damaged"),
        (lambda text: "1\n" + text, "damaged"),
        (lambda text: "[" * 100_000 + "\n" + text, "no record"),
        (None, "damaged"),
    ],
)
def test_metrics_that_do_not_reach_a_checkpoint_without_copies_are_refused(it, damage, said):
    as_first_format(it / "checkpoints" / f"step-{saved(it)[-1]}")
    file = it / "metrics.jsonl"
    file.unlink() if damage is None else file.write_text(damage(file.read_text()))
    words = {
        "lacks steps": "metrics.jsonl lacks steps",
        "damaged": "is damaged",
        "no record": "1: is not a JSON record",
    }
    assert words[said] in (message := refused(it))
    assert said == "no record" or "--restart" in message


def test_a_run_without_a_checkpoint_can_only_be_begun_again(it):
    shutil.rmtree(it / "checkpoints")
    assert "no checkpoint to resume from" in (message := refused(it)) and "--restart" in message
    plain = rankwise(*words_of("it", *LORA, steps=1_000_000))
    assert plain.exit_code == 2 and "--resume" not in plain.stderr and "--restart" in plain.stderr


def test_restart_forgets_the_checkpoints(it):
    assert rankwise(*words_of("it", *LORA, steps=5), "--restart").exit_code == 0
    assert manifest(it)["resumed"] == [] and not (it / "checkpoints").exists()


def test_what_cannot_be_resumed_is_told(home, undisturbed):
    before = sorted((home / "runs").iterdir())
    for run, words, said in (
        ("whole-lora", ("--resume",), "is finished"),
        ("new", ("--resume",), '"new" does not exist yet'),
        ("new", ("--resume", "--restart"), "one of them"),
    ):
        result = rankwise(*words_of(run, *LORA, *words))
        assert result.exit_code == 2 and said in result.stderr
    assert sorted((home / "runs").iterdir()) == before


def test_a_last_record_that_is_no_text_is_left_out(it):
    with (it / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe")
    words = words_of("it", *LORA, steps=1_000_000)
    step = saved(it)[-1]
    _, _, err = stopped(it, (*words, "--resume"), lambda it: saved(it)[-1:] > [step])
    assert f"continuing after step {step}" in err
