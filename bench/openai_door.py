"""OpenAI's fine-tuning on this machine: its client, unchanged, from uploaded rows to an answer of the new model.

    RANKWISE_DATA=… python bench/openai_door.py [--model smollm2-135m] [--rows 160] [--out TITLE]

Facts become conversations. `rankwise serve --model MODEL --fine-tuning` starts in an empty folder, and
bench/openai_script.py, which knows OpenAI alone, uploads, trains, follows events and asks. Then the server is killed
and started again, and the model must give the same answer. At last a second job is created, the server is killed in
the middle of its training, and the next server must know how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai_script import MODEL
from telling import parser_of, tell

QUESTION = "How many yards did Patrick Mahomes throw for?"
LONGEST = 200
"""Characters of an answer."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=160)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(Path(os.environ["RANKWISE_DATA"]) / "superbowl_facts", folder, chosen.rows)
        results = measured(folder, chosen.model)
    tell(chosen, {"model": chosen.model, "rows": chosen.rows} | results, lambda one: print(json.dumps(one, indent=1)))


def write_rows(source: Path, folder: Path, count: int) -> None:
    for name, most in (("train", count), ("valid", 20)):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").read_text().splitlines()]
        short = [row for row in rows if len(row["completion"]) < LONGEST][:most]
        turns = ([("user", row["prompt"]), ("assistant", row["completion"])] for row in short)
        lines = [json.dumps({"messages": [{"role": r, "content": text} for r, text in one]}) for one in turns]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@contextmanager
def server(folder: Path, model: str) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "rankwise", "serve", "--model", model, "--fine-tuning", "--alias", MODEL, "--json"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*words, "--port", str(port), "--quiet"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        try:
            yield ready["url"], process, time.perf_counter() - began
        finally:
            process.kill()
            process.wait(60)


def measured(folder: Path, model: str) -> dict[str, Any]:
    with server(folder, model) as (url, _, until_ready):
        script = [
            sys.executable,
            str(Path(__file__).parent / "openai_script.py"),
            "train.jsonl",
            "valid.jsonl",
            QUESTION,
        ]
        printed = subprocess.run(
            script, cwd=folder, env=os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert printed.returncode == 0, printed.stderr
        told = [json.loads(line) for line in printed.stdout.splitlines()]
    by = {one["what"]: one for one in told}
    answers = {one["model"]: one["text"] for one in told if one["what"] == "answer"}
    events = [one["message"] for one in told if one["what"] == "event"]
    tuned = by["ended"]["model"]
    with server(folder, model) as (url, process, again):
        client = OpenAI(base_url=url, api_key="none")
        asking: Any = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 48}
        answer = client.chat.completions.create(model=tuned, **asking).choices[0].message.content
        file = client.files.list(purpose="fine-tune").data[0].id
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters={"n_epochs": 5})
        while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id).data):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    time.sleep(1)
    with server(folder, model) as (url, _, _):
        client = OpenAI(base_url=url, api_key="none")
        after_kill = [client.fine_tuning.jobs.retrieve(job.id).status]
        while (job := client.fine_tuning.jobs.retrieve(job.id)).status in ("queued", "running"):
            time.sleep(0.5)
        second = client.chat.completions.create(model=str(job.fine_tuned_model), **asking).choices[0].message.content
    return {
        "seconds until ready": round(until_ready, 1), "seconds of uploads": by["uploaded"]["after"],
        "seconds from the job to its end": round(by["ended"]["after"] - by["created"]["after"], 1),
        "status": by["ended"]["status"], "fine_tuned_model": tuned, "events": events[:4] + events[-3:],
        "answers": answers, "same after a restart": answer == answers[tuned], "seconds of the restart": round(again, 1),
        "killed server": {"status after the restart": after_kill[0], "end": job.status, "answer": second},
        "results": by["results"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
