"""A server under hostile use: overload, clients that go, hours of mixed requests, stops and kills, damaged adapters.

    python bench/hostile_serving.py overload [--seconds 60]     R38 of the reliability plan
    python bench/hostile_serving.py disconnects [--count 500]   R41
    python bench/hostile_serving.py soak [--seconds 600]        R42
    python bench/hostile_serving.py stops [--count 10]          R43
    python bench/hostile_serving.py damaged                     R44
    … several of them, one after the other; [--json] [--out TITLE]

Each starts `rankwise serve` over random adapters on a tiny model, in float32, and asks it from this process, on the
cores that both share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from asked_server import READY, Answer, Server, ask, never_ending, question, serving
from busy_serving import disconnects, overload
from telling import parser_of, tell

from kit.damage import DAMAGES, damage
from serving import Made

HOSTILE = (
    b"{", b"[]", b'{"model": "adapter-0"}', b'{"model": "../x", "messages": []}', b"\xff\xfe",
    b'{"model": "adapter-0", "messages": [{"role": "user", "content": "x"}], "n": 1e9}',
    b'{"model": "adapter-0", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
)  # fmt: skip


def soak(made: Made, chosen: Any) -> dict[str, Any]:
    chance, counts = random.Random(0), Counter[str]()

    async def client(port: int, until: float) -> None:
        while time.perf_counter() < until:
            kind = chance.choice(("whole", "stream", "drop", "hostile", "many"))
            number = chance.randrange(1000)
            try:
                match kind:
                    case "hostile":
                        answer = await ask(port, chance.choice(HOSTILE))
                    case "drop":
                        answer = await ask(port, question(number, 60, stream=True), drop_after=300)
                    case "many":
                        answer = await ask(port, question(number, 8, n=3, temperature=1, seed=number))
                    case _:
                        answer = await ask(port, question(number, chance.randrange(1, 40), stream=kind == "stream"))
            except OSError as error:
                counts[f"{kind}: {type(error).__name__}"] += 1
                continue
            counts[f"{kind}: {answer.status}"] += 1

    async def watched(server: Server, seconds: float) -> list[tuple[float, int, int, int]]:
        began, samples, facts = time.perf_counter(), list[tuple[float, int, int, int]](), server.facts
        clients = [asyncio.create_task(client(server.port, began + seconds)) for _ in range(12)]
        while time.perf_counter() < began + seconds:
            await asyncio.sleep(2)
            rss = facts.memory_info().rss
            samples.append((time.perf_counter() - began, rss, facts.num_fds(), facts.num_threads()))
        await asyncio.gather(*clients)
        return samples

    with serving(made, "--max-queue", "200") as server:
        asyncio.run(watched(server, min(60.0, chosen.seconds / 4)))
        counts.clear()
        samples = asyncio.run(watched(server, chosen.seconds))
        left = server.metrics()
    half = samples[len(samples) // 2 :]
    slope = statistics.linear_regression([one[0] for one in half], [one[1] for one in half]).slope
    return {
        "seconds": chosen.seconds, "requests": sum(counts.values()), "answers": dict(sorted(counts.items())),
        "status 5xx": sum(count for kind, count in counts.items() if re.search(r": 5\d\d", kind)),
        "MB at the beginning, the middle, the end": [round(one[1] / 1e6, 2) for one in (samples[0], half[0], half[-1])],
        "MB an hour, second half": round(slope * 3600 / 1e6, 2),
        "files": [min(one[2] for one in samples), max(one[2] for one in samples)],
        "threads": [min(one[3] for one in samples), max(one[3] for one in samples)],
        "left running": left["rankwise_answers_running"], "failed": left["rankwise_failed_total"],
    }  # fmt: skip


def stops(made: Made, chosen: Any) -> dict[str, Any]:
    """SIGTERM while answers are streamed, and SIGKILL; the same port serves again at once."""
    ends, took, truncated, ready = list[int](), list[float](), 0, list[float]()
    body = question(0, 48, stream=True, logit_bias=never_ending(made))

    async def streams(server: Server) -> list[Answer]:
        jobs = [asyncio.create_task(ask(server.port, body)) for _ in range(8)]
        while server.metrics()["rankwise_answers_running"] < 4:
            await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*jobs)

    for _ in range(chosen.count):
        with serving(made) as server:
            ready.append(server.seconds_to_ready)
            began = time.perf_counter()
            answers = asyncio.run(streams(server))
            ends.append(server.process.wait(30))
            took.append(time.perf_counter() - began)
            truncated += sum(not one.body.rstrip().endswith(b"[DONE]\r\n\r\n0") and b"[DONE]" not in one.body
                             for one in answers)  # fmt: skip
    again = list[float]()
    for _ in range(chosen.count):
        with serving(made) as server:
            again.append(server.seconds_to_ready)
            asyncio.run(ask(server.port, question(0)))
            server.process.kill()
            server.process.wait(30)
    return {
        "stopped": chosen.count, "exit codes": dict(Counter(ends)), "truncated streams": truncated,
        "streams": 8 * chosen.count, "seconds to stop, most": round(max(took), 2),
        "killed": chosen.count, "seconds to ready, median of first starts": round(statistics.median(ready), 2),
        "seconds to ready after a kill, most": round(max(again[1:] or again), 2),
    }  # fmt: skip


def damaged(made: Made, chosen: Any) -> dict[str, Any]:
    """What the command says of each damaged adapter of a run beside sound ones, and that these are served without it.

    An adapter of another tool has no recorded hash, so there a bit that is flipped cannot be known; a run knows it.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from kit.library import rows

    (made.folder / "rows.jsonl").write_text(rows(20))
    train = [sys.executable, "-m", "rankwise", "train", "--model", made.base, "--data", "rows.jsonl", "--run", "own"]
    subprocess.run([*train, "--steps", "3", "--held-out", "0", "--quiet"], cwd=made.folder, check=True)
    file = made.folder / "runs" / "own" / "adapter" / "adapter_model.safetensors"
    said = {name: _served_with(made, file, name) for name in DAMAGES[:5]}
    with serving(made) as server:
        answers = [asyncio.run(ask(server.port, question(number))).status for number in range(4)]
    return {"damages": said, "others are served": answers}


def _served_with(made: Made, file: Path, kind: str) -> dict[str, Any]:
    before = file.read_bytes()
    damage(file, kind)
    words = [sys.executable, "-m", "rankwise", "serve", *made.names, "own", "--port", "8199", "--json", "--quiet"]
    with subprocess.Popen(words, cwd=made.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as one:
        assert one.stdout is not None
        line = json.loads(one.stdout.readline())
        error, serves = line.get("error", ""), "url" in line
        if serves:
            one.terminate()
        code = one.wait(READY)
    file.write_bytes(before)
    return {"served": serves, "exit code": code, "named": "own" in error, "error": error[:160]}


KINDS = {
    "overload": overload,
    "disconnects": disconnects,
    "soak": soak,
    "stops": stops,
    "damaged": damaged,
}
USUAL = {
    "overload": (60, 0),
    "disconnects": (0, 500),
    "soak": (600, 0),
    "stops": (0, 10),
    "damaged": (0, 5),
}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("what", nargs="+", choices=KINDS)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Made(Path(folder), "tiny", 4)
        for what in chosen.what:
            seconds, count = USUAL[what]
            own = argparse.Namespace(seconds=chosen.seconds or seconds, count=chosen.count or count)
            results[what] = KINDS[what](made, own)
            tell(chosen, results, lambda one: print(json.dumps(one, indent=1)))


if __name__ == "__main__":
    main()
