"""How long `rankwise data check` takes on 100,000 rows of about 200 tokens, and in how much memory.

    python bench/data_check.py bench/results/TITLE [ROWS]

Rows are made of GSM8K's sentences ($RANKWISE_DATA/gsm8k), drawn by a seed, so that hardly one says what another says.
Three runs, each a process of its own with an empty cache, then one with the cache they would have left, then two at
once that share an empty one. Wall seconds and the largest resident memory are those the system reports.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rankwise.runs.manifest import machine, versions

ROWS = 100_000


def sentences() -> list[str]:
    file = Path(os.environ["RANKWISE_DATA"]) / "gsm8k" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [f"{row['question']} {row['answer']}".replace("\n", " ") for row in rows]
    return [part.strip() for text in texts for part in text.split(". ") if len(part) > 20]


def make_rows(file: Path, count: int) -> None:
    chance, known = random.Random(0), sentences()
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            asked, answered = ". ".join(chance.choices(known, k=4)), ". ".join(chance.choices(known, k=2))
            out.write(json.dumps({"prompt": asked, "completion": answered}) + "\n")


def check(file: Path, cache: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("rankwise")), "data", "check", str(file), "--model", "smollm2-135m"]
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    (cache / "models").parent.mkdir(parents=True, exist_ok=True)
    if not (cache / "models").exists():
        (cache / "models").symlink_to(Path(home) / "rankwise" / "models")
    return subprocess.Popen(
        [*command, "--json", "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RANKWISE_CACHE": str(cache)},
    )


def finished(process: subprocess.Popen[str], began: float) -> dict[str, Any]:
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"data check ended with {status}: {output[:500]}")
    data_report = json.loads(output)
    return {"seconds": time.perf_counter() - began, "peak_bytes": usage.ru_maxrss * 1024, "data_report": data_report}


def one(file: Path, cache: Path) -> dict[str, Any]:
    began = time.perf_counter()
    return finished(check(file, cache), began)


def main() -> None:
    stem, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "rows.jsonl"
        make_rows(file, count)
        cold = [one(file, folder / f"cache-{number}") for number in range(3)]
        again = one(file, folder / "cache-0")
        began = time.perf_counter()
        both = [check(file, folder / "shared") for _ in range(2)]
        shared = [finished(process, began) for process in both]
        assert all(run["data_report"] == cold[0]["data_report"] for run in [*cold, again, *shared]), (
            "the data reports differ"
        )
    data_report = cold[0]["data_report"]
    result = {
        "rows": data_report["rows"],
        "tokens_per_row": data_report["tokens"] / data_report["sequences"],
        "seconds": [run["seconds"] for run in cold],
        "median_seconds": statistics.median(run["seconds"] for run in cold),
        "peak_bytes": max(run["peak_bytes"] for run in cold),
        "seconds_from_the_cache": again["seconds"],
        "two_at_once_seconds": [run["seconds"] for run in shared],
        "versions": versions(),
        "machine": {key: value for key, value in machine().items() if key != "system"},
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
