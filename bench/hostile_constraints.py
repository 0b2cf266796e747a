"""Hostile schemas, patterns, grammars and tools against a server, while another client reads streams.

    python bench/hostile_constraints.py [--count 300] [--together 4] [--json] [--out TITLE]

`rankwise serve` over random adapters on a tiny model, in float32. One client reads one stream after the other, alone
and then beside the hostile requests: how long it waits for a piece. Then the memory of the server and of the process
that compiles, before and after; and how long SIGTERM takes while hostile requests wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asked_server import Server, ask, never_ending, percentile, question, serving
from telling import parser_of, tell

from serving import Made

GROUP = ("allOf", "anyOf", "oneOf")


def fields(count: int, one: Callable[[int], Any]) -> dict[str, Any]:
    every = {f"p{at}": one(at) for at in range(count)}
    return {"type": "object", "properties": every, "required": [*every]}


def doubling(levels: int, keyword: str) -> dict[str, Any]:
    """Each level refers to the next one twice."""
    defs: dict[str, Any] = {f"d{at}": {keyword: [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(levels)}
    return {"$defs": defs | {f"d{levels}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def hostile(chance: random.Random) -> dict[str, Any]:
    """The fields of a request, none of which is made twice."""
    size, salt = chance.randrange(2, 40), chance.randrange(10**6)
    schemas = [
        lambda: fields(size, lambda at: {"type": "integer", "multipleOf": 99_991 - at - salt % 100}),
        lambda: fields(size, lambda at: {"type": "integer", "multipleOf": 40 + at + salt % 100}),
        lambda: doubling(size, chance.choice(GROUP)),
        lambda: {"type": "object", "additionalProperties": {"type": "integer"}, "patternProperties": {
            f"^a{at + salt}(a|b){{{at % 12}}}$": {"type": "string"} for at in range(10 * size)}},
        lambda: fields(100 * size, lambda at: {"enum": [at, salt]}),
        lambda: {"enum": [f"value {at} of {salt}" for at in range(200 * size)]},
        lambda: {f"propertie{at}{salt}x": 1 for at in range(200 * size)},
        lambda: {"const": chance.choice(("<|im_end|>", "x" * 4000 * size, 10**20, 1e300)), "title": str(salt)},
        lambda: {"type": "string", "pattern": f"^(a|b)*a(a|b){{{size}}}{salt}$", "maxLength": 10 * size},
        lambda: {"type": "array", "minItems": salt, "items": {"type": "array", "minItems": salt}},
        lambda: {"$defs": {"t": fields(1, lambda at: {"$ref": "#/$defs/t"})}, "$ref": "#/$defs/t", "title": str(salt)},
        lambda: json.loads('{"items":' * 10 * size + "{}" + "}" * 10 * size),
        lambda: {"type": "integer", "minimum": 10**19 + salt},
    ]  # fmt: skip
    grammars = [
        f"start: T\nT: {' & '.join(f'/(.{{{at + 2}}})*x{salt}?/' for at in range(size))}",
        f"start: T\nT: ~/(a|b)*a(a|b){{{size}}}{salt}/ & /(a|b)*b(a|b){{{size}}}/",
        f'start: s\ns: s s s | s s | "a{salt}" | ',
        f'start: r0\n{"".join(f"r{at}: r{at + 1} r{at + 1}{chr(10)}" for at in range(9 * size))}r{9 * size}: "{salt}"',
        "start: " + " | ".join(f'"{at}" %json {json.dumps({"type": "integer", "multipleOf": 99_991 - at - salt % 100})}'
                               for at in range(size)),
    ]  # fmt: skip
    patterns = [
        f"(a?){{{50 * size}}}a{{{50 * size}}}{salt}", rf"(\p{{L}}\p{{N}}|\p{{Sc}}){{1,{20 * size}}}{salt}",
        f"(a|b)*a(a|b){{{size}}}{salt}", "|".join(f"w{at}{salt}[a-z]{{1,9}}" for at in range(100 * size)),
    ]  # fmt: skip
    names = ['a"b\n<|im_end|>', "", "a" * 65, "caf\u00e9", f"tool{salt}"]
    tool = {"name": chance.choice(names), "strict": True, "parameters": fields(size, lambda at: schemas[0]())}
    return chance.choice([
        lambda: {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": chance.choice(schemas)()}}},
        lambda: {"guided_json": chance.choice(schemas)()}, lambda: {"guided_json": chance.choice(schemas)()},
        lambda: {"guided_grammar": chance.choice(grammars)}, lambda: {"guided_regex": chance.choice(patterns)},
        lambda: {"tools": [tool] * chance.choice((1, 2)), "tool_choice": chance.choice(("auto", "required"))},
    ])()  # fmt: skip


async def waits(server: Server, body: dict[str, Any], until: asyncio.Event) -> list[float]:
    """Seconds between two pieces of one stream after the other."""
    content, found = json.dumps(body).encode(), list[float]()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    while not until.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"{head}{len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        began = time.perf_counter()
        while await reader.readline():
            found.append(time.perf_counter() - began)
            began += found[-1]
        writer.close()
    return found


def of_waits(found: list[float]) -> dict[str, float]:
    return {"pieces": len(found), **{f"p{round(100 * share, 1)}, ms": round(1000 * percentile(found, share), 1)
                                     for share in (0.5, 0.99, 0.999, 1)}}  # fmt: skip


async def attack(server: Server, bodies: list[dict[str, Any]], together: int, answers: Counter[str]) -> list[float]:
    left, took = list(bodies), list[float]()

    async def client() -> None:
        while left:
            body = left.pop()
            answer = await ask(server.port, body, give_up=random.Random(len(left)).choice((0.2, 60, 60, 60)))
            took.append(answer.seconds)
            answers[str(answer.status)] += 1
            if answer.status >= 500:
                print(answer.body[:300], str(body)[:300])

    await asyncio.gather(*(client() for _ in range(together)))
    return took


def megabytes(server: Server) -> tuple[float, float]:
    """Of the server, and of the processes that it started."""
    own = server.facts
    return own.memory_info().rss / 1e6, sum(one.memory_info().rss for one in own.children(recursive=True)) / 1e6


def measured(made: Made, chosen: Any) -> dict[str, Any]:
    chance, answers = random.Random(0), Counter[str]()
    bodies = [question(at, 40, **hostile(chance)) for at in range(chosen.count)]
    reading = question(0, 200, stream=True, logit_bias=never_ending(made))
    small = [question(at, 40, guided_json={"enum": [at]}) for at in range(20)]

    async def measure(server: Server) -> dict[str, Any]:
        await attack(server, small, 2, Counter())
        before = megabytes(server)

        async def beside(other: Any) -> tuple[list[float], Any]:
            done = asyncio.Event()
            job = asyncio.create_task(waits(server, reading, done))
            result = await other
            done.set()
            return await job, result

        alone, _ = await beside(asyncio.sleep(15))
        began = time.perf_counter()
        attacked, took = await beside(attack(server, bodies, chosen.together, answers))
        seconds = time.perf_counter() - began
        await asyncio.sleep(2)
        after = megabytes(server)
        jobs = [asyncio.create_task(ask(server.port, body)) for body in bodies[:16]]
        jobs += [asyncio.create_task(ask(server.port, question(0, 9, **hostile(chance)))) for _ in range(16)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        began = time.perf_counter()
        code = await asyncio.to_thread(server.process.wait, 60)
        stopped = time.perf_counter() - began
        await asyncio.gather(*jobs, return_exceptions=True)
        return {
            "requests": len(bodies), "together": chosen.together, "seconds": round(seconds, 1),
            "answers by status, 0 where the client went": dict(sorted(answers.items())),
            "a request took, s": {"p50": round(percentile(took, 0.5), 2), "most": round(max(took), 2)},
            "waits alone": of_waits(alone), "waits beside them": of_waits(attacked),
            "MB before, server and children": [round(one, 1) for one in before],
            "MB after": [round(one, 1) for one in after],
            "SIGTERM with 32 requests, s": round(stopped, 2), "exit code": code, "cores": os.cpu_count(),
        }  # fmt: skip

    with serving(made, "--max-queue", "200") as server:
        return asyncio.run(measure(server))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--together", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(Made(Path(folder), "tiny", 4), chosen)
    tell(chosen, result, lambda one: print(json.dumps(one, indent=1)))


if __name__ == "__main__":
    main()
