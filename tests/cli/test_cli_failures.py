"""What a disk, a limit or a signal does to a command is one sentence and an exit code; a bug keeps its traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kit.command import rankwise
from kit.first_line import BEGUN, WITHIN
from kit.report_runs import made_run
from rankwise.cli.failures import report_failures
from rankwise.errors import DataError, ResourceError, RunError, is_out_of_memory, typed
from rankwise.system.memory import available_memory
from rankwise.system.signals import ask_to_stop, forget

SYSTEM = {
    "ENOSPC": (ResourceError, "Free some space"), "EDQUOT": (ResourceError, "Free some space"),
    "EFBIG": (ResourceError, "Free some space"), "EMFILE": (ResourceError, "ulimit -n"),
    "ENFILE": (ResourceError, "ulimit -n"), "EAGAIN": (ResourceError, ""), "ENOMEM": (ResourceError, "out of memory"),
    "EIO": (ResourceError, "Check the disk"), "EACCES": (RunError, ""),
    "EPERM": (RunError, ""), "EROFS": (RunError, ""),
    "ENOENT": (RunError, ""), "ENOTDIR": (RunError, ""), "EISDIR": (RunError, ""), "ELOOP": (RunError, ""),
    "ENAMETOOLONG": (RunError, ""), "ESTALE": (RunError, ""), "ENOTEMPTY": (RunError, ""), "EXDEV": (RunError, ""),
}  # fmt: skip
MEMORY = [
    MemoryError(), RuntimeError("could not create a primitive"), RuntimeError("could not execute a primitive"),
    RuntimeError("could not create a memory object"), RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError("libgomp.so.1: failed to map segment from shared object"),
]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_every_error_of_the_system_names_the_file_and_the_reason(name):
    kind, advice = SYSTEM[name]
    number = getattr(errno, name)
    ours = typed(OSError(number, os.strerror(number), "/disk/file"))
    assert type(ours) is kind and advice in str(ours) and str(ours).endswith(".") and "\n" not in str(ours)
    if name != "ENOMEM":
        assert "/disk/file" in str(ours) and os.strerror(number) in str(ours)
    passed_on = typed(Exception(f"I/O error: {os.strerror(number)} (os error {number})"))
    assert type(passed_on) is (kind if name != "ENOMEM" else RunError)


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_memory_that_ran_out_is_known_however_a_library_says_it(error):
    assert is_out_of_memory(error) and type(typed(error)) is ResourceError


@pytest.mark.parametrize(
    "error",
    [RuntimeError("could not create a primitive descriptor for a matmul"), AssertionError(), KeyError("x"),
     TypeError("y"),
     RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("z")],
    ids=str,
)  # fmt: skip
def test_a_bug_is_none_of_these(error):
    assert typed(error) is None and not is_out_of_memory(error)
    with pytest.raises(type(error)), report_failures(False):
        raise error


def test_half_of_a_character_is_named_where_it_stands():
    with pytest.raises(UnicodeEncodeError) as raised:
        ("x" * 30 + "\ud800" + "y" * 30).encode()
    ours = typed(raised.value)
    assert type(ours) is DataError and "position 30" in str(ours) and r"\ud800" in str(ours)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_command_ends_with_the_sentence_and_the_code(as_json, capsys):
    with pytest.raises(SystemExit) as ended, report_failures(as_json):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/disk/file")
    out, err = capsys.readouterr()
    assert ended.value.code == 4 and err.count("\n") == 1
    assert err.startswith("rankwise: /disk/file cannot be read or written")
    assert not as_json or json.loads(out)["kind"] == "ResourceError"


@pytest.mark.parametrize(
    "error", [RuntimeError("pydantic"), AttributeError("half imported"), OSError(errno.EINTR, "x")]
)
def test_an_error_that_a_library_makes_of_ctrl_c_is_ctrl_c(error, capsys):
    try:
        with pytest.raises(SystemExit) as ended, report_failures(False):
            try:
                ask_to_stop(KeyboardInterrupt())
            except KeyboardInterrupt:
                raise error from None
        assert (ended.value.code, capsys.readouterr().err) == (130, "rankwise: stopped.\n")
    finally:
        forget()


SIGNALLED = """
import os, signal
from rankwise.cli.failures import report_failures
with report_failures(as_json=False):
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("launcher", "says"), [({}, True), ({"RANKWISE_LAUNCHER": "1"}, False)])
def test_of_several_processes_that_the_launcher_ends_only_the_launcher_says_why(launcher, says):
    """A process whose fellow was killed gets a signal, and does not know whether the user asked for it."""
    several = {"TORCHELASTIC_RUN_ID": "r", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    environment = os.environ | several | launcher
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 143
    assert done.stderr == ("rankwise: stopped by a signal.\n" if says else "")


def test_ctrl_c_in_a_finaliser_is_not_printed(capfd):
    class Finalised:
        def __del__(self):
            raise KeyboardInterrupt

    with report_failures(False):
        Finalised()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["file", "no folder", "read by nobody"])
