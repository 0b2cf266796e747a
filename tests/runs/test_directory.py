"""A finished run is never overwritten, two processes never write one run, and a damaged one is told as such."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.config.experiment import Experiment
from rankwise.errors import RunBusyError, RunError
from rankwise.runs.data_report import DataReport, TemplateFacts
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import BaseModelFacts, DataFacts, Manifest
from rankwise.runs.own_files import LARGEST_JSON, read_json
from rankwise.runs.snapshot import RunSnapshot

EXPERIMENT = Experiment(model="m", data="d", run="r", adapter={"layers": "0-2"})
SETTINGS = EXPERIMENT.model_dump(mode="json")


def manifest(status="running", **values):
    return Manifest(
        status=status,
        base_model=BaseModelFacts(name="m", source="here", fingerprint="f", dtype="float32", device="cpu"),
        data=DataFacts(
            path="d", sha256="0", format="prompt", rows=1, training_sequences=1, validation_sequences=0,
            rows_too_long=0, tokens=9, loss_tokens=3,
        ),
        learning_rate=1e-3,
        **values,
    )  # fmt: skip


DATA_REPORT = DataReport(
    format="prompt", files=(), model="m", rows=1, used=1, skipped=0, skipped_why={}, skipped_rows=(), validation_rows=0,
    sequences=1, tokens=9, loss_tokens=3, eos_in_loss=1, truncated=0, without_loss_tokens=0, lengths=None,
    masks={"prefix": 1}, template_parity=True, template_parity_broken=0, duplicates=0, near_duplicates=0, overlap=None,
    double_start=0, control_tokens_as_text=0, unknown_special_tokens={}, replacement_characters=0, licence="unknown",
    system="é", recipe=None, warnings=(), fatal=(),
    template=TemplateFacts(kind="model", sources={"default": "{{ é }}"}, sha256="0", ends=("<é>",), start=""),
)  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path):
    """Runs lie in the folder that a person works in."""
    with contextlib.chdir(tmp_path):
        yield


def written(name="r", status="finished", **values):
    run = RunDirectory.named(name)
    with run.claimed(restart=False) as claimed:
        claimed.begin(SETTINGS)
        claimed.write_data_report(DATA_REPORT)
        claimed.write_manifest(manifest(status, **values))
    return run


def names(folder="runs"):
    return sorted(path.name for path in Path(folder).iterdir())


def refusal(name="r", *, restart=False):
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    with pytest.raises(RunError) as caught, RunDirectory.named(name).claimed(restart=restart):
        pytest.fail("the claim was granted")
    after = {path: path.read_bytes() for path in before}
    assert {p: c for p, c in before.items() if p.name != ".lock"} == {
        p: c for p, c in after.items() if p.name != ".lock"
    }
    return str(caught.value)


CLAIM = (
    "import sys\nfrom rankwise.errors import RunError\nfrom rankwise.runs.directory import RunDirectory\n"
    "try:\n    with RunDirectory.named('r').claimed(restart=False):\n        print('granted')\n"
    "except RunError as error:\n    print(type(error).__name__, error.exit_code, error)\n"
)


def claim_elsewhere():
    done = subprocess.run([sys.executable, "-c", CLAIM], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_claim_that_wrote_nothing_leaves_nothing():
    with RunDirectory.named("r").claimed(restart=False):
        assert names() == ["r"]
    assert names() == []


def test_a_claim_that_failed_before_writing_leaves_nothing():
    with pytest.raises(KeyboardInterrupt), RunDirectory.named("r").claimed(restart=False):
        raise KeyboardInterrupt
    assert names() == []


def test_what_was_written_under_a_claim_stays():
    run = written()
    assert {"config.json", "data_report.json", "manifest.json"} <= set(names(run.folder))
    assert RunSnapshot.of(run).recorded_data == DATA_REPORT
    assert read_json(run.folder / "config.json", Experiment) == EXPERIMENT
    assert run.manifest().status == "finished"


def test_a_finished_run_is_refused_unless_it_is_to_begin_again():
    run = written(ended="2026-01-02T03:04:05+00:00")
    message = refusal()
    assert 'run "r" is finished (2026-01-02T03:04:05+00:00)' in message
    assert "--run" in message and "--restart" in message
    (run.folder / "evaluations").mkdir()
    with run.claimed(restart=True) as claimed:
        assert run.manifest().status == "finished", "nothing is lost before the training begins"
        claimed.begin(SETTINGS)
    assert not (run.folder / "evaluations").exists() and run.manifest().status == "interrupted"


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_run_is_refused_unless_it_is_to_begin_again(status):
    run = written(status=status)
    message = refusal()
    assert f"not finished ({status})" in message
    assert "--restart" in message
    with run.claimed(restart=True):
        pass
    assert run.manifest().status == status, "a claim that wrote nothing leaves the run as it was"


def test_beginning_again_leaves_nothing_of_the_old_attempt():
    run = written(status="failed")
    run.metrics.write_text('{"step": 1}\n')
    (run.folder / "adapter").mkdir()
    ((run.folder / "adapter") / "half").write_text("1")
    other = EXPERIMENT.model_copy(update={"run": "other"})
    with run.claimed(restart=True) as claimed:
        claimed.begin(other.model_dump(mode="json"))
        assert set(names(run.folder)) == {".lock", "config.json", "manifest.json"}
        assert run.manifest().status == "failed", "until the new one takes its place, this is a run"
    assert read_json(run.folder / "config.json", Experiment) == other


@pytest.mark.parametrize(("count", "again"), [(1, True), (2, False), (3, False), (3, True)])
def test_a_run_killed_before_its_first_manifest_can_be_begun(count, again):
    # after its data report, plain, --resume and --restart all said that the folder is not a run
    run = RunDirectory.named("r")
    if again:  # over an attempt whose manifest is damaged, with a stray that is never removed
        written(status="failed")
        (run.checkpoints.folder / "mine").mkdir(parents=True)
        (run.folder / "manifest.json").unlink()
    with run.claimed(restart=again) as claimed:
        claimed.begin(SETTINGS)
        if count > 1:
            claimed.write_data_report(DATA_REPORT)
        if count > 2:
            claimed.write("reference.json", [])
    there = names(run.folder)
    assert "manifest.json" not in there and len(there) == count + 1 + again
    with pytest.raises(RunError, match="Leave out --resume"), run.claimed(restart=False, resume=True):
        pass
    for restart in (False, True):
        with run.claimed(restart=restart):
            pass
    assert names(run.folder) == there


def test_a_run_whose_lock_file_is_removed_locks_it_anew():
    run = RunDirectory.named("r")
    with run.claimed(restart=False) as claimed:
        claimed.begin(SETTINGS)
        claimed.write_manifest(manifest())
        (run.folder / ".lock").unlink()
        claimed.write_manifest(manifest())
        assert claim_elsewhere().startswith("RunBusyError")


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_another_process_took_is_written_no_more(ended):
    # both trained, and one removed what the other had finished
    run = written(status="running")
    with run.claimed(restart=True) as claimed:
        (run.folder / ".lock").unlink()
        with run.claimed(restart=True) as other:
            other.begin(SETTINGS)
            other.write_manifest(manifest(status="failed", problem="another's"))
            if not ended:
                refused_writing(claimed)
        (run.folder / ".lock").unlink()
        refused_writing(claimed)
    assert run.manifest().problem == "another's"


def refused_writing(run):
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    for act in (
        run.check_lock, run.forget_steps, lambda: run.begin(SETTINGS), lambda: run.write_manifest(manifest()),
        lambda: run.write_data_report(DATA_REPORT), lambda: run.go_on(1, {}),
    ):  # fmt: skip
        with pytest.raises(RunBusyError, match=r"\.lock was removed or replaced"):
            act()
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_folder_that_is_no_run_is_refused_and_stays_as_it_is():
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/notes.txt").write_text("mine")
    for restart in (False, True):
        message = refusal(restart=restart)
        assert "contains" in message
        assert "notes.txt" in message
        assert "not a run" in message
    assert Path("runs/r/notes.txt").read_text() == "mine"


def test_a_refused_claim_leaves_nothing_in_a_folder_that_is_no_run():
    # a lock file stayed behind in somebody else's folder
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/notes.txt").write_text("mine")
    refusal()
    assert names("runs/r") == ["notes.txt"]


@pytest.mark.parametrize("path", ["runs", "runs/r"])
def test_a_file_where_the_folder_should_be_is_told(path):
    # the system's own error ended in a traceback
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("a file")
    with pytest.raises(RunError), RunDirectory.named("r").claimed(restart=False):
        pass


def test_a_second_claim_in_another_process_is_refused_with_the_owner():
    run = RunDirectory.named("r")
    with run.claimed(restart=False) as claimed:
        claimed.begin(SETTINGS)
        said = claim_elsewhere()
    assert said.startswith("RunBusyError 3 ")
    assert f'run "r" is being written by process {os.getpid()}.' in said


def test_a_second_claim_in_the_same_process_is_refused_too():
    run = RunDirectory.named("r")
    with run.claimed(restart=False) as claimed:
        claimed.begin(SETTINGS)
        with pytest.raises(RunBusyError), run.claimed(restart=False):
            pytest.fail("the claim was granted twice")


def test_a_refused_claim_does_not_take_the_name_from_its_owner():
    # while the owner loads its model the folder holds only the lock; who was refused removed both, so that a third
    # process was granted the run and the owner's own writing failed
    run = RunDirectory.named("r")
    with run.claimed(restart=False) as claimed:
        assert claim_elsewhere().startswith("RunBusyError")
        assert names(run.folder) == [".lock"]
        assert claim_elsewhere().startswith("RunBusyError")
        claimed.begin(SETTINGS)
    assert read_json(run.folder / "config.json", Experiment) == EXPERIMENT


def test_a_lock_is_gone_with_its_process():
    program = CLAIM.replace("print('granted')", "__import__('os').kill(__import__('os').getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    assert names("runs/r") == [".lock"]
    assert claim_elsewhere() == "granted"
    assert names() == []


def test_a_finished_run_is_opened_by_name_and_by_folder():
    run = written()
    assert RunSnapshot.finished("r").directory == run
    assert RunSnapshot.finished(str(run.folder.absolute())).manifest == run.manifest()
    run.folder.rename("moved")
    assert RunSnapshot.finished("moved").folder == Path("moved")


def test_a_run_that_is_missing_is_told_with_the_nearest_name():
    for name in ("refunds", "poems"):
        written(name)
    with pytest.raises(RunError) as caught:
        RunSnapshot.finished("refnds")
    assert str(caught.value) == 'there is no run "refnds". Did you mean "refunds"? Runs here: poems, refunds.'


def test_where_there_are_no_runs_that_is_told():
    with pytest.raises(RunError, match=r'there is no run "r".*no runs in this folder yet'):
        RunSnapshot.finished("r")


def test_a_name_too_long_for_any_folder_is_told():
    # the system's own error ended in a traceback
    with pytest.raises(RunError):
        RunSnapshot.finished("x" * 300)


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_is_not_finished_is_not_opened(status):
    written(status=status)
    with pytest.raises(RunError, match=rf'run "r" is not finished \({status}\), so it has no result yet'):
        RunSnapshot.finished("r")


DAMAGES = {
    "empty": "",
    "torn": '{"format": 1, "sta',
    "list": "[1, 2]",
    "text": '"x"',
    "other version": '{"format": 2, "version": 2}',
    "foreign": '{"hello": "world"}',
    "deep": "[" * 100_000,
    "long number": '{"format": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("file", ["manifest.json", "config.json", "data_report.json"])
def test_a_damaged_file_of_a_run_is_told_by_its_name(file, name):
    run = written()
    (run.folder / file).write_text(DAMAGES[name])
    with pytest.raises(RunError) as caught:
        _ = RunSnapshot.finished("r").recorded_data
    assert file in str(caught.value)
    assert "damaged or was written by another version" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_of_a_run_that_is_not_text_or_far_too_large_is_told():
    run = written()
    (run.folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        RunSnapshot.of(run)
    (run.folder / "config.json").write_bytes(b" " * (LARGEST_JSON + 1))
    with pytest.raises(RunError, match=r"config\.json has 10,000,001 bytes"):
        RunSnapshot.of(run)


def test_a_missing_file_of_a_run_is_told():
    run = written()
    (run.folder / "config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json is missing"):
        RunSnapshot.of(run)


def test_a_run_whose_manifest_is_damaged_is_not_overwritten():
    run = written()
    (run.folder / "manifest.json").write_text("{")
    for restart in (False, True):
        assert "manifest.json is damaged" in refusal(restart=restart)


def test_what_a_killed_process_was_writing_is_no_obstacle_and_is_removed(tmp_path):
    run = RunDirectory(tmp_path / "a")
    run.folder.mkdir()
    (run.folder / ".config.json.123.tmp").write_text("{")
    (run.folder / ".adapter.123.tmp").mkdir()
    (run.folder / ".adapter.123.tmp" / "adapter_model.safetensors").write_bytes(b"half")
    with run.claimed(restart=False) as claimed:
        claimed.begin(SETTINGS)
    assert not list(run.folder.glob(".*.tmp"))


def test_a_run_of_the_old_layout_is_refused_by_name():
    run = written()
    (run.folder / "config.json").rename(run.folder / "spec.json")
    with pytest.raises(RunError, match=r"runs/r is a run of an earlier version .* \(runs/r/adapter\)"):
        RunSnapshot.read("r")


def test_a_snapshot_reads_each_file_once_and_stays_as_it_was_read():
    run = written()
    snapshot = RunSnapshot.read("r")
    before = snapshot.experiment, snapshot.manifest, snapshot.recorded_data
    for file in ("config.json", "manifest.json", "data_report.json"):
        (run.folder / file).write_text("{")
    assert (snapshot.experiment, snapshot.manifest, snapshot.data_report) == before
