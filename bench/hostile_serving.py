"""A server under hostile use: overload, clients that go, hours of mixed requests, stops and kills, damaged adapters.

    python bench/hostile_serving.py overload [--seconds 60]     R38 of the reliability plan
    python bench/hostile_serving.py disconnects [--count 500]   R41
    python bench/hostile_serving.py soak [--seconds 600]        R42
    python bench/hostile_serving.py stops [--count 10]          R43
    python bench/hostile_serving.py damaged                     R44
    python bench/hostile_serving.py schema [--count 10000]      R45, by schemathesis over /openapi.json
    … several of them, one after the other; [--json] [--out TITLE]

Each starts `rankwise serve` over random adapters on a tiny model, in float32, and asks it from this process, on the
cores that both share. schemathesis is looked for on PYTHONPATH; without it `schema` says so and ends with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from telling import parser_of, tell

from rankwise.selftest.damage import DAMAGES, damage
from serving import Made

READY = 120
TOKENS = 16
HOSTILE = (
    b"{", b"[]", b'{"model": "adapter-0"}', b'{"model": "../x", "messages": []}', b"\xff\xfe",
    b'{"model": "adapter-0", "messages": [{"role": "user", "content": "x"}], "n": 1e9}',
    b'{"model": "adapter-0", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
)  # fmt: skip


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    seconds_to_ready: float

    @property
    def facts(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    @property
    def busy(self) -> float:
        """Seconds of processor time, which do not depend on what else the machine does."""
        times = self.facts.cpu_times()
        return times.user + times.system

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}


@contextmanager
def serving(made: Made, *words: str, port: int = 0) -> Iterator[Server]:
    port = port or 8200 + os.getpid() % 500
    command = [sys.executable, "-m", "rankwise", "serve", *made.names, "--port", str(port), "--json", "--quiet"]
    began = time.perf_counter()
    with (made.folder / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--dtype", "float32", *words], cwd=made.folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert '"url"' in ready, (ready, (made.folder / "serve.log").read_text())
        yield Server(process, port, time.perf_counter() - began)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


@dataclass
class Answer:
    status: int
    seconds: float
    headers: str
    body: bytes


async def ask(
    port: int, body: bytes | dict[str, Any], *, drop_after: int | None = None, give_up: float | None = None
) -> Answer:
    """One request over a connection of its own; with `drop_after`, it goes once so many bytes of the answer came, and
    with `give_up` after so many seconds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(head + content)
        while part := await asyncio.wait_for(reader.read(65536), give_up):
            received += part
            if drop_after is not None and len(received) > drop_after:
                writer.transport.abort()
                break
    except TimeoutError:
        writer.transport.abort()
    finally:
        writer.close()
    opening, _, rest = received.partition(b"\r\n\r\n")
    status = int(opening.split(b" ", 2)[1]) if opening else 0
    return Answer(status, time.perf_counter() - began, opening.decode("latin1"), rest)


def question(number: int, new: int = TOKENS, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is land {number % 40}?"}]
    return {"model": f"adapter-{number % 4}", "messages": messages, "temperature": 0, "max_tokens": new} | more


def never_ending(made: Made) -> dict[str, int]:
    """A bias that keeps an answer from ending early."""
    return {str(token): -100 for token in made.model.template.end_ids}


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))] if values else float("nan")


@dataclass(frozen=True)
class Load:
    """Requests of another process, so that this one can look at the server while they come."""

    port: int
    bias: dict[str, int]

    def closed(self, clients: int, seconds: float) -> list[tuple[int, float]]:
        """Status and seconds of each answer, to clients that ask again as soon as they have one."""

        async def all_clients() -> list[tuple[int, float]]:
            until, every = time.perf_counter() + seconds, list[tuple[int, float]]()

            async def client(number: int) -> None:
                while time.perf_counter() < until:
                    answer = await ask(self.port, question(number, logit_bias=self.bias))
                    every.append((answer.status, answer.seconds))

            await asyncio.gather(*map(client, range(clients)))
            return every

        return asyncio.run(all_clients())

    def offered(self, rate: float, seconds: float) -> list[tuple[int, float]]:
        """The same at a fixed rate, whatever becomes of the earlier requests."""

        async def all_requests() -> list[tuple[int, float]]:
            jobs, every, number = set[asyncio.Task[Answer]](), list[tuple[int, float]](), 0
            began = time.perf_counter()
            while (now := time.perf_counter() - began) < seconds:
                while number < now * rate and len(jobs) < 900:  # the server refuses connections beyond 1,000
                    job = asyncio.create_task(ask(self.port, question(number, logit_bias=self.bias)))
                    jobs.add(job)
                    job.add_done_callback(jobs.discard)
                    job.add_done_callback(lambda one: every.append((one.result().status, one.result().seconds)))
                    number += 1
                await asyncio.sleep(0.005)
            if jobs:
                await asyncio.wait(jobs)
            return every

        return asyncio.run(all_requests())


