"""Damage compiled code in the cache in many ways, and count crashes, wrong numbers and lines said.

    PYTHONPATH=src python bench/compiled_faults.py

Each fault gets a copy of a cache in which one library lies whole, and a process that asks for the library and computes
with it. The process must end with code 0, have computed with the right library or say that there is none, and say at
most one line: one where something was damaged or not used, none where nothing was. Also: user time of a warm start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = r"""
import ctypes, os, sys
from rankwise.kernels import decode, regions
import torch
if "FEATURES" in os.environ:
    from pathlib import Path
    regions.CPUINFO = Path(os.environ["FEATURES"])
if os.environ.get("AS_NOBODY"): os.setuid(65534)
before = os.times()
library = regions.compiled_library(decode.SOURCE, decode.FLAGS)
after = os.times()
if library is None:
    print("none", 0)
else:
    library.error.restype = ctypes.c_double
    print("right" if library.error() < 0.02 else "wrong", after.user + after.system - before.user - before.system)
"""


def started(cache: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"RANKWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[str, float, int, int]:
    """What it computed, its seconds, its exit code and how many lines it said."""
    out, said = process.communicate(timeout=600)
    what, seconds = (out.split() or ["nothing", "0"])[:2]
    return what, float(seconds), process.returncode, len(said.strip().splitlines())


def library_in(cache: Path) -> Path:
    (found,) = (cache / "compiled").glob("*-*")
    return found


def cut(part: float) -> Callable[[Path], object]:
    return lambda file: os.truncate(file, int(file.stat().st_size * part))


def written(at: float, content: bytes) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(int(file.stat().st_size * at))
            opened.write(content)

    return write


def replaced(old: bytes, new: bytes) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new))

    return write


def folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def linked(to: str) -> Callable[[Path], object]:
    def link(file: Path) -> None:
        file.unlink()
        file.symlink_to(to)

    return link


def as_another(file: Path) -> None:
    """A sound library of other functions, by its name."""
    source = file.parent / "other.c"
    source.write_text("int other(void) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", file, source], check=True)
    source.unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"cut at {part:.0%}": cut(part) for part in (0, 0.01, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 0.99999)},
    **{f"illegal instructions at {at:.0%}": written(at, b"\x0f\x0b" * 4000) for at in (0.1, 0.3, 0.5, 0.7)},
    **{f"one bit at {at:.0%}": written(at, b"\x01") for at in (0.0, 0.25, 0.6, 0.8)},
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "zeros in the middle": written(0.4, bytes(4096)),
    "a changed constant": replaced(b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40"),
    "a changed symbol": replaced(b"decode_step", b"decode_stop"),
    "another library": as_another,
    "text": lambda file: file.write_text("no library"),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "no hash in the name": lambda file: file.rename(file.with_name("-" + file.name.partition("-")[2])),
    "a wrong hash in the name": lambda file: file.rename(file.with_name("0" * 64 + "-" + file.name.partition("-")[2])),
    "a folder": folder,
    "a pipe": pipe,
    "a link to nothing": linked("nowhere"),
    "a link to a folder": linked("/tmp"),
    "a link to itself": linked("x"),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "removed": lambda file: file.unlink(),
    "no permission to run": lambda file: file.chmod(0o444),
    "an owner of another number": lambda file: os.chown(file, 12345, 12345),
    "remains of a killed process": lambda file: (file.parent / f".{file.name[65:]}.999999.tmp").mkdir(),
    "moved to another folder": lambda file: None,
}


def main() -> None:
    problems, total = list[str](), 0

    def judge(name: str, got: tuple[str, float, int, int], allowed: set[str], lines: int) -> None:
        nonlocal total
        total += 1
        what, _, code, said = got
        good = code == 0 and what in allowed and said == lines
        if not good:
            problems.append(name)
        print(f"{'ok ' if good else 'BAD'} {name}: {what}, code {code}, {said} lines", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o755)
        judge("empty cache", ended(started(home / "whole")), {"right"}, 0)
        warm = sorted(ended(started(home / "whole"))[1] for _ in range(5))

        def copy(name: str) -> Path:
            return shutil.copytree(home / "whole", home / name.replace(" ", "-").replace("%", ""))

        for faults, lines in ((DAMAGE, 1), (HARMLESS, 0)):
            for name, damage in faults.items():
                cache = copy(name)
                damage(library_in(cache))
                judge(name, ended(started(cache)), {"right"}, lines)
                shutil.rmtree(cache)

        features = home / "cpuinfo"
        features.write_text("model name : another\nflags : sse2\n")
        cache = copy("another processor")
        judge("another processor", ended(started(cache, FEATURES=str(features))), {"right"}, 0)
        assert len([*(cache / "compiled").iterdir()]) == 2
        judge("no compiler", ended(started(home / "whole", CXX="/nowhere/g++")), {"none"}, 0)
        judge("a compiler that fails", ended(started(copy("fails"), CXX="/bin/false")), {"none"}, 1)
        cache = copy("unreadable")
        library_in(cache).chmod(0)
        judge("unreadable, another user", ended(started(cache, AS_NOBODY="1")), {"none"}, 1)
        judge("read-only, another user", ended(started(home / "whole", AS_NOBODY="1")), {"right"}, 0)
        cache = copy("damaged and read-only")
        cut(0.5)(library_in(cache))
        judge("damaged and read-only", ended(started(cache, AS_NOBODY="1")), {"none"}, 1)
        (home / "file").write_text("no folder")
        judge("a file for a folder", ended(started(home / "file")), {"none"}, 1)
        full = home / "full"
        full.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], check=False).returncode == 0:
            try:
                judge("full disk", ended(started(full)), {"none"}, 1)
            finally:
                subprocess.run(["umount", full], check=True)
        for name, damaged in (("two at once, empty", False), ("two at once, damaged", True)):
            cache = copy(name.replace(",", ""))
            (cut(0.5) if damaged else Path.unlink)(library_in(cache))
            both = [started(cache) for _ in range(2)]
            for got in map(ended, both):
                judge(name, got, {"right"}, got[3] if damaged and got[3] < 2 else 0)
        for seconds in (4, 7, 10):
            cache = home / f"killed-{seconds}"
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, env=os.environ | {"RANKWISE_CACHE": str(cache)},
            )  # fmt: skip
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            judge(f"killed after {seconds} s", ended(started(cache)), {"right"}, 0)
    print(f"{total - len(problems)} of {total} as they should be; wrong: {problems}")
    print(f"warm start: {warm[2]:.3f} s of processor time, median of 5")


if __name__ == "__main__":
    main()