def test_a_folder_that_is_none_is_one_sentence(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    if what == "file":
        (tmp_path / "cache").write_text("")
    elif what == "no folder":
        (tmp_path / "cache").symlink_to(tmp_path / "cache")
    else:
        (tmp_path / "cache").mkdir(mode=0)
    result = rankwise("cache")
    assert result.exception is None or isinstance(result.exception, SystemExit)


WORDS = ["train", "--model", "nowhere", "--data", "rows.jsonl", "--steps", "2"]


@pytest.mark.parametrize("milliseconds", [0, 300])
def test_ctrl_c_from_the_first_line_on_is_no_traceback(milliseconds, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 50)
    words = [sys.executable, "-c", BEGUN, *WORDS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and process.returncode in (2, 130, -signal.SIGINT), err


def within(function, *words):
    """A command that gets Ctrl-C as a function of torch begins a part of it."""
    return [sys.executable, "-c", WITHIN, function, *words]


@pytest.fixture
def no_model(tmp_path):
    """A folder with rows and one that is no model, which is noticed once torch is there."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 50)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere/config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.mark.parametrize(("function", "options"), [("_c10d_init", []), ("_multiprocessing_init", ["--json"])])
def test_ctrl_c_in_compiled_code_that_is_being_imported_aborts_nothing(function, options, no_model):
    """Both functions abort the process where the Python that they call raises."""
    words = within(function, *WORDS, "--run", "a", *options)
    ended = subprocess.run(words, capture_output=True, text=True, cwd=no_model, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "rankwise: stopped.\n")
    if options:
        assert json.loads(ended.stdout) == {"error": "stopped.", "kind": "Interrupted", "exit_code": 130}


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_ctrl_c_there_ends_a_command_whose_output_nobody_reads(closed, no_model):
    words = within("_c10d_init", *WORDS, "--run", "a", "--json")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: subprocess.PIPE}
    with subprocess.Popen(words, cwd=no_model, **pipes) as process:
        getattr(process, closed).close()
        assert process.wait(timeout=60) == 130


def test_ctrl_c_there_comes_before_a_run_is_renamed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_run("a")
    assert subprocess.run(within("_c10d_init", "runs", "rename", "a", "b"), timeout=60).returncode == 130
    assert [folder.name for folder in (tmp_path / "runs").iterdir() if folder.is_dir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit of addresses")
@pytest.mark.parametrize("megabytes", [100, 300])
def test_without_room_for_a_library_a_command_ends_with_one_sentence_and_four(megabytes, tmp_path):
    import resource

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    words = ("train", "--model", "base", "--data", "rows.jsonl", "--run", "r")
    command = [sys.executable, "-m", "rankwise", *words]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limited, text=True, capture_output=True)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("rankwise: out of memory.") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="it has no limit of addresses")
def test_a_limit_of_addresses_limits_what_is_free(monkeypatch):
    import resource

    free, used = available_memory(), psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + (64 << 20), resource.RLIM_INFINITY))
    assert available_memory() <= min(free, 64 << 20) + (1 << 20)
