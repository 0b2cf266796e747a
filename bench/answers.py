"""Answers of real models, beside llama.cpp over the same file, and beside the model's own forward pass.

    python bench/answers.py served FILE.gguf --llama-server PROGRAM [--rounds 3] [--tokens 64]
    python bench/answers.py same FILE.gguf --rows ROWS.jsonl [--count 300]
    … [--json] [--out TITLE]

`served` starts `rankwise serve` and `llama-server` over one file, with as many threads, and asks in turns: 1, 4 and
16 clients for answers of as many tokens, none of which may end; then for the first token behind a prompt of some 500
tokens that was never read. Memory is the highest of each process (VmHWM); pages of the file that it maps are in it, and
llama-server's keys and values for 16,384 tokens, which it takes at the start.

`same` compares what compiled code (forward/decode_step.py) computes with the model's own forward pass: the loss of an
answer token over reference answers, each token read by a step of its own; and how many greedy answers of up to 48
tokens are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from telling import parser_of, tell
from torch import Tensor

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.evaluation.likelihood import likelihoods
from rankwise.forward.decode_step import MOST_ROWS, DecodeStep
from rankwise.inference.batch import GenerationBatch, GenerationRow
from rankwise.inference.generate import answers_in_turn
from rankwise.inference.sampling import Chosen
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from serving import Client, in_turns, wait_for

CLIENTS, ROOM, WORDS, LONGEST = (1, 4, 16), 16_384, 400, 48
OURS, THEIRS = "rankwise", "llama-server"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=("served", "same"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--count", type=int, default=300)
    chosen = parser.parse_args()
    results = {"served": served, "same": same}[chosen.what](chosen)
    tell(chosen, results, lambda one: print(json.dumps(one, indent=1)))


def served(chosen: argparse.Namespace) -> dict[str, Any]:
    with served_by_rankwise(chosen.file) as ours, served_by_llama(chosen.file, chosen.llama_server) as theirs:
        servers = {OURS: ours, THEIRS: theirs}
        for port, _ in servers.values():
            together(port, chosen.tokens, 1)
        ways = [
            (f"{name}, {n} clients", partial(together, port, chosen.tokens, n), process)
            for n in CLIENTS for name, (port, process) in servers.items()
        ]  # fmt: skip
        by_clock, by_processor = in_turns(ways, chosen.rounds)
        firsts: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(2 * chosen.rounds):
            for name in list(servers) if number % 2 == 0 else reversed(servers):
                firsts[name].append(first_token(servers[name][0], number))
        memory = {name: round(highest_memory(process) / 1e9, 2) for name, (_, process) in servers.items()}
    return {
        "file": chosen.file.name, "tokens a second": by_clock, "tokens a second of processor time": by_processor,
        "seconds to the first token": {name: round(statistics.median(one), 2) for name, one in firsts.items()},
        "GB": memory, "tokens": chosen.tokens, "threads": torch.get_num_threads(),
    }  # fmt: skip


@contextmanager
def served_by_rankwise(file: Path) -> Iterator[tuple[int, int]]:
    port = 8200 + os.getpid() % 400
    words = [sys.executable, "-m", "rankwise", "serve", "--model", str(file), "--port", str(port), "--json", "--quiet"]
    with subprocess.Popen([*words, "--alias", "base"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert '"url"' in ready, ready
        try:
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def served_by_llama(file: Path, program: Path) -> Iterator[tuple[int, int]]:
    port, threads = 8700 + os.getpid() % 400, str(torch.get_num_threads())
    words = [str(program), "--model", str(file), "--port", str(port), "--threads", threads, "--threads-batch", threads]
    words += ["--ctx-size", str(ROOM), "--parallel", str(max(CLIENTS)), "--alias", "base"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            while not answers_health(port):
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(60)


def answers_health(port: int) -> bool:
    """It listens before the model is loaded."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    return connection.getresponse().status == 200


def together(port: int, tokens: int, clients: int) -> int:
    def asked(number: int) -> int:
        client, question = Client(("127.0.0.1", port)), f"Write a long story about land {number}."
        answer = client.ask("base", question, tokens)
        return answer["usage"]["completion_tokens"]

    with ThreadPoolExecutor(clients) as pool:
        written = sum(pool.map(asked, range(clients)))
    assert written == clients * tokens, "an answer ended"
    return written


