"""A server that is offered more than it can do, and clients that go before their answer has ended.

The parts `overload` (R38) and `disconnects` (R41) of bench/hostile_serving.py, which runs them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
import urllib.request
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from asked_server import Answer, Server, ask, never_ending, percentile, question, serving

from serving import Made


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
    with serving(made, "--max-queue", str(waiting), "--max-batch", str(together)) as server:
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

    with serving(made, "--max-queue", "1000") as server:
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
