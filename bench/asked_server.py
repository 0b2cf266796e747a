"""`rankwise serve` in a process of its own, and requests over connections of their own, for benches of the server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from serving import Made

READY = 120
TOKENS = 16


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
    port: int,
    body: bytes | dict[str, Any],
    *,
    route: str = "chat/completions",
    drop_after: int | None = None,
    give_up: float | None = None,
) -> Answer:
    """One request over a connection of its own; with `drop_after`, it goes once so many bytes of the answer came, and
    with `give_up` after so many seconds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST /v1/{route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
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
