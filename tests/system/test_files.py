"""Files and folders are whole or not there, and a disk that is full is told as such."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankwise.errors import ResourceError, RunError
from rankwise.system.files import (
    ABANDONED,
    need_space,
    published,
    published_file,
    sha256_of,
    told_when_full,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def with_file_limit(folder, program):
    """Run a program that may write no file larger than 1000 bytes; the system answers EFBIG, as a full disk would."""
    head = "import resource\nfrom pathlib import Path\nfrom rankwise.errors import ResourceError\n"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    return subprocess.run(
        [sys.executable, "-c", head + limit + program], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "x"
    write_atomic(file, b"old and long")
    before = file.stat().st_ino
    with file.open("rb") as reader:
        write_atomic(file, b"new")
        assert reader.read() == b"old and long", "who reads meanwhile meets the old file, whole"
    assert file.read_bytes() == b"new"
    assert file.stat().st_ino != before
    assert names(tmp_path) == ["x"]


def test_a_file_that_cannot_take_its_name_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_atomic(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("publish", [published, published_file])
def test_what_fails_leaves_no_folder_that_was_created_for_it(tmp_path, publish):
    (tmp_path / "mine").mkdir()
    for place in ("mine/out", "new/deeper/out"):
        with pytest.raises(KeyboardInterrupt), publish(tmp_path / place) as temporary:
            (temporary if publish is published_file else temporary / "x").write_text("half")
            raise KeyboardInterrupt
        assert names(tmp_path) == ["mine"], "an empty folder of the user stays, and ours goes"
    with pytest.raises(KeyboardInterrupt), publish(tmp_path / "new/deeper/out"):
        (tmp_path / "new" / "theirs").write_text("")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["mine", "new", "theirs"], "what somebody else put there meanwhile stays"


def test_json_is_strict_and_a_value_that_is_none_leaves_the_old_file(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": "é", "b": [1, None]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é", "b": [1, None]}
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, {"a": value})
    assert json.loads(file.read_text(encoding="utf-8"))["a"] == "é"
    assert names(tmp_path) == ["x.json"]


def test_a_published_folder_appears_when_it_is_whole(tmp_path):
    final = tmp_path / "deep" / "adapter"
    with published(final) as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert not final.exists()
    assert names(final) == ["a", "b", "sub"]
    assert names(final.parent) == ["a", "adapter", "b", "sub"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_a_failure_while_publishing_leaves_no_trace(tmp_path, error):
    with pytest.raises(error), published(tmp_path / "adapter") as folder:
        (folder / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_a_failure_while_publishing_leaves_what_was_there(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").write_text("1")
    with pytest.raises(RuntimeError), published(tmp_path / "adapter") as folder:
        (folder / "new").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["adapter", "old"]


def test_of_two_who_publish_the_same_folder_the_first_stays_and_both_succeed(tmp_path):
    # two processes may fetch one model into the shared cache at the same time
    with published(tmp_path / "model", first_stays=True) as folder:
        (folder / "second").write_text("1")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "first").write_text("1")
    assert names(tmp_path) == ["first", "model"]


def test_a_folder_that_is_there_is_not_overwritten_and_not_passed_off_as_the_new_one(tmp_path):
    # a run whose old adapter could not be removed would otherwise be finished with it
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").write_text("1")
    with pytest.raises(RunError, match="already exists"), published(tmp_path / "adapter") as folder:
        (folder / "new").write_text("1")
    assert names(tmp_path) == ["adapter", "old"]


def test_what_a_killed_process_left_under_the_same_name_is_not_published(tmp_path):
    left = tmp_path / f".adapter.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half").write_text("1")
    with published(tmp_path / "adapter") as folder:
        (folder / "whole").write_text("1")
    assert names(tmp_path) == ["adapter", "whole"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_place_and_what_is_free(tmp_path, number):
    with pytest.raises(ResourceError) as caught, told_when_full(tmp_path / "none" / "x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 4
    assert str(tmp_path / "none" / "x") in str(caught.value)
    assert "MB free" in str(caught.value)


@pytest.mark.parametrize("text", ["No space left on device", "I/O error: something (os error 28)"])
def test_a_full_disk_is_recognised_in_the_words_of_other_libraries(tmp_path, text):
    with pytest.raises(ResourceError), told_when_full(tmp_path):
        raise RuntimeError(text)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_that_may_not_be_written_is_told(tmp_path, number):
    with pytest.raises(RunError, match="cannot be written"), told_when_full(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("x"), KeyError("x")])
def test_any_other_error_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, told_when_full(tmp_path):
        raise error
    assert caught.value is error


def test_a_file_too_large_for_the_disk_is_our_error_and_leaves_the_old_one(tmp_path):
    (tmp_path / "x").write_text("old")
    program = (
        "from rankwise.system.files import write_atomic\n"
        "try:\n    write_atomic(Path('x'), b'y' * 100_000)\nexcept ResourceError as error:\n    print(error)\n"
    )
    done = with_file_limit(tmp_path, program)
    assert done.stdout.startswith("no space left while writing x ("), done.stderr
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_folder_too_large_for_the_disk_is_our_error_and_leaves_nothing(tmp_path):
    program = (
        "from rankwise.system.files import published\n"
        "try:\n    with published(Path('adapter')) as folder:\n        (folder / 'a').write_bytes(b'y' * 100_000)\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    done = with_file_limit(tmp_path, program)
    assert done.stdout.startswith("no space left while writing adapter ("), done.stderr
    assert names(tmp_path) == []


def test_a_metrics_log_that_fills_the_disk_is_our_error(tmp_path):
    # closing the file tried once more to write the rest, and the system's own error took the place of ours
    program = (
        "from rankwise.runs.metrics_log import MetricsLog\n"
        "try:\n    with MetricsLog(Path('metrics.jsonl')) as metrics_log:\n"
        "        for step in range(1000):\n            metrics_log.append({'step': step})\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    done = with_file_limit(tmp_path, program)
    assert done.stdout.startswith("no space left while writing metrics.jsonl ("), done.stderr


def test_what_would_not_fit_is_refused_before_it_is_written(tmp_path):
    need_space(tmp_path / "none" / "x", 1)
    with pytest.raises(ResourceError) as caught:
        need_space(tmp_path / "none" / "x", 10**18)
    assert "1,000,000,000,000 MB" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []


def test_room_is_needed_for_a_fifth_more_than_the_size(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    need_space(tmp_path, int(free * 0.7))
    with pytest.raises(ResourceError):
        need_space(tmp_path, int(free * 0.95))


def test_a_relative_name_in_no_folder_has_space(tmp_path):
    need_space(Path("no-such-folder") / "x", 1)


def test_a_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_killed_process_left_beside_a_folder_goes_when_it_is_made_again(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".out.{gone.pid}.tmp", f".out.{os.getppid()}.tmp", f".other.{gone.pid}.tmp"):
        (tmp_path / name).mkdir()

    def made(name):
        with published(tmp_path / name) as temporary:
            (temporary / "file").write_text("x")
        return {path.name for path in tmp_path.iterdir()}

    kept = {"out", f".out.{os.getppid()}.tmp", f".other.{gone.pid}.tmp"}
    assert made("out") == kept | {f".out.{gone.pid}.tmp"}, "it may be at work on another machine"
    shutil.rmtree(tmp_path / "out")
    for left in tmp_path.iterdir():
        os.utime(left, (0, time.time() - ABANDONED - 60))
    assert made("out") == kept


@pytest.mark.parametrize(
    ("mask", "files", "folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_files_of_a_folder_have_the_mode_that_the_umask_gives(tmp_path, mask, files, folders):
    # safetensors writes through a private temporary file, which nobody else can read
    before = os.umask(mask)
    try:
        with published(tmp_path / "made") as temporary:
            save_file({"weight": torch.ones(2)}, temporary / "model.safetensors")
            (temporary / "within").mkdir()
            save_file({"weight": torch.ones(2)}, temporary / "within" / "model.safetensors")
            write_json(temporary / "settings.json", {})
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*")}
    assert {path.name: mode for path, mode in modes.items() if path.is_file()} == {
        "model.safetensors": files, "settings.json": files,
    }  # fmt: skip
    assert len(modes) == 4 and modes[tmp_path / "made" / "within"] == folders


def test_a_link_in_a_published_folder_leaves_its_target_alone(tmp_path):
    (tmp_path / "elsewhere").write_text("private")
    (tmp_path / "elsewhere").chmod(0o600)
    with published(tmp_path / "made") as temporary:
        (temporary / "link").symlink_to(tmp_path / "elsewhere")
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o600
