"""Training, answers and exports where the system has what Windows has (kit/windows.py), and names of files that Windows
refuses on every system."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rankwise
from kit import windows
from kit.library import Library, rows
from rankwise.cli.main import app
from rankwise.config.experiment import Experiment
from rankwise.config.tasks import task_of_rows
from rankwise.errors import ConfigError, DataError, RunError
from rankwise.runs.queue import Queue
from rankwise.studio.uploads import _path_of, plain_name
from rankwise.system import files
from rankwise.system.files import check_place, published, write_atomic

TRAIN = ("train", "--model", "tiny-llama", "--data", "rows.jsonl", "--held-out", "4", "--batch-size", "2")
ASK = ("--data", "apart.jsonl", "--max-new-tokens", "8")
COMMANDS = [
    (*TRAIN, "--run", "one", "--steps", "4", "--set", "training.checkpoint_minutes=0.0001"),
    (*TRAIN, "--run", "one", "--steps", "2", "--restart"),
    ("predict", "one", *ASK, "--out", "answers.csv"),
    ("export", "one", "--to", "merged", "--format", "merged"),  # mapped while it is compared, and then renamed
    ("export", "one", "--to", "peft", "--format", "peft"),
    ("export", "one", "--to", "gguf", "--format", "gguf"),
    ("predict", "one", "--text", "What is land 3?", "--max-new-tokens", "8"),
    (*TRAIN[:1], "--model", "gguf/model.gguf", *TRAIN[3:], "--run", "two", "--steps", "1"),  # no links
    ("runs", "rename", "one", "first"),  # a lock lies in the folder
    ("runs", "delete", "two", "--yes"),
    ("train", "--model", "nowhere", "--data", "rows.jsonl", "--run", "free"),
]
"""The last one fails, and leaves nothing."""


@pytest.mark.slow
def test_everything_from_rows_to_an_export_keeps_the_rules_of_windows(library: Library, tmp_path: Path) -> None:
    home = library.lay_out(tmp_path / "home")
    environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "RANKWISE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", windows.__file__, str(home), json.dumps(COMMANDS)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _, _ in outcomes] == [0] * 10 + [2], (outcomes[-1:], done.stderr[-3000:])
    assert "\ufffd" in outcomes[0][2], "an answer had characters that a console of Western Europe has not"
    assert (home / "answers.csv").is_file() and {"merged", "peft", "gguf"} <= set(os.listdir(home))
    assert [path for path in home.rglob("*") if path.suffix == ".tmp"] == []
    assert os.listdir(home / "runs") == ["first"]


BREAKS = [
    "import fcntl", "import resource", "os.fork", "os.sched_getaffinity", "signal.SIGHUP", "signal.SIGKILL",
    "select.select([], [], [])", "subprocess.Popen(['true'], preexec_fn=print)", "Path('a').rename('b')",
    "os.open('.', 0)", "os.fsync(os.open('a', 0))", "Path('a').unlink()", "Path('b').replace('a')",
    "Path('inside').rename('outside')", "Path('c').symlink_to('b')", "Path('aux.txt').touch()", "open('b')",
    "mapped = np.memmap('b', 'u1', 'r'); Path('b').unlink()", "Path('a:b').touch()",
]  # fmt: skip


def test_what_windows_lacks_is_missing(tmp_path: Path) -> None:
    # a simulation that refuses nothing would prove nothing
    script = f"""
import sys; sys.path.insert(0, {str(Path(windows.__file__).parent)!r})
import numpy, windows
windows.hide(); windows.rule_files()
names = {{"__file__": windows.OURS + "x.py", "__name__": "rankwise.x", "np": numpy}}
exec('''
import os, signal, select, subprocess, sys
from pathlib import Path
assert sys.platform == "win32" and os.name == "nt" and not hasattr(os, "fork") and hasattr(signal, "SIGTERM")
Path("inside").mkdir(); Path("b").write_text("b", encoding="utf-8")
held = [open("a", "w", encoding="utf-8"), open("inside/c", "w", encoding="utf-8")]
''', names)
for breaks in {BREAKS!r}:
    try: exec(breaks, names); print(breaks)
    except (ImportError, AttributeError, OSError, ValueError, EncodingWarning): pass
"""
    words = [sys.executable, "-X", "warn_default_encoding", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "", "nothing refuses it"


@pytest.mark.parametrize("name", ["con", "NUL", "aux.v2", "com1", "Lpt9.txt", "run.", "a:b", "a?", "a b", "run\n"])
def test_a_run_has_a_name_that_is_a_file_on_windows_too(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a name has at most 64 letters"):
        Experiment(run=name, model={"name": "x"}, data={"path": "rows.jsonl"})
    with pytest.raises(ConfigError):
        Queue().add(name, Experiment(run="x", model={"name": "x"}, data={"path": "rows.jsonl"}).explicit)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["console", "com", "com10", "nullable", "aux2", "a.con"])
def test_a_name_that_only_resembles_a_device_is_free(name: str) -> None:
    assert Experiment(run=name, model={"name": "x"}, data={"path": "rows.jsonl"}).run == name


@pytest.mark.parametrize("name", ["con.csv", "NUL", "rows ", "rows."])
def test_no_output_takes_a_name_that_windows_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Windows can have no file"):
        check_place(tmp_path / "new" / name)
    with pytest.raises(RunError, match="Windows can have no file"), published(tmp_path / "new" / name):
        pass
    assert os.listdir(tmp_path) == []


def test_what_is_named_after_a_file_of_the_user_is_a_file_on_windows() -> None:
    assert plain_name("C:\\rows\\con.csv") == "_con.csv"
    assert task_of_rows("con.jsonl").task == "con-rows"
    with pytest.raises(DataError, match="names a file"):
        _path_of("dark/nul.png")


def test_windows_is_asked_again_while_somebody_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced, refusals = Path.replace, [PermissionError(errno.EACCES, "busy")] * 2

    def busy(path: Path, to: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replaced(path, to)

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(RunError, match="cannot be written"):
        write_atomic(tmp_path / "a", b"on other systems it is an error at once")
    monkeypatch.setattr(files.sys, "platform", "win32")
    refusals.append(PermissionError(errno.EACCES, "busy"))
    write_atomic(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_terminal_without_a_sign_shows_an_escape(library: Library, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(library.lay_out(tmp_path / "home"))
    Path("rows.jsonl").write_text(rows(1).replace("town", "日本"), encoding="utf-8")
    done = CliRunner(charset="cp1252").invoke(app, ["data", "preview", "rows.jsonl", "--model", "tiny-llama"])
    assert done.exit_code == 0, done.exception
    assert "\\u65e5\\u672c" in done.output