def overload(made: Made, chosen: Any) -> dict[str, Any]:
    """A process offers four times what the server can do; this one asks beside it, and times refusals and /health."""
    together, waiting, seconds = 16, 64, chosen.seconds
    with serving(made, "--waiting", str(waiting), "--together", str(together)) as server:
        load = Load(server.port, never_ending(made))
        load.closed(4, 1)
        single = [took for _, took in load.closed(1, max(3.0, seconds / 12))]
        before = server.busy
        full = [took for _, took in load.closed(together, max(5.0, seconds / 6))]
        at_peak = (server.busy - before) / len(full)
        peak = len(full) / max(5.0, seconds / 6)
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            began, before = time.perf_counter(), server.busy
            offering = pool.submit(load.offered, 4 * peak, seconds)
            refused, healthy, most = _beside(load, server, offering)
            every = offering.result()
            lasted, busy = time.perf_counter() - began, server.busy - before
        began = time.perf_counter()
        usual = percentile(single, 0.99)
        while (left := asyncio.run(ask(server.port, question(0, logit_bias=load.bias))).seconds) > 1.5 * usual:
            assert time.perf_counter() - began < 30, left
        recovered = time.perf_counter() - began
        accepted, timed = [took for status, took in every if status == 200], [one for one in refused if one]
        slow, others = percentile(full, 0.99), len(every) - len(accepted)
        return {
            "offered a second": round(4 * peak, 1), "asked": len(every), "seconds": round(lasted, 1),
            "status": dict(Counter(status for status, _ in every)), "most waiting or running": most,
            "refused beside the load": len(refused), "without Retry-After": sum(one is None for one in refused),
            "refused ms, p50, p99": [round(1e3 * percentile(timed, at), 1) for at in (0.5, 0.99)],
            "health ms, p50, p99": [round(1e3 * percentile(healthy, at), 1) for at in (0.5, 0.99)],
            "accepted s, p50, p99": [round(percentile(accepted, at), 3) for at in (0.5, 0.99)],
            "alone s, p50, p99": [round(percentile(single, at), 3) for at in (0.5, 0.99)],
            "sixteen clients s, p99": round(slow, 3), "bound s": round(2 * slow * (1 + waiting / together), 3),
            "answers a second, at peak and under load": [round(peak, 1), round(len(accepted) / lasted, 1)],
            "server's processor ms for an answer, at peak": round(1e3 * at_peak, 2),
            "and for a refusal": round(1e3 * (busy - at_peak * len(accepted)) / (others + len(timed)), 2),
            "recovered in s": round(recovered, 3), "left running": server.metrics()["rankwise_answers_running"],
        }  # fmt: skip


def _beside(load: Load, server: Server, offering: Future[Any]) -> tuple[list[float | None], list[float], float]:
    """Seconds of refusals (None without Retry-After) and of /health, and how many answers waited or ran at most."""
    refused, healthy, most = list[float | None](), list[float](), 0.0
    time.sleep(2)
    while not offering.done():
        answer = asyncio.run(ask(server.port, question(0, logit_bias=load.bias), give_up=1.0))
        if answer.status == 429:
            refused.append(answer.seconds if "retry-after" in answer.headers.lower() else None)
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=30) as healthy_answer:
            assert healthy_answer.status == 200
        healthy.append(time.perf_counter() - began)
        counts = server.metrics()
        most = max(most, counts["rankwise_answers_running"] + counts["rankwise_answers_waiting"])
        time.sleep(0.02)
    return refused, healthy, most


