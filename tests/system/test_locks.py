"""A lock is never taken on a file that is not a lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankwise.errors import RunError
from rankwise.system.locks import Lock

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "folder", "pipe", "long"])
def test_what_is_no_lock_is_refused_and_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    precious, lock = tmp_path / "precious", tmp_path / ".lock"
    precious.write_text("precious")
    match kind:
        case "link" | "link to nothing":
            lock.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
        case "hard link":
            lock.hardlink_to(precious)
        case "folder":
            lock.mkdir()
        case "pipe":
            os.mkfifo(lock)
        case _:
            lock.write_text("x" * 100)
    with pytest.raises(RunError, match="It should be a lock file"):
        Lock(lock)
    assert precious.read_text() == "precious" and not (tmp_path / "nowhere").exists()