def first_token(port: int, number: int) -> float:
    chance = random.Random(number)
    words = " ".join(f"{chance.choice('bcdfghklmnprst')}{chance.choice('aeiou')}t" for _ in range(WORDS))
    body = {"model": "base", "messages": [{"role": "user", "content": words}], "max_tokens": 4, "temperature": 0}
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    asked = json.dumps(body | {"stream": True})
    connection.request("POST", "/v1/chat/completions", asked, {"content-type": "application/json"})
    answer = connection.getresponse()
    lines = iter(answer.readline, b"")
    assert any(b'"content":"' in line.replace(b" ", b"").replace(b'"content":""', b"") for line in lines), "no answer"
    took = time.perf_counter() - began
    answer.read()
    return took


def highest_memory(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def same(chosen: argparse.Namespace) -> dict[str, Any]:
    model = load(ModelConfig(name=str(chosen.file), device="cpu"))
    model.module.eval()
    rows = [json.loads(line)["messages"] for line in chosen.rows.read_text().splitlines()][: chosen.count]
    pairs = [asked_and_answered(model, messages) for messages in rows]
    config, prompts = GenerationConfig(max_new_tokens=LONGEST), [prompt for prompt, _ in pairs]

    assert DecodeStep.of(model.module) is not None, "there is no compiled step for this model"
    loss, own_loss = loss_by_steps(model, pairs), loss_by_the_model(model, pairs)

    def answers() -> list[str]:
        return [one.text for one in answers_in_turn(model, prompts, config, batch_size=MOST_ROWS)]

    with patch.object(DecodeStep, "__call__", autospec=True, side_effect=DecodeStep.__call__) as steps:
        texts = answers()
    assert steps.call_count > len(pairs) // MOST_ROWS, "the compiled step was not used"
    with patch.object(DecodeStep, "of", lambda module: None):
        own_texts = answers()
    return {
        "file": chosen.file.name, "answers": len(pairs), "tokens": sum(len(answer) for _, answer in pairs),
        "loss of an answer token": round(loss, 5), "by the model's own pass": round(own_loss, 5),
        "equal greedy answers": sum(one == two for one, two in zip(texts, own_texts, strict=True)),
    }  # fmt: skip


def loss_by_the_model(model: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]) -> float:
    """Nats of an answer token, all of them read at once."""
    rows = [Tokens((*prompt, *answer), (*(False for _ in prompt), *(True for _ in answer))) for prompt, answer in pairs]
    found = likelihoods(model.module, rows)
    return sum(one.nats for one in found) / sum(one.tokens for one in found)


@torch.inference_mode()
def loss_by_steps(model: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]) -> float:
    """Nats of an answer token, where each of them but the first is chosen after a step of its own."""
    losses: list[float] = []

    def forced(
        answers: Sequence[list[int]], logits: Tensor, rows: Sequence[GenerationRow], allowed: Any
    ) -> list[Chosen]:
        del allowed
        chosen = []
        for row, answer, scores in zip(rows, answers, logits.log_softmax(-1), strict=True):
            at = len(row.ids)
            if at < len(answer):
                losses.append(-scores[answer[at]].item())
            chosen.append(Chosen(answer[min(at, len(answer) - 1)]))
        return chosen

    for first in range(0, len(pairs), MOST_ROWS):
        prompts, answers = zip(*pairs[first : first + MOST_ROWS], strict=True)
        batch = GenerationBatch(model.module, partial(forced, answers))
        batch.begin([GenerationRow(list(prompt)) for prompt in prompts])
        for _ in range(max(map(len, answers)) - 1):
            batch.step()
    return statistics.mean(losses)


def asked_and_answered(model: LoadedModel, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
    said = [Message(one["role"], one["content"]) for one in messages]  # pyright: ignore[reportArgumentType]
    asked = prompt_ids(model.template.text(said[:-1], answer_next=True), model.tokenizer)
    return asked, [*model.tokenizer.encode(messages[-1]["content"]), model.template.end_ids[0]]


if __name__ == "__main__":
    main()
