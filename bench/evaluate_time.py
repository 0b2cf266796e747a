"""Seconds that `rankwise evaluate` takes with two source trees, in turns, and when the task's score is on the screen.

    python bench/evaluate_time.py --before OTHER/src --data $RANKWISE_DATA [--rounds 2] [--steps 60] [--folder FOLDER]

A run of SmolLM2-135M is trained once, with the tree of `--before`, whose files both can read: on 500 rows of SST-2 with
60 more held out, unless `--folder` has it already. Each measurement is one `rankwise evaluate RUN --task short.yaml` as
a process of its own: 100 short answers of the tuned model and of its base, and what was forgotten. What the base scored
is taken out of the cache before each. A first round of both, in which files come from the disk, is not counted with
`--warm`. The score is on the screen when the first line that names the metric with its interval has come, on stderr or
stdout. The scores of both trees are compared: on the same items they must be the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "src"
ASK, LABELS = "Is the feeling of this review negative or positive?\n", ("negative", "positive")
TRAINED, HELD_OUT, ASKED = 500, 60, 100
TASK = "task: short\ndata: short.jsonl\nscore: [exact]\n"
SCORE = re.compile(r"\bexact\s+[\d.]+ \([\d.e-]+ to ")


def write_rows(folder: Path, data: Path) -> None:
    for name, source, count in (("train", "train.tsv", TRAINED + HELD_OUT), ("short", "dev.tsv", ASKED)):
        with (data / "glue/SST-2" / source).open(encoding="utf-8", newline="") as file:
            rows = [row for _, row in zip(range(count), csv.DictReader(file, delimiter="\t"), strict=False)]
        lines = [json.dumps({"prompt": ASK + row["sentence"], "completion": LABELS[int(row["label"])]}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "short.yaml").write_text(TASK)


def command(source: Path, *words: str) -> dict[str, Any]:
    return {
        "args": [sys.executable, "-u", "-m", "rankwise", *words],
        "env": os.environ | {"PYTHONPATH": str(source.resolve()), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    }


def measure(source: Path, folder: Path, cache: Path) -> dict[str, Any]:
    """One evaluation: its seconds, when the first score came, and the scores."""
    shutil.rmtree(cache / "sides", ignore_errors=True)
    began, first, lines = time.perf_counter(), None, []
    process = subprocess.Popen(
        **command(source, "evaluate", "sst", "--task", "short.yaml"), cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if first is None and SCORE.search(line):
            first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    if process.wait() or first is None:
        raise SystemExit("".join(lines))
    found = json.loads((folder / "runs/sst/evaluations/short.json").read_text())
    return {
        "seconds": seconds, "score_at": first, "kl": found["forgetting"]["kl"], "blocks": found["forgetting"]["blocks"],
        "hits": [found[side]["scores"]["exact"]["sums"] for side in ("tuned", "base")],
        "sides": [found[side]["seconds"] for side in ("tuned", "base")],
    }  # fmt: skip


def told(name: str, found: list[dict[str, Any]]) -> str:
    seconds, score = (statistics.median(one[key] for one in found) for key in ("seconds", "score_at"))
    tuned, base = (statistics.median(one["sides"][at] for one in found) for at in (0, 1))
    each = ", ".join(f"{one['seconds']:.1f}" for one in found)
    return (
        f"{name}: median {seconds:.1f} s ({each}); score after {score:.1f} s, {score / seconds:.0%} of it; answers "
        f"{tuned:.1f} s tuned and {base:.1f} s base; KL {found[0]['kl']:.4f} on {found[0]['blocks']} blocks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="src of the other tree")
    parser.add_argument("--after", type=Path, default=HERE, help="src of this one")
    parser.add_argument("--data", type=Path, default=os.environ.get("RANKWISE_DATA"), help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the run lies, or is to lie")
    parser.add_argument("--warm", action="store_true", help="measure each once before, without counting it")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="evaluate-time-"))
    folder.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ.get("RANKWISE_CACHE") or Path.home() / ".cache/rankwise")
    if not (folder / "runs/sst/adapter").is_dir():
        write_rows(folder, Path(asked.data))
        words = ("--model", "smollm2-135m", "--data", "train.jsonl", "--held-out", str(HELD_OUT))
        words = ("train", *words, "--steps", str(asked.steps), "--run", "sst", "--restart")
        subprocess.run(**command(asked.before, *words), cwd=folder, check=True)
    trees = {"before": asked.before, "after": asked.after}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for number in range(asked.rounds + asked.warm):
        for name, source in trees.items():
            one = measure(source, folder, cache)
            if number >= asked.warm:
                found[name].append(one)
            print(f"{name} {number + 1}: {one['seconds']:.1f} s, score after {one['score_at']:.1f} s", flush=True)
    for name, each in found.items():
        print(told(name, each))
    before, after = (statistics.median(one["seconds"] for one in found[name]) for name in trees)
    same = all(one["hits"] == found["before"][0]["hits"] for each in found.values() for one in each)
    print(f"after / before: {after / before:.2f}; scores of all items {'are the same' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
