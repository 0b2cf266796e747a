"""Adapters that are loaded, replaced and removed while 64 clients ask: R37 of the reliability bars.

    python bench/serving_swaps.py [--model tiny|smollm2-135m] [--swaps 1000] [--block 100] [--clients 64] --out TITLE

Sixteen random adapters lie in a folder, and `rankwise serve --model BASE --load-from FOLDER` begins with the base.
Eight names are asked all the time, greedily and for 16 tokens; meanwhile a name is replaced, or removed and loaded
again, as often as it goes. The hash in an answer says which adapter wrote it, and the text must be that adapter's, as
transformers write it alone in float32. Right after each change its name is asked once more, and must answer with the
new adapter.

Each block of swaps is a server of its own, and a cell of TITLE.json; what is there already is not measured again.
Before the block, after a tenth of its swaps, and at its end all adapters are removed: the memory of the process is then
compared with what it was.
"""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from telling import keep, parser_of

from serving import TOKENS, Client, Made

NAMES = [f"name-{number}" for number in range(8)]
PROMPTS = 12


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--clients", type=int, default=64)
    chosen = parser.parse_args()
    file = chosen.out.with_suffix(".json")
    cells: list[dict[str, Any]] = json.loads(file.read_text())["cells"] if file.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        made = Made(Path(folder), chosen.model, 16)
        prompts = [f"What is land {number}?" for number in range(PROMPTS)]
        references = {(name, prompt): made.reference(name, prompt) for name in made.names for prompt in prompts}
        gc.collect()
        while sum(cell["swaps"] for cell in cells) < chosen.swaps:
            cells.append(block(made, references, prompts, chosen, seed=len(cells)))
            keep(chosen.out, {"model": chosen.model, "clients": chosen.clients, "cells": cells, "sum": added(cells)})
            print(json.dumps(cells[-1]), flush=True)
    print(json.dumps(added(cells)))


def added(cells: list[dict[str, Any]]) -> dict[str, Any]:
    total = Counter[str]()
    for cell in cells:
        total.update({key: value for key, value in cell.items() if isinstance(value, int)})
    return dict(total) | {"largest memory left": max(cell["memory left"] for cell in cells)}


@contextmanager
def serving(made: Made) -> Any:
    port = 8700 + random.randrange(500)
    words = [sys.executable, "-m", "rankwise", "serve", "--model", made.base, "--load-from", ".", "--port", str(port)]
    words += ["--json", "--max-queue", "1000", "--dtype", "float32", "--quiet"]
    with subprocess.Popen(words, cwd=made.folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert '"url"' in process.stdout.readline()
        try:
            yield ("127.0.0.1", port), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


class Changer(Client):
    """Loads, replaces and removes; `present` says which adapter a name means."""

    def __init__(self, address: tuple[str, int], hashes: dict[str, str]) -> None:
        super().__init__(address)
        self.present: dict[str, str] = {}
        self.hashes, self.seconds = hashes, list[float]()

    def post(self, route: str, **body: Any) -> int:
        began = time.perf_counter()
        self._connection.request("POST", f"/v1/{route}", json.dumps(body), {"content-type": "application/json"})
        answer = self._connection.getresponse()
        answer.read()
        self.seconds.append(time.perf_counter() - began)
        return answer.status

    def load(self, name: str, adapter: str, **more: Any) -> bool:
        status = self.post("load_lora_adapter", lora_name=name, lora_path=adapter, **more)
        self.present[name] = adapter
        return status == 200 and self.ask(name, "What is land 0?", 1)["system_fingerprint"] == self.hashes[adapter]

    def unload(self, name: str) -> bool:
        del self.present[name]
        return self.post("unload_lora_adapter", lora_name=name) == 200


def block(
    made: Made, references: dict[tuple[str, str], tuple[str, int | None]], prompts: list[str], chosen: Any, seed: int
) -> dict[str, Any]:
    from rankwise.system.files import sha256_of

    hashes = {name: sha256_of(made.folder / name / "adapter_model.safetensors") for name in made.names}
    adapter_of = {value: name for name, value in hashes.items()}
    chance, stop, counts = random.Random(seed), threading.Event(), Counter[str]()
    with serving(made) as (address, process):
        changer = Changer(address, hashes)

        def ask(number: int) -> Counter[str]:
            own, client, mine = random.Random(f"{seed}.{number}"), Client(address), Counter[str]()
            while not stop.is_set():
                name, prompt = own.choice(NAMES), own.choice(prompts)
                try:
                    answer = client.ask(name, prompt)
                except AssertionError as error:
                    mine["gone" if "no model" in str(error) else "failed"] += 1
                    continue
                text, even = references[adapter_of[answer["system_fingerprint"]], prompt]
                same = answer["choices"][0]["message"]["content"] == text
                mine["right" if same else "even" if even is not None else "wrong"] += 1
            return mine

        def part(swaps: int) -> int:
            """The memory of the process once all adapters are removed again."""
            stop.clear()
            for name in NAMES:
                changer.load(name, made.names[0])
            with ThreadPoolExecutor(chosen.clients) as pool:
                every = [pool.submit(ask, number) for number in range(chosen.clients)]
                for _ in range(swaps):
                    name, adapter = chance.choice(NAMES), chance.choice(made.names)
                    if name in changer.present and chance.random() < 0.3:
                        counts["failed changes"] += not changer.unload(name)
                    else:
                        again = name in changer.present
                        counts["failed changes"] += not changer.load(name, adapter, load_inplace=again)
                stop.set()
                for one in every:
                    counts.update(one.result())
            for name in list(changer.present):
                changer.unload(name)
            time.sleep(1)
            return process.memory_info().rss

        began = time.perf_counter()
        before = part(max(5, chosen.block // 10))
        after = part(chosen.block)
        seconds = time.perf_counter() - began
    changes = sorted(changer.seconds)
    return {
        "swaps": chosen.block, **{key: counts[key] for key in KINDS}, "tokens": TOKENS,
        "memory before": before, "memory left": round(after / before - 1, 4),
        "seconds": round(seconds, 1), "median ms of a change": round(1000 * changes[len(changes) // 2], 1),
        "slowest ms of a change": round(1000 * changes[-1], 1),
    }  # fmt: skip


KINDS = ("right", "even", "wrong", "gone", "failed", "failed changes")

if __name__ == "__main__":
    main()
