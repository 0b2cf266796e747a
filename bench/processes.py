"""Trainings by several processes on this machine: killed at random moments, and their time.

    python bench/processes.py FOLDER --model MODEL --data ROWS --case kills [--processes 2] [--kills 10] [--seed 0]
    python bench/processes.py FOLDER --model MODEL --data ROWS --case time [--processes 1 2] [--repeats 3]
    ... [--json] [--out TITLE]

`kills`: each training is begun with `rankwise train --processes N`, a random one of its processes is killed (SIGKILL)
at a random moment, and the run is gone on with (--resume; --restart where nothing was saved yet). Recorded: how long
until no process is left, what was said, and whether the adapter is bit for bit that of an undisturbed training.

`time`: the same training by each number of processes in turn, several times over, one thread each, and what the plan
says of its largest share. What the sums take alone is measured beside it:

    time(N) = largest share x time(1) + sums

The machine may be busy, so that quotients of neighbouring runs count: of each round, time(N) / time(1).

Each cell is a file in FOLDER; what is there is not measured again, so a measurement that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from telling import parser_of, tell

STEPS, EVERY = 30, 5
LONGEST = 600.0


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--case", choices=("kills", "time"), required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", default="", help="more words, which train and plan both know")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(chosen.folder)
    if not chosen.model or not chosen.data:
        parser.error(f"--case {chosen.case} needs --model and --data")
    words = ["--model", chosen.model, "--data", chosen.data, *chosen.more.split()]
    if chosen.case == "kills":
        tell(chosen, kills(words, chosen.processes[0], chosen.kills, chosen.seed), show_kills)
    else:
        tell(chosen, times(words, chosen.processes, chosen.repeats), show_times)


def command(words: Sequence[str], run: str, processes: int, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "rankwise", "train", *words, "--run", run, "--processes", str(processes), "--steps",
        str(STEPS), "--set", f"training.checkpoint_steps={EVERY}", "--quiet", *more,
    ]  # fmt: skip


def cell(name: str, measure: Any) -> dict[str, Any]:
    """A stored result, measured if it is not there yet."""
    file = Path(f"{name}.json")
    if not file.exists():
        file.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def kills(words: Sequence[str], processes: int, count: int, seed: int) -> dict[str, Any]:
    whole = cell(f"whole-{processes}", lambda: whole_run(words, processes))
    cells = [
        cell(f"kill-{processes}-{seed}-{number}", lambda number=number: killed(words, processes, number, seed, whole))
        for number in range(count)
    ]
    return {"processes": processes, "whole": whole, "kills": cells}


def whole_run(words: Sequence[str], processes: int) -> dict[str, Any]:
    began = time.monotonic()
    subprocess.run(command(words, "whole", processes, "--restart"), check=True, timeout=LONGEST)
    return {"seconds": time.monotonic() - began, "sha256": adapter_of("whole")}


def killed(words: Sequence[str], processes: int, number: int, seed: int, whole: dict[str, Any]) -> dict[str, Any]:
    """One training, killed, and gone on with."""
    points = random.Random(seed * 1000 + number)
    run, rank = f"killed-{number}", points.randrange(processes)
    began = time.monotonic()
    parent = subprocess.Popen(command(words, run, processes, "--restart"), stderr=subprocess.PIPE, text=True)
    moment = points.uniform(0.1, 0.9) * whole["seconds"]
    time.sleep(max(0.0, moment - (time.monotonic() - began)))
    while len(children := workers(parent.pid)) < processes and parent.poll() is None:
        time.sleep(0.01)
    if rank < len(children):
        os.kill(children[rank].pid, signal.SIGKILL)
    dead = time.monotonic()
    _, said = parent.communicate(timeout=LONGEST)
    seconds = time.monotonic() - dead
    sentences = [line for line in said.splitlines() if line.startswith("rankwise: ")]
    again = "--resume" if any(Path("runs", run, "checkpoints").glob("step-*")) else "--restart"
    manifest = Path("runs", run, "manifest.json")
    finished = (
        manifest.exists() and json.loads(manifest.read_text(encoding="utf-8"))["status"] == "finished"
    )  # killed at the very end
    if not finished:
        subprocess.run(command(words, run, processes, again), check=True, timeout=LONGEST)
    return {
        "rank": rank, "moment": moment, "seconds_until_none_is_left": seconds, "exit_code": parent.returncode,
        "left": [child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE],
        "sentences": sentences, "traceback": "Traceback" in said, "gone_on_with": None if finished else again,
        "equal": adapter_of(run) == whole["sha256"],
    }  # fmt: skip


def workers(parent: int) -> list[psutil.Process]:
    """By their ranks, which are in the order in which they were started."""
    return sorted(psutil.Process(parent).children(), key=lambda child: (child.create_time(), child.pid))


def adapter_of(run: str) -> str:
    from hashlib import sha256

    return sha256(Path("runs", run, "adapter", "adapter_model.safetensors").read_bytes()).hexdigest()


def times(words: Sequence[str], sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Rounds of the same training by one process and by each other number, one after another."""
    others = [size for size in sizes if size > 1]
    rounds = [
        {
            size: cell(f"time-{number}-{size}", lambda size=size, number=number: timed(words, size, number))
            for size in (1, *others)
        }
        for number in range(repeats)
    ]
    plans = {size: planned(words, size) for size in others}
    alone = median([one[1]["seconds_of_a_step"] for one in rounds])
    found = {}
    for size in others:
        share, sums = plans[size]["largest_share"], median([one[size]["exchange_seconds"] for one in rounds])
        quotients = [one[size]["seconds_of_a_step"] / one[1]["seconds_of_a_step"] for one in rounds]
        found[size] = {
            "quotients": quotients, "quotient": median(quotients), "largest_share": share,
            "expected": share + sums / alone, "exchange_seconds": sums,
        }  # fmt: skip
    return {"alone_seconds": alone, "rounds": rounds, "processes": found}


