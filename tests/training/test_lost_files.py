"""Files of a run that go, change or lie in the way: none costs the result, and none is passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rankwise
from kit.library import Library, rows
from kit.report_runs import made_run
from rankwise.cli.main import app
from rankwise.errors import ResourceError, RunError
from rankwise.runs.integrity import check_result
from rankwise.runs.manifest import Manifest, Resumed
from rankwise.runs.own_files import StepFolders
from rankwise.runs.records import Event, StepRecord, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system import files
from rankwise.training import resume

STEPS, EVERY, AT = 9, 4, 6
RUN, WEIGHTS = Path("runs/r"), Path("runs/r/adapter/adapter_model.safetensors")
OWN = ("config.json", "data_report.json", "manifest.json", "metrics.jsonl")


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_folder)
    Path("rows.jsonl").write_text(rows(6))


@pytest.fixture
def library_home(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "short"))
    yield Path("runs/short")


def train(disturb: Callable[[], None] | None = None, **how: bool) -> Manifest:
    """`disturb` comes once, after step AT."""
    experiment = rankwise.Experiment(
        model="./base", data="rows.jsonl", run="r", adapter={"rank": 2},
        training={"steps": STEPS, "batch_size": 2, "backend": "eager", "checkpoint_steps": EVERY},
    )  # fmt: skip

    def hear(event: Event) -> None:
        if disturb is not None and isinstance(event, StepRecord) and event.step == AT:
            disturb()

    return rankwise.train(experiment, callback=hear, **how).manifest


def becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "loss"),
    [(OWN[0], Path.unlink), (OWN[1], lambda path: path.write_text("{}")), (OWN[1], becomes_a_folder)],
)
def test_settings_and_data_report_that_go_while_a_run_trains_are_written_anew(
    name: str, loss: Callable[[Path], None], home: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(stop)
    kept = (RUN / name).read_bytes()
    manifest = train(lambda: loss(RUN / name), restart=True)
    assert (RUN / name).read_bytes() == kept
    assert any(f"{name} was removed or changed while the run trained" in one for one in manifest.warnings)
    assert check_result(RunSnapshot.finished("r"), silent).status == "verified"


@pytest.mark.parametrize("name", OWN)
def test_a_folder_in_place_of_a_file_does_not_keep_a_run_from_going_on(name: str, home: None) -> None:
    train()
    whole = WEIGHTS.read_bytes()
    shutil.rmtree("runs")
    with pytest.raises(KeyboardInterrupt):
        train(stop)
    becomes_a_folder(RUN / name)
    (RUN / name / "mine").touch()
    assert any(f"{name} was in the way" in one for one in train(resume=True).warnings)
    assert WEIGHTS.read_bytes() == whole and (RUN / f"{name}.aside-1" / "mine").exists()


def becomes_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("mine")


def test_a_file_in_place_of_the_checkpoints_leaves_no_run_stuck(home: None) -> None:
    checkpoints = RUN / "checkpoints"
    assert train(lambda: becomes_a_file(checkpoints)).status == "finished"
    assert (RUN / "checkpoints.aside-1").read_text() == "mine"
    shutil.rmtree("runs")
    with pytest.raises(KeyboardInterrupt):
        train(stop)
    becomes_a_file(checkpoints)
    with pytest.raises(RunError, match="Use --restart"):
        train(resume=True)
    assert train(restart=True).status == "finished"


def test_what_cannot_be_removed_at_the_end_is_said_and_costs_nothing(
    home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folders: StepFolders, but: tuple[int, ...] = ()) -> None:
        if (RUN / "adapter").exists():
            raise OSError(5, "Input/output error", str(folders.folder))

    monkeypatch.setattr(StepFolders, "forget", refuse)
    assert train().status == "finished" and WEIGHTS.exists()


def verified(name: str) -> tuple[int, list[str], list[str]]:
    result = CliRunner().invoke(app, ["runs", "verify", name, "--json"])
    (found,) = json.loads(result.stdout)["runs"]
    return result.exit_code, found["problems"], found["left"]


def test_what_a_killed_process_left_in_a_finished_run_is_said_once_and_goes(library_home: Path) -> None:
    left = [library_home / "checkpoints/.step-8.123.tmp", library_home / "best/.step-4.123.tmp"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "state.safetensors").touch()
    assert verified("short") == (0, [], list(map(str, left)))
    assert verified("short") == (0, [], []) and not (library_home / "checkpoints").exists()


def test_one_flipped_bit_in_any_file_of_a_run_is_noticed(library_home: Path, tmp_path: Path) -> None:
    """Also after the run was renamed."""
    made_run("with-evaluations")
    shutil.copytree("runs/with-evaluations/evaluations", library_home / "evaluations")
    assert CliRunner().invoke(app, ["runs", "rename", "short", "renamed"]).exit_code == 0
    assert CliRunner().invoke(app, ["report", "renamed"]).exit_code == 0
    run = Path("runs/renamed")
    assert verified("renamed") == (0, [], [])
    names = [*OWN[:2], OWN[3], "report.json", "adapter/README.md", "adapter/adapter_config.json",
             *(str(path.relative_to(run)) for path in (run / "evaluations").iterdir())]  # fmt: skip
    assert len(names) > 6
    for name in names:
        content = (run / name).read_bytes()
        at = content.rindex(b"0") if b"0" in content else len(content) // 2
        (run / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        code, problems, _ = verified("renamed")
        assert code == 2 and any(name in problem for problem in problems), name
        (run / name).write_bytes(content)
    assert verified("renamed") == (0, [], [])


def test_a_run_of_a_version_without_these_hashes_is_whole(library_home: Path) -> None:
    content = json.loads((library_home / "manifest.json").read_text())
    del content["settings_sha256"], content["result_sha256"]["metrics.jsonl"], content["machine"]["threads"]
    del content["sha256"]
    (library_home / "manifest.json").write_text(json.dumps(content))
    assert verified("short")[:2] == (0, [])


def test_another_number_of_threads_is_said(home: None) -> None:
    manifest = train()
    assert manifest.machine["threads"] >= 1
    here = resume.training_machine()
    for before, said in ((here | {"threads": 7}, True), ({k: v for k, v in here.items() if k != "threads"}, False)):
        again = manifest.model_copy(update={"machine": before, "resumed": (Resumed(step=1, machine=here),)})
        assert ("threads was 7" in (resume.changed_since(again) or "")) == said


def test_little_room_is_told_in_kilobytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=61_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"needs 300 kB and .* has 61 kB free"):
        files.need_space(tmp_path / "r", 300_000)
