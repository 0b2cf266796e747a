"""A server with many adapters, asked by many clients: whether each answer is its adapter's, and tokens a second.

    python bench/serving.py right [--model tiny|smollm2-135m] [--requests 20000] [--adapters 16] [--clients 64]
    python bench/serving.py speed [--model smollm2-135m] [--rounds 3] [--llama-cpp FOLDER]
    python bench/serving.py turns [--model smollm2-135m] [--rounds 3] [--llama-cpp FOLDER]
    … [--json] [--out TITLE]

`right` lays random adapters over one base, starts `rankwise serve` over all of them, and asks greedy questions of 16
tokens from many clients at once; prompts share beginnings. The references are answers of transformers with one adapter
active, in float32. A nearly even choice between two tokens (logits closer than 1e-3) may be rounded either way in
company: such answers are counted apart and compared up to there.

`speed` asks one adapter, with 1, 4 and 16 clients, for 64 tokens each, beside transformers' `generate` one by one in
the same run, in turns: by the clock, and by the processor time of the process that answers, which does not depend on
what else the machine does. With `--llama-cpp`, the folder of an installed llama-cpp-python and its server's libraries,
that server answers the same requests in the same turns: the model with its adapter merged, in float32, by our export.

`turns` times a conversation of eight messages of some 80 tokens and answers of 16, with what was read before and
(`--prefix-cache 0`) without it.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import psutil
import torch
from telling import parser_of, tell

import rankwise
from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import prompt_ids

TOKENS, LONG, EVEN = 16, 64, 1e-3
OPENINGS = ("", "You are asked about a land far away. ", "You are asked about a land far away. Answer in one word. ")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=("right", "speed", "turns"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--tokens", type=int, default=LONG)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Made(Path(folder), chosen.model, chosen.adapters if chosen.what == "right" else 1)
        results = {"right": right, "speed": speed, "turns": turns}[chosen.what](made, chosen)
    tell(chosen, results, lambda one: print(json.dumps(one, indent=1)))


class Made:
    """A base and random adapters over it, as folders and in memory."""

    def __init__(self, folder: Path, name: str, adapters: int) -> None:
        self.folder, self.base = folder, name
        if name == "tiny":
            self.base = str(folder / "tiny")
            _write_tiny(folder / "tiny")
        self.model: LoadedModel = load(ModelConfig(name=self.base, dtype="float32", device="cpu"))
        self.model.module.eval()
        self.names = [f"adapter-{number}" for number in range(adapters)]
        self.set = rankwise.inject(self.model.module, LoraConfig(rank=8), name=self.names[0])
        for number, one in enumerate(self.names[1:], start=1):
            rankwise.add_adapter(self.set, LoraConfig(rank=2 + number % 8), name=one, seed=number)
        for number, one in enumerate(self.names):
            generator = torch.Generator().manual_seed(number)
            for adapter in self.set.adapters(one).values():
                for parameter in adapter.parameters():
                    size = 0.3 / parameter.shape[-1] ** 0.5
                    parameter.data += size * torch.randn(parameter.shape, generator=generator)
            rankwise.write_peft(self.set, folder / one, base_model=self.base, name=one)

    def ids(self, prompt: str) -> list[int]:
        return prompt_ids(self.model.template.text([Message("user", prompt)], answer_next=True), self.model.tokenizer)

    def reference(self, name: str, prompt: str, new: int = TOKENS) -> tuple[str, int | None]:
        """The answer, and at which token the two best logits are nearly even."""
        self.set.activate(name)
        ids = torch.tensor([self.ids(prompt)])
        with torch.inference_mode():
            made = self.model.module.generate(
                ids, do_sample=False, max_new_tokens=new, output_logits=True, return_dict_in_generate=True,
                eos_token_id=list(self.model.template.end_ids), pad_token_id=self.model.tokenizer.pad_id,
            )  # fmt: skip
        best = [logits[0].topk(2).values for logits in made.logits]
        even = next((at for at, (first, second) in enumerate(best) if first - second < EVEN), None)
        written = made.sequences[0, ids.shape[1] :].tolist()
        kept = [token for token in written if token not in self.model.template.end_ids]
        return self.model.template.answers.read(kept), even


def _write_tiny(folder: Path) -> None:
    from conftest import chat_tokenizer, tiny_model

    tokenizer = chat_tokenizer()
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(made: Made, *more: str, port: int = 0) -> Iterator[tuple[tuple[str, int], int]]:
    """The address and the number of the process."""
    port = port or 8200 + os.getpid() % 500
    words = [sys.executable, "-m", "rankwise", "serve", *made.names, "--port", str(port), "--json"]
    words += ["--max-queue", "1000", "--dtype", "float32", "--quiet", *more]
    with subprocess.Popen(words, cwd=made.folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert '"url"' in ready, ready
        try:
            yield ("127.0.0.1", port), process.pid
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def llama_cpp_serving(made: Made, library: Path | None) -> Iterator[tuple[tuple[str, int], int] | None]:
    """The first adapter's model by `llama_cpp.server`, or None without the library."""
    if library is None:
        yield None
        return
    file, port = made.folder / "merged.gguf", 8700 + os.getpid() % 500
    words = ["export", made.names[0], "--to", str(file), "--format", "gguf", "--dtype", "float32", "--no-verify"]
    subprocess.run([sys.executable, "-m", "rankwise", *words, "--force-base"], cwd=made.folder, check=True)
    threads = str(torch.get_num_threads())
    words = ["--model", str(file), "--port", str(port), "--n_ctx", "2048", "--n_threads", threads]
    words += ["--n_threads_batch", threads, "--verbose", "False", "--model_alias", made.names[0]]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(library))))
    with subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *words], cwd=made.folder, env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            wait_for(port, process)
            yield ("127.0.0.1", port), process.pid
        finally:
            process.terminate()
            process.wait(60)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "llama_cpp.server ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError("llama_cpp.server does not listen")


class Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=600)

    def ask(
        self, name: str, prompt: str, new: int = TOKENS, before: Sequence[dict[str, str]] = (), **more: Any
    ) -> dict[str, Any]:
        messages = [*before, {"role": "user", "content": prompt}]
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": new}
        content = json.dumps(body | more)
        self._connection.request("POST", "/v1/chat/completions", content, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        value = json.loads(answer.read())
        assert answer.status == 200, value
        return value


def right(made: Made, chosen: Any) -> dict[str, Any]:
    prompts = [f"{OPENINGS[n % 3]}What is land {n}?" for n in range(chosen.prompts)]
    references = {(name, prompt): made.reference(name, prompt) for name in made.names for prompt in prompts}
    chance = random.Random(0)
    jobs = [chance.choice(list(references)) for _ in range(chosen.requests)]
    shares = [jobs[at :: chosen.clients] for at in range(chosen.clients)]
    counts = {"right": 0, "wrong": 0, "even": 0, "wrong model": 0}
    with serving(made) as (address, _):
        began = time.perf_counter()
        with ThreadPoolExecutor(chosen.clients) as pool:
            every = list(pool.map(lambda share: _answers(address, share), shares))
        seconds = time.perf_counter() - began
    for share, answers in zip(shares, every, strict=True):
        for job, (text, model) in zip(share, answers, strict=True):
            wanted_text, even = references[job]
            kind = "right" if text == wanted_text else "even" if even is not None else "wrong"
            counts["wrong model" if model != job[0] else kind] += 1
    distinct = len({text for text, _ in references.values()})
    return {
        "requests": chosen.requests, "adapters": chosen.adapters, "clients": chosen.clients, **counts,
        "references": len(references), "distinct references": distinct, "seconds": round(seconds, 1),
    }  # fmt: skip


def _answers(address: tuple[str, int], share: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    client = Client(address)
    every = [client.ask(name, prompt) for name, prompt in share]
    return [(one["choices"][0]["message"]["content"], one["model"]) for one in every]


def speed(made: Made, chosen: Any) -> dict[str, Any]:
    """Tokens a second, in turns: transformers one by one, then each server with several clients. No answer may end."""
    ends = {str(token): -100 for token in made.model.template.end_ids}
    (name,), new = made.names, chosen.tokens

    def one_by_one() -> int:
        made.set.activate(name)
        for number in range(2):
            ids = torch.tensor([made.ids(f"What is land {number}?")])
            with torch.inference_mode():
                made.model.module.generate(ids, do_sample=False, max_new_tokens=new, min_new_tokens=new)
        return 2 * new

    def together(address: tuple[str, int], clients: int) -> int:
        def asked(number: int) -> int:
            answer = Client(address).ask(name, f"What is land {number}?", new, logit_bias=ends)
            return answer["usage"]["completion_tokens"]

        with ThreadPoolExecutor(clients) as pool:
            return sum(pool.map(asked, range(clients)))

    with serving(made) as own, llama_cpp_serving(made, chosen.llama_cpp) as other:
        ways: list[tuple[str, Callable[[], int], int]] = [("transformers, one by one", one_by_one, os.getpid())]
        for n in (1, 4, 16):
            ways.append((f"{n} clients", partial(together, own[0], n), own[1]))
            if other is not None:
                ways.append((f"{n} clients, llama_cpp.server", partial(together, other[0], n), other[1]))
        by_clock, by_processor = in_turns(ways, chosen.rounds)
    base = by_clock["transformers, one by one"]
    return {
        "tokens a second": by_clock, "tokens a second of processor time": by_processor,
        "times transformers": {label: round(rate / base, 2) for label, rate in by_clock.items()},
        "tokens": new, "threads": torch.get_num_threads(),
    }  # fmt: skip


MESSAGE = "and I would like to know more about the rivers, the towns and the hills of this land. " * 4


def turns(made: Made, chosen: Any) -> dict[str, Any]:
    """Seconds of each message's answer; no two conversations begin alike, so that nothing is left of an earlier one."""
    (name,), ends = made.names, {str(token): -100 for token in made.model.template.end_ids}

    def conversation(address: tuple[str, int], first: str) -> list[float]:
        client, said, took = Client(address), list[dict[str, str]](), list[float]()
        for number in range(8):
            text = f"{first} message {number}: {MESSAGE}"
            began = time.perf_counter()
            answer = client.ask(name, text, before=said, logit_bias=ends)["choices"][0]["message"]["content"]
            took.append(time.perf_counter() - began)
            said += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return took

    port = 8200 + os.getpid() % 500
    with serving(made) as own, serving(made, "--prefix-cache", "0", port=port + 1) as without, \
            llama_cpp_serving(made, chosen.llama_cpp) as other:  # fmt: skip
        servers = {"rankwise": own, "without earlier prompts": without}
        servers |= {} if other is None else {"llama_cpp.server": other}
        every = defaultdict[str, list[list[float]]](list)
        for number in range(chosen.rounds):
            for label in list(servers) if number % 2 == 0 else reversed(servers):
                every[label].append(conversation(servers[label][0], f"{label} {number}"))
    medians = {label: [statistics.median(one) for one in zip(*runs, strict=True)] for label, runs in every.items()}
    return {
        "seconds of each answer": {label: [round(one, 2) for one in values] for label, values in medians.items()},
        "seconds of all": {label: round(sum(values), 2) for label, values in medians.items()},
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def in_turns(
    ways: Sequence[tuple[str, Callable[[], int], int]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median tokens a second of each way, by the clock and by its process's processor time; every second round goes
    backwards."""
    clock, processor = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number in range(rounds):
        for label, act, process in ways if number % 2 == 0 else reversed(ways):
            began, busy = time.perf_counter(), sum(psutil.Process(process).cpu_times()[:2])
            tokens = act()
            clock[label].append(tokens / (time.perf_counter() - began))
            processor[label].append(tokens / (sum(psutil.Process(process).cpu_times()[:2]) - busy))
    medians = [
        {label: round(statistics.median(every), 1) for label, every in one.items()} for one in (clock, processor)
    ]
    return medians[0], medians[1]


if __name__ == "__main__":
    main()