def planned(words: Sequence[str], size: int) -> dict[str, Any]:
    """What the plan says of so many processes."""
    more = ["--processes", str(size), "--steps", str(STEPS), "--device", "cpu", "--json", "--quiet"]
    made = subprocess.run(
        [sys.executable, "-m", "rankwise", "plan", *words, *more], check=True, capture_output=True, text=True
    )
    return json.loads(made.stdout)["processes"]


def timed(words: Sequence[str], size: int, number: int) -> dict[str, Any]:
    """The median time of a step, and of adding up as many numbers as learn."""
    run = f"time-{number}-{size}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(words, run, size, "--restart"), check=True, timeout=LONGEST, env=environment)
    rows = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [row["seconds"] for row in rows if row["kind"] == "step"]
    numbers = json.loads(Path("runs", run, "manifest.json").read_text(encoding="utf-8"))["results"][
        "trainable_parameters"
    ]
    return {
        "seconds_of_a_step": median(seconds), "numbers": numbers,
        "exchange_seconds": 0.0 if size == 1 else exchanged([numbers], size)[0][0],
    }  # fmt: skip


EXCHANGE = """
import sys, time, torch
from torch import nn
from rankwise.training.world import join
world = join()
for numbers in map(int, sys.argv[1:]):
    one = nn.Parameter(torch.zeros(numbers))
    one.grad = torch.ones_like(one)
    seconds = []
    for _ in range(31):
        world.barrier()
        began = time.perf_counter()
        world.gather([0.0] * 4), world.gather([0.0])
        world.sum_gradients([one])
        seconds.append(time.perf_counter() - began)
    if world.is_first:
        print(sorted(seconds)[15], min(seconds))
"""


def exchanged(numbers: Sequence[int], size: int) -> list[tuple[float, float]]:
    """The median and the least seconds of the gathers of a step and one sum, for each amount of numbers."""
    Path("exchange.py").write_text(EXCHANGE, encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    words += ["--local-addr", "localhost", "exchange.py", *map(str, numbers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    made = subprocess.run(words, check=True, capture_output=True, text=True, env=environment, timeout=LONGEST)
    told = [float(number) for number in made.stdout.split()]
    return list(zip(told[::2], told[1::2], strict=True))


def show_kills(found: dict[str, Any]) -> None:
    cells = found["kills"]
    longest = max(one["seconds_until_none_is_left"] for one in cells)
    print(f"{len(cells)} trainings by {found['processes']} processes, one of which was killed")
    print(f"no process was left after {longest:.1f} s at most; left over: {sum(len(one['left']) for one in cells)}")
    print(f"one sentence and no traceback: {sum(len(one['sentences']) == 1 and not one['traceback'] for one in cells)}")
    print(f"equal to the whole training, bit for bit: {sum(one['equal'] for one in cells)}")


def show_times(found: dict[str, Any]) -> None:
    print(f"1 process: {found['alone_seconds']:.3f} s a step")
    for size, one in found["processes"].items():
        quotients = ", ".join(f"{each:.2f}" for each in one["quotients"])
        print(
            f"{size} processes: {one['quotient']:.2f} of that ({quotients}), by shares and sums {one['expected']:.2f}; "
            f"sums alone {one['exchange_seconds'] * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
