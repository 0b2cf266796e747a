"""What a run loses that is stopped or killed, and what its checkpoints cost.

    python bench/long_run.py FOLDER [--steps 40] [--minutes 10] [--batch-size 8]

SmolLM2-135M learns GSM8K, four times: undisturbed; stopped by SIGTERM at step 25 and resumed; killed by SIGKILL at
step 25 and resumed; and as many steps as take about ten minutes, of which the time spent on checkpoints is summed.
The first three must end with the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DATA = (Path(os.environ.get("RANKWISE_DATA", "../shared/data")) / "gsm8k" / "train.jsonl").resolve()
TIMED = """
import sys, time
from rankwise.__main__ import run
from rankwise.training.hooks import CheckpointPace
written, spent = CheckpointPace.has_written, []
def timed(self, since):
    written(self, since)
    spent.append(self.took)
CheckpointPace.has_written = timed
began = time.monotonic()
try:
    run()
finally:
    print("CHECKPOINTS", len(spent), round(sum(spent), 3), round(time.monotonic() - began, 1), file=sys.stderr)
"""


def words(name: str, steps: int, batch_size: int) -> list[str]:
    settings = ["--steps", str(steps), "--batch-size", str(batch_size), "--held-out", "0", "--prompt", "{question}"]
    settings += ["--completion", "{answer}", "--quiet", "--run", name]
    return ["train", "--model", "smollm2-135m", "--data", str(DATA), *settings]


def start(given: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", TIMED, *given], stderr=subprocess.PIPE, text=True)


def steps_of(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [one for one in records if one["kind"] == "step"]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]


def finished(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate()
    return process.returncode, errors.strip().splitlines()


def disturbed(given: list[str], run: Path, by: signal.Signals, at: int) -> tuple[int, float, list[str]]:
    """Steps that were saved, seconds of work lost, and the last lines that were printed."""
    process, seen, dated = start(given), 0, {}
    while process.poll() is None and seen < at:
        seen = len(steps_of(run))
        dated.setdefault(seen, time.monotonic())
        time.sleep(0.05)
    process.send_signal(by)
    lines = finished(process)[1]
    saved = max((int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*")), default=0)
    lost = time.monotonic() - dated.get(saved, min(dated.values())) if by is signal.SIGKILL else 0.0
    return saved, lost, lines[-3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(args.folder)
    runs = Path("runs")
    plain = words("plain", args.steps, args.batch_size)
    code, lines = finished(start(plain))
    if code:
        raise SystemExit("\n".join(lines))
    step = [record["seconds"] for record in steps_of(runs / "plain")]
    median = sorted(step)[len(step) // 2]
    print(f"undisturbed: exit {code}, {len(step)} steps of {median:.2f} s, {digest(runs / 'plain')}")
    for by in (signal.SIGTERM, signal.SIGKILL):
        run, given = runs / by.name, words(by.name, args.steps, args.batch_size)
        saved, lost, lines = disturbed(given, run, by, 25)
        code, _ = finished(start([*given, "--resume"]))
        print(f"{by.name} at step 25: goes on at {saved}, {lost:.0f} s lost, exit {code}, {digest(run)}; {lines}")
    steps = round(60 * args.minutes / median)
    code, lines = finished(start(words("long", steps, args.batch_size)))
    print(f"{steps} steps: exit {code}, {lines[-1]} (number, seconds, seconds of the process)")


if __name__ == "__main__":
    main()
