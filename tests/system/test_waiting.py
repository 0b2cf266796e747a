"""Threads wait as the command line says: before torch is loaded, for children too, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rankwise.system.processor import SPINS, USER_VARIABLES

LOADS_TORCH = "from rankwise.system.processor import wait_briefly; wait_briefly(); import torch"
AS_COMMAND = """
import os, sys, types
from rankwise.__main__ import run
def app():
    print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
sys.modules["rankwise.cli.main"] = types.SimpleNamespace(app=app)
run()
"""

HANDS_OVER = """
import os, time, torch
from rankwise.serving.engine import EngineThread, Limits

class Idle(EngineThread):
    waiting = running = 0
    def _run(self):
        with self._changed:
            self._changed.wait_for(lambda: self._stopping)

def threads():
    return len(os.listdir("/proc/self/task"))
def works():
    return torch.ones(2**20).exp().sum().item()
torch.set_num_threads(3)
alone, first, together = threads(), works(), threads()
with Idle(Limits()):
    for _ in range(100):
        if threads() == alone + 1: break
        time.sleep(0.01)  # a thread that has ended is listed a little longer
    print(together - alone, threads() - alone, works() == first, threads() - alone)
"""


def test_the_command_line_sets_the_policy_before_torch_is_loaded() -> None:
    assert _printed(AS_COMMAND, {}).split() == ["False", str(SPINS), "None"]


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_set_is_left_as_it_is(own: dict[str, str]) -> None:
    found = _printed(AS_COMMAND, own).split()
    assert found[1:] == [own.get("GOMP_SPINCOUNT", "None"), own.get("OMP_WAIT_POLICY", "None")]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library comes with torch on Linux")
def test_the_library_that_torch_brings_reads_it() -> None:
    printed = _printed(LOADS_TORCH, {"OMP_DISPLAY_ENV": "verbose"})
    if "GOMP_SPINCOUNT" not in printed:
        pytest.skip("torch has another OpenMP library here")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library comes with torch on Linux")
def test_who_hands_over_to_an_engine_has_no_workers_until_it_needs_them_again() -> None:
    """Two workers, then the engine's thread alone, then both."""
    if "GOMP_SPINCOUNT" not in _printed(LOADS_TORCH, {"OMP_DISPLAY_ENV": "verbose"}):
        pytest.skip("torch has another OpenMP library here")
    assert _printed(HANDS_OVER, {}).split() == ["2", "1", "True", "3"]


def _printed(code: str, own: dict[str, str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in USER_VARIABLES} | own
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr
