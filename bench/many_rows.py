"""Rows that do not fit into the memory: encoded, killed in the middle, begun again, opened by others, begun warm.

    python bench/many_rows.py FOLDER --model MODEL [--rows 1000000] [--short] [--processes 1 2] [--same] [--out TITLE]

Rows are made of sentences of GSM8K and Dolly ($RANKWISE_DATA), drawn by a seed and numbered, in eight shards of JSON
lines; `--short` makes them of E2E's sentences. Then, with an empty cache each time,

    whole     each number of processes: the first encodes all rows, the others open them
    killed    the largest number of processes again, killed (SIGKILL) after half of those seconds, and started again
    warm      `rankwise train` for one step with what was encoded: seconds until the step is done, and peak memory

Peak memory is that of each process, as the system reports it, without the child that renders templates. With `--same`
all entries of the cache are compared byte by byte.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from telling import parser_of, tell

SHARDS = 8
HELD_OUT = 32


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--same", action="store_true")
    parser.add_argument("--encode", action="store_true", help="be one of the processes")
    chosen = parser.parse_args()
    if chosen.encode:
        encode(chosen.folder, chosen.model)
    else:
        tell(chosen, measured(chosen), lambda result: print(json.dumps(result, indent=2)))


def measured(chosen: Any) -> dict[str, Any]:
    from rankwise.runs.manifest import machine, versions

    rows = chosen.folder / "rows"
    made = make_rows(rows, chosen.rows, short=chosen.short)
    result: dict[str, Any] = {"rows": chosen.rows, "bytes": made, "bytes_a_row": round(made / chosen.rows)}
    most = max(chosen.processes)
    for processes in chosen.processes:
        result[f"whole, {processes}"] = encoded(chosen, processes, f"cache-{processes}")
    result[f"killed, {most}"] = killed(chosen, most, "cache-killed", result[f"whole, {most}"]["wall_seconds"] / 2)
    if chosen.same:
        caches = [*(f"cache-{processes}" for processes in chosen.processes), "cache-killed"]
        entries = [entry_of(chosen.folder / cache) for cache in caches]
        result["same bytes"] = all(same(entries[0], other) for other in entries[1:])
    entry = entry_of(chosen.folder / f"cache-{most}")
    result["entry_bytes"] = sum(file.stat().st_size for file in entry.iterdir())
    result["report"] = {
        name: value for name, value in json.loads((entry / "facts.json").read_text())["data_report"].items()
        if isinstance(value, int)
    }  # fmt: skip
    result["warm"] = warm(chosen, f"cache-{most}")
    result["versions"] = versions()
    result["machine"] = {key: value for key, value in machine().items() if key != "system"}
    return result


def make_rows(folder: Path, count: int, *, short: bool) -> int:
    """Write the shards, unless they are there; their bytes."""
    shards = [folder / f"train-{number}.jsonl" for number in range(SHARDS)]
    if not all(shard.exists() for shard in shards):
        folder.mkdir(parents=True, exist_ok=True)
        chance, known = random.Random(0), sentences(short=short)
        for number, shard in enumerate(shards):
            with shard.open("w", encoding="utf-8") as out:
                for row in range(count * number // SHARDS, count * (number + 1) // SHARDS):
                    sizes = (1, 1) if short else (chance.randint(2, 4), chance.randint(1, 3))
                    asked, answered = (". ".join(chance.choices(known, k=size)) for size in sizes)
                    out.write(json.dumps({"prompt": f"{row}. {asked}", "completion": answered}) + "\n")
    return sum(shard.stat().st_size for shard in shards)


def sentences(*, short: bool) -> list[str]:
    data = Path(os.environ["RANKWISE_DATA"])
    if short:
        with (data / "e2e" / "devset.csv").open(encoding="utf-8", newline="") as file:
            return sorted({row["ref"] for row in csv.DictReader(file)})
    rows = [json.loads(line) for line in (data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [f"{row['question']} {row['answer']}" for row in rows]
    texts += [json.loads(line)["response"] for line in (data / "dolly" / "train.jsonl").read_text("utf-8").splitlines()]
    return [part.strip() for text in texts for part in text.replace("\n", " ").split(". ") if 20 < len(part) < 300]


def encode(folder: Path, model: str) -> None:
    """What each process does; its own figures as JSON."""
    from rankwise.base.loading import load_tokenizer
    from rankwise.config.data import DataConfig
    from rankwise.config.models import ModelConfig
    from rankwise.rows.preparing import prepare
    from rankwise.rows.text.chat_template import ChatTemplate
    from rankwise.rows.writing import TextWriting
    from rankwise.runs.records import silent
    from rankwise.training.world import join

    world = join()
    tokenizer, name, context = load_tokenizer(ModelConfig(name=model))
    writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), name, context)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began, cpu = time.perf_counter(), time.process_time()
    spec = DataConfig(path=str(folder / "rows"), held_out=HELD_OUT)
    world.wait_for_turn()
    prepare(spec, writing, silent)
    world.end_turn()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "rank": world.rank, "wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1),
        "peak_bytes": own.ru_maxrss * 1024, "before_bytes": before.ru_maxrss * 1024,
    }))  # fmt: skip


def started(chosen: Any, processes: int, cache: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(os.environ.get("RANKWISE_CACHE", Path.home() / ".cache" / "rankwise"))
    (chosen.folder / cache).mkdir(parents=True, exist_ok=True)
    if not (chosen.folder / cache / "models").exists():
        (chosen.folder / cache / "models").symlink_to(home / "models")
    common = os.environ | {
        "RANKWISE_CACHE": str(chosen.folder / cache), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "bench", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    words = [sys.executable, __file__, str(chosen.folder), "--model", chosen.model, "--encode"]
    return [
        subprocess.Popen(words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE,
                         text=True) for rank in range(processes)
    ]  # fmt: skip


def finished(every: list[subprocess.Popen[str]], began: float) -> dict[str, Any]:
    outputs = [process.communicate()[0] for process in every]
    if any(process.returncode for process in every):
        raise SystemExit(f"a process ended with {[process.returncode for process in every]}")
    return {"wall_seconds": round(time.perf_counter() - began, 1), "processes": list(map(json.loads, outputs))}


def encoded(chosen: Any, processes: int, cache: str) -> dict[str, Any]:
    shutil.rmtree(chosen.folder / cache, ignore_errors=True)
    began = time.perf_counter()
    return finished(started(chosen, processes, cache), began)


def killed(chosen: Any, processes: int, cache: str, seconds: float) -> dict[str, Any]:
    shutil.rmtree(chosen.folder / cache, ignore_errors=True)
    every = started(chosen, processes, cache)
    time.sleep(seconds)
    for process in every:
        assert process.poll() is None, "a process ended by itself"
        process.send_signal(signal.SIGKILL)
    for process in every:
        process.wait()
    left = sum(file.stat().st_size for file in (chosen.folder / cache / "encoded").rglob("*"))
    every, began = started(chosen, processes, cache), time.perf_counter()
    return {"seconds_until_the_kill": seconds, "bytes_left": left, "again": finished(every, began)}


def entry_of(cache: Path) -> Path:
    (entry,) = (path for path in (cache / "encoded").iterdir() if re.fullmatch("[0-9a-f]{64}", path.name))
    return entry


def same(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    return names == sorted(file.name for file in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def warm(chosen: Any, cache: str) -> dict[str, Any]:
    words = ["--model", chosen.model, "--data", str(chosen.folder / "rows"), "--run", "warm", "--restart"]
    words += ["--steps", "1", "--batch-size", "8", "--set", f"data.held_out={HELD_OUT}"]
    environment = os.environ | {"RANKWISE_CACHE": str(chosen.folder / cache)}
    began = time.perf_counter()
    log, said = chosen.folder / "runs" / "warm" / "metrics.jsonl", chosen.folder / "warm.txt"
    log.unlink(missing_ok=True)
    with said.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "rankwise", "train", *words], cwd=chosen.folder, env=environment, stdout=out,
            stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    first, ended = None, (0, 0, resource.getrusage(resource.RUSAGE_SELF))
    while not ended[0]:
        if first is None and log.exists() and '"step"' in log.read_text():
            first = time.perf_counter() - began
        time.sleep(0.1)
        ended = os.wait4(process.pid, os.WNOHANG)
    if ended[1]:
        raise SystemExit(f"the warm training ended with {ended[1]}: {said.read_text()[-2000:]}")
    return {
        "seconds_until_the_first_record": None if first is None else round(first, 1),
        "seconds_in_all": round(time.perf_counter() - began, 1), "peak_bytes": ended[2].ru_maxrss * 1024,
        "cpu_seconds": round(ended[2].ru_utime + ended[2].ru_stime, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
