"""The least of what the machine and the limits of the control groups leave."""

from __future__ import annotations

import psutil
import pytest

from rankwise.system import memory
from rankwise.system.memory import available_memory

MEGABYTE = 1 << 20


def group(folder, limit, used, cached=0, names=memory.V2, stat="inactive_file"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{stat} {cached}\nfile 7\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A planted tree, and a function that says which groups this process is in."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OURS", tmp_path / "ours")

    def inside(text: str):
        (tmp_path / "ours").write_text(text)
        return tmp_path / "cgroup"

    return inside


def test_without_limits_it_is_what_the_machine_has(groups):
    root = groups("0::/\n")
    free = psutil.virtual_memory().available
    assert available_memory() == pytest.approx(free, rel=0.2)
    group(root, "max", 3)
    assert available_memory() == pytest.approx(free, rel=0.2)


def test_the_narrowest_of_the_groups_above_counts_and_files_are_free(groups):
    root = groups("0::/a/b\n")
    group(root / "a", 90 * MEGABYTE, 60 * MEGABYTE, cached=25 * MEGABYTE)
    group(root / "a" / "b", "max", 1)
    assert available_memory() == 55 * MEGABYTE
    group(root / "a" / "b", 50 * MEGABYTE, 20 * MEGABYTE)
    assert available_memory() == 30 * MEGABYTE
    group(root / "a" / "b", 50 * MEGABYTE, 51 * MEGABYTE)
    assert available_memory() == 0


def test_the_older_system(groups):
    root = groups("9:cpu,cpuacct:/c\n4:memory:/c\n1:name=systemd:/c\n")
    group(root / "memory" / "c", 40 * MEGABYTE, 30 * MEGABYTE, 5 * MEGABYTE, memory.V1, "total_inactive_file")
    assert available_memory() == 15 * MEGABYTE


def test_what_cannot_be_read_limits_nothing(groups, tmp_path):
    root = groups("0::/a\nnonsense\n")
    (root / "a").mkdir(parents=True)
    (root / "a" / "memory.max").write_text("many")
    assert available_memory() > MEGABYTE
    (tmp_path / "ours").unlink()
    assert available_memory() > MEGABYTE