def disconnects(made: Made, chosen: Any) -> dict[str, Any]:
    """Slots must be free two tokens after their client has gone, and nothing may be left."""
    body = question(0, 400, stream=True, logit_bias=never_ending(made))

    def settled(server: Server) -> float:
        began = time.perf_counter()
        while server.metrics()["rankwise_answers_running"] + server.metrics()["rankwise_answers_waiting"]:
            assert time.perf_counter() - began < 60, "a slot is not free after a minute"
        return time.perf_counter() - began

    async def many(port: int, count: int) -> list[Answer]:
        gate = asyncio.Semaphore(24)

        async def one(number: int) -> Answer:
            async with gate:
                return await ask(port, body | {"stream": number % 3 != 0, "max_tokens": 200}, drop_after=number % 700)

        return await asyncio.gather(*map(one, range(count)))

    with serving(made, "--waiting", "1000") as server:
        asyncio.run(many(server.port, 30))
        settled(server)
        before = (server.facts.num_fds(), server.facts.num_threads(), server.facts.memory_info().rss)
        tokens = []
        for _ in range(20):  # one after the other: tokens that are written after the client had its last piece
            first = server.metrics()["rankwise_answer_tokens_total"]
            received = asyncio.run(ask(server.port, body, drop_after=2000)).body.count(b"data: ") - 1
            settled(server)
            tokens.append(server.metrics()["rankwise_answer_tokens_total"] - first - received)
        answers = asyncio.run(many(server.port, chosen.count))
        seconds = settled(server)
        after = (server.facts.num_fds(), server.facts.num_threads(), server.facts.memory_info().rss)
        counts = server.metrics()
    return {
        "dropped": chosen.count, "status": dict(Counter(one.status for one in answers)),
        "tokens written and not received, median and most": [statistics.median(tokens), max(tokens)],
        "settled in s": round(seconds, 2),
        "files, threads, MB before": [*before[:2], round(before[2] / 1e6, 1)],
        "files, threads, MB after": [*after[:2], round(after[2] / 1e6, 1)],
        "cancelled": counts["rankwise_cancelled_total"], "failed": counts["rankwise_failed_total"],
    }  # fmt: skip


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

    with serving(made, "--waiting", "200") as server:
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
    from library import rows

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


def with_names(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The served schema, with models and messages that exist, so that requests come as far as the model."""
    schemas = document["components"]["schemas"]
    message = {"type": "object", "required": ["role", "content"], "additionalProperties": False, "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool", "user"]}, "content": {"type": "string"},
    }}  # fmt: skip
    schemas["ChatBody"]["properties"]["messages"] |= {"items": message, "maxItems": 3}
    for body in ("ChatBody", "CompletionBody"):
        schemas[body]["properties"]["model"] = {"enum": [*names, "no-such-model"]}
        schemas[body]["properties"].pop("logit_bias", None)
        for name in ("max_tokens", "max_completion_tokens"):
            schemas[body]["properties"].get(name, {}).update({"type": "integer", "minimum": 1, "maximum": 6})
            schemas[body]["properties"].get(name, {}).pop("anyOf", None)
    return document


def schema(made: Made, chosen: Any) -> dict[str, Any]:
    if importlib.util.find_spec("schemathesis") is None:
        print(
            "schemathesis is not installed: pip install --target FOLDER schemathesis, and PYTHONPATH=FOLDER",
            file=sys.stderr,
        )
        raise SystemExit(0)
    with serving(made, "--max-new-tokens", "4", "--waiting", "1000") as server:
        document = made.folder / "openapi.json"
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/openapi.json", timeout=30) as answer:
            document.write_text(json.dumps(with_names(json.load(answer), made.names)))
        words = ["run", str(document), "--url", f"http://127.0.0.1:{server.port}", "--checks", "not_a_server_error",
                 "--max-examples", str(chosen.count // 10), "--no-color", "--suppress-health-check", "all"]  # fmt: skip
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=made.folder)
        counts = server.metrics()
        alive = server.process.poll() is None
    log = (made.folder / "serve.log").read_text()
    report = done.stdout.splitlines()
    return {
        "exit code": done.returncode, "report": report[-30:], "tracebacks in the log": log.count("Traceback"),
        "answers": counts["rankwise_requests_total"], "failed": counts["rankwise_failed_total"], "alive": alive,
        "log": log[-2000:],
    }  # fmt: skip


KINDS = {
    "overload": overload,
    "disconnects": disconnects,
    "soak": soak,
    "stops": stops,
    "damaged": damaged,
    "schema": schema,
}
USUAL = {
    "overload": (60, 0),
    "disconnects": (0, 500),
    "soak": (600, 0),
    "stops": (0, 10),
    "damaged": (0, 5),
    "schema": (0, 10_000),
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
