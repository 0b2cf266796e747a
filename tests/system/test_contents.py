"""A file is read once while it stays as it is, and again when it does not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rankwise.system import contents
from rankwise.system.contents import content_of, hash_of, opened


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that `Path.open` opened, in order."""
    names, before = list[str](), Path.open

    def counted(path, *arguments, **named):
        names.append(path.name)
        return before(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", counted)
    return names


def test_a_file_is_opened_once_and_each_reader_begins_at_its_beginning(tmp_path, openings):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"one\ntwo\n")
    openings.clear()
    with opened(path) as first, opened(path) as second:
        assert (first.readline(), second.readline(), first.readline()) == (b"one\n", b"one\n", b"two\n")
    assert content_of(path) == b"one\ntwo\n"
    assert hash_of(path) == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert openings == ["rows.jsonl"]


@pytest.mark.parametrize("change", ["written", "replaced", "with its old times"])
def test_a_changed_file_is_read_again(change, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"before")
    status = path.stat()
    first = hash_of(path), content_of(path)
    new = tmp_path / "new" if change == "replaced" else path
    new.write_bytes(b"behind")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns + (0 if change == "with its old times" else 1)))
    new.replace(path)
    assert first == (hashlib.sha256(b"before").hexdigest(), b"before")
    assert (hash_of(path), content_of(path)) == (hashlib.sha256(b"behind").hexdigest(), b"behind")


def test_no_more_is_kept_than_the_bound(tmp_path, openings, monkeypatch):
    monkeypatch.setattr(contents, "MOST_BYTES", 10)
    paths = [tmp_path / name for name in ("a", "b", "large")]
    for path, size in zip(paths, (6, 6, 11), strict=True):
        path.write_bytes(b"x" * size)
    openings.clear()
    assert [len(content_of(path)) for path in (*paths, *reversed(paths))] == [6, 6, 11, 11, 6, 6]
    assert openings == ["a", "b", "large", "large", "a"], "b was kept, and a gave way to it"
