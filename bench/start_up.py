"""Seconds from starting `rankwise train` to its first finished step, and of what is quicker.

    python bench/start_up.py [--json] [--times 3] [--rows 64] [--out bench/results/TITLE]

The command beside this Python trains SmolLM2-135M on rows that are made here, four rows a step. The first finished step
is when runs/NAME/metrics.jsonl holds its record, which is looked for every few milliseconds; the process is ended then.
`new rows` have to be encoded first, `known rows` are in the cache by the run before; each time the cache is a new one,
in which only the model is there already. `step` is what the first step itself took, so the rest is starting. Beside it
`python -c pass`, `import rankwise` and `rankwise --version`. All in turns; medians. A first round, in which files come
from the disk, is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from telling import parser_of, tell

from rankwise.runs.metrics_log import read_metrics_log
from rankwise.system.cache import cache_folder

COMMAND = Path(sys.executable).with_name("rankwise")
NEW, KNOWN = "new rows", "known rows"
QUICK = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import rankwise": [sys.executable, "-c", "import rankwise"],
    "rankwise --version": [str(COMMAND), "--version"],
}
PAUSE, LONGEST = 0.003, 600.0


def write_rows(folder: Path, count: int) -> None:
    lines = [
        json.dumps({"prompt": f"What is the capital of land {number}?", "completion": f"It is town {7 * number}."})
        for number in range(count)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def new_cache(folder: Path) -> Path:
    """Has the user's models and nothing else."""
    cache = folder / "cache"
    cache.mkdir()
    for shared in ("models", "downloads"):
        if (cache_folder() / shared).is_dir():
            (cache / shared).symlink_to(cache_folder() / shared, target_is_directory=True)
    return cache


def first_step(metrics: Path) -> dict[str, Any] | None:
    if not metrics.exists():
        return None
    return next((row for row in read_metrics_log(metrics) if row["kind"] == "step"), None)


def started(folder: Path, cache: Path, name: str) -> dict[str, float]:
    """One training up to its first step, which is then ended."""
    settings = ["--steps", "1000", "--batch-size", "4", "--quiet"]
    command = [str(COMMAND), "train", "--model", "smollm2-135m", "--data", "rows.jsonl", "--run", name, *settings]
    metrics = folder / "runs" / name / "metrics.jsonl"
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"RANKWISE_CACHE": str(cache)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        while (row := first_step(metrics)) is None:
            if process.poll() is not None or time.perf_counter() - began > LONGEST:
                process.kill()
                raise SystemExit(f"no step was finished: {process.communicate()[1]}")
            time.sleep(PAUSE)
        seconds = time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
    return {"seconds": seconds, "step": row["seconds"], "before_step": seconds - row["seconds"]}


def quick(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def one_round(count: int, found: dict[str, list[dict[str, float]]]) -> None:
    for name, command in QUICK.items():
        found[name].append({"seconds": quick(command)})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder, count)
        cache = new_cache(folder)
        found[NEW].append(started(folder, cache, "new"))
        found[KNOWN].append(started(folder, cache, "known"))


def measured(times: int, count: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*QUICK, NEW, KNOWN)}
    for number in range(times + 1):
        one_round(count, found)
        if number == 0:
            for rows in found.values():
                rows.clear()
        print(f"round {number} is done", file=sys.stderr)
    return [
        {"what": name, **{key: statistics.median(row[key] for row in rows) for key in rows[0]}, "all": rows}
        for name, rows in found.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<22}{'seconds':>10}{'of the step':>14}{'before it':>12}")
    for row in rows:
        parts = f"{row['step']:>14.2f}{row['before_step']:>12.2f}" if "step" in row else ""
        print(f"{row['what']:<22}{row['seconds']:>10.3f}{parts}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    asked = parser.parse_args()
    rows = measured(asked.times, asked.rows)
    tell(asked, rows, show, {"rows": rows, "training_rows": asked.rows})


if __name__ == "__main__":
    main()
