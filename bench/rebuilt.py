"""Ten trainings of starters, each rebuilt from its own record in another process: are the weights the same bytes?

    python bench/rebuilt.py --out bench/results/rebuilt-DATE

Texts are answers of smollm2-135m and labels of minilm, images are classes of dinov2-small; each is trained with LoRA,
with AdaLoRA and as a whole, and the last one is rebuilt from an export in another folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rankwise

METHODS = {
    "LoRA": ("--method", "lora"),
    "AdaLoRA": ("--method", "adalora", "--budget", "4"),
    "full": ("--method", "full"),
}
BASES = {
    "answers": ("smollm2-135m", "rows.jsonl", ("--max-length", "128")),
    "labels": ("minilm", "tickets.csv", ("--text", "message", "--label", "queue")),
    "images": ("dinov2-small", "pictures", ()),
}


def run(*words: object) -> str:
    command = [sys.executable, "-m", "rankwise", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=list(BASES), help="which kinds of rows")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    out, lines = options.out.absolute(), []
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        demo = Path(rankwise.__file__).parent / "rows" / "demo.jsonl"
        Path("rows.jsonl").write_text("".join(demo.read_text(encoding="utf-8").splitlines(keepends=True)[:120]))
        run("data", "sample", "tickets", "--out", "tickets.csv")
        run("data", "sample", "pictures", "--out", "pictures")
        for kind in options.rows:
            model, rows, flags = BASES[kind]
            for method, chosen in METHODS.items():
                name, began = f"{kind}-{method}", time.monotonic()
                run("train", "--model", model, "--data", rows, "--run", name, "--steps", options.steps, "--batch-size",
                    4, "--held-out", 8, "--seed", len(lines), "--quiet", *flags, *chosen)  # fmt: skip
                lines.append(rebuilt(kind, method, model, rows, name, time.monotonic() - began))
        kind = options.rows[-1]
        model, rows, _ = BASES[kind]
        run("export", f"{kind}-LoRA", "--to", "exported")
        shutil.rmtree("runs")
        lines.append(rebuilt(kind, "LoRA, from an export", model, rows, "exported", 0.0))
    same = sum(line["status"] == "same bytes" for line in lines)
    out.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n")
    table = ["| rows | method | base | result | largest difference |", "|---|---|---|---|---|"]
    table += [
        f"| {one['rows']} | {one['method']} | {one['base']} | {one['status']} | {one['largest']} |" for one in lines
    ]
    title = f"# Trainings that were rebuilt\n\n`python bench/rebuilt.py --steps {options.steps}`\n\n"
    text = f"{title}{same} of {len(lines)} have the same bytes.\n\n" + "\n".join(table) + "\n"
    out.with_suffix(".md").write_text(text)
    print(text)


def rebuilt(kind: str, method: str, model: str, rows: str, name: str, seconds: float) -> dict:
    found = json.loads(run("rebuild", name, "--data", rows, "--json", "--quiet"))
    largest = 0 if found["distance"] is None else found["distance"][0]
    line = {"rows": kind, "method": method, "base": model, "status": found["status"], "largest": largest}
    print(line, f"trained in {seconds:.0f} s", flush=True)
    shutil.rmtree(f"runs/{found['run']}")
    return line


if __name__ == "__main__":
    main()
