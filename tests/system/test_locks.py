"""A lock is never taken on a file that is not a lock, whatever happens between two looks at it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankwise.errors import RunError
from rankwise.system.locks import Lock

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links")


@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_path_that_becomes_a_link_just_before_it_is_opened_is_refused(tmp_path, target, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    lock, exists = tmp_path / ".lock", os.path.lexists

    def becomes_a_link(path: Path) -> bool:
        was_there = exists(path)
        if not was_there:
            path.symlink_to(tmp_path / target)
        return was_there

    monkeypatch.setattr(os.path, "lexists", becomes_a_link)
    with pytest.raises(RunError, match="is a link to"):
        Lock(lock)
    monkeypatch.undo()
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "nowhere").exists()
