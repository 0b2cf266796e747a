"""`rankwise train --processes N`: start N processes on this machine, by torchrun's own launcher, and wait for them.

Each of them runs the same command. This process trains nothing: it passes on requests to stop, ends all where one has
ended, and says what happened where none of them could.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import psutil
import torch
from torch import distributed

from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, Interrupted, RunError, TrainingError
from rankwise.planning.processes import refuse_several
from rankwise.runs.directory import RunDirectory, ways_on
from rankwise.system.launched import ENDED, LAUNCHER, read_problem
from rankwise.system.processor import usable_cores

GRACE = 4
"""Seconds in which the others must end once one has ended; then they are killed."""


def launch(run: str, model: ModelConfig, processes: int) -> int:
    """The exit code with which all ended; what there was to say has been said by one of them, or is a TrainingError."""
    refuse_several(model)
    _check(model.device, processes)
    _share_machine(processes)
    with tempfile.TemporaryDirectory(prefix="rankwise-") as folder, _quiet(), _passed_on() as requests:
        failures = _started(processes, folder)
        if not failures:
            return 0
        problem = next(filter(None, map(read_problem, Path(folder).rglob(ENDED))), None)
    if problem is not None and not problem.get("left_to_launcher"):
        return int(problem["exit_code"])
    if requests:
        raise Interrupted("stopped.", 128 + requests[0])
    raise TrainingError(f"{_killed(failures, processes)} {what_now(RunDirectory.named(run))}")


def what_now(run: RunDirectory) -> str:
    """With a run whose processes have ended; a process may be killed after the result was written."""
    with suppress(RunError):
        if run.manifest().status == "finished":
            return f'The training had finished before, and the result of run "{run.folder.name}" is whole.'
    return f"Use {ways_on(run)}."


def _started(processes: int, folder: str) -> Mapping[int, Any]:
    """Run the command in each process, and wait. The failures by their ranks, none where all went well."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings: dict[str, Any] = {
        "min_nodes": 1, "max_nodes": 1, "nproc_per_node": processes, "run_id": uuid4().hex, "max_restarts": 0,
        "rdzv_backend": "static", "rdzv_endpoint": f"localhost:{_free_port()}", "rdzv_configs": {"rank": 0},
        "local_addr": "localhost", "logs_specs": DefaultLogsSpecs(log_dir=folder), "monitor_interval": 0.1,
        "signals_to_handle": "SIGQUIT", "shutdown_timeout": GRACE,
    }  # fmt: skip
    known = {one.name for one in fields(LaunchConfig)}  # earlier versions of torch know fewer
    config = LaunchConfig(**{name: value for name, value in settings.items() if name in known})
    try:
        elastic_launch(config, sys.executable)("-m", "rankwise", *sys.argv[1:])
    except ChildFailedError as error:
        return error.failures
    return {}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _check(device: str, processes: int) -> None:
    if not distributed.is_available():
        raise ConfigError([f"--processes {processes}: this torch ({torch.__version__}) has no torch.distributed."])
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device in ("auto", "cuda") and 0 < cards < processes:
        raise ConfigError([
            f"--processes {processes} needs as many GPUs, and there {'is' if cards == 1 else 'are'} {cards}. Use "
            "fewer, or --set model.device=cpu."
        ])  # fmt: skip


def _share_machine(processes: int) -> None:
    """Each process gets its share of the cores; what the user has set is left as it is."""
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    if sys.platform in ("linux", "darwin"):  # they meet on this machine alone
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


@contextmanager
def _quiet() -> Iterator[None]:
    """The launcher's log repeats what the processes say."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _passed_on() -> Iterator[list[int]]:
    """Requests to stop go to the processes, which agree on the step before which they do. Gives the signals so far."""
    requests: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                child.send_signal(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, pass_on)
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _killed(failures: Mapping[int, Any], processes: int) -> str:
    """The one that was killed; the launcher ended the others by SIGTERM."""
    rank, failure = min(
        failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode >= 0, item[0])
    )
    how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    return f"process {rank + 1} of the {processes} processes of this training has ended ({how}), so all of them ended."
