"""Does the demo's adapter arrive in llama.cpp? Its 100 test rows, by llama-cpp-python and by rankwise in float32.

    python bench/arrival_llama.py RUN --base BASE.gguf --engine VENV/bin/python --to bench/results/arrival-llama.json

Exports are written with `rankwise export`: the merged model in several types, the adapter over the base's GGUF file as
it is, and the same file with the adapter merged into it. Answers are greedy, at most 64 tokens; an answer counts as the
same where all token ids are, with the end token. `log_probability_difference` is the mean absolute difference over the
tokens of rankwise's answers. All 100 prompts are compared by token ids.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import rankwise.exporting.drivers.llama_cpp_driver as driver
from rankwise.commands.demo import LONGEST_ANSWER, demo_rows
from rankwise.commands.export import export
from rankwise.inference.generate import asking_ids
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.methods.registry import method_of
from rankwise.text.example import Message

TOGETHER = 10
WAYS: dict[str, dict[str, Any]] = {
    "gguf float32": {"format": "gguf", "dtype": "float32"},
    "gguf float16": {"format": "gguf", "dtype": "float16"},
    "gguf q8_0": {"format": "gguf", "dtype": "q8_0"},
    "gguf-lora over the base file": {"format": "gguf-lora", "base_model": True},
    "gguf from the base file": {"format": "gguf", "base_model": True},
}


def tuned_model(name: str) -> TunedModel:
    artifact = open_artifact(name)
    spec = method_of(artifact.config).model_of(artifact)
    return load_tuned(artifact, spec=spec.model_copy(update={"dtype": "float32", "device": "cpu"}))


def questions(tuned: TunedModel) -> tuple[list[dict[str, Any]], list[str]]:
    """The test rows as a driver receives them, with our answers, and the right answers."""
    conversations = [[Message(**one) for one in json.loads(line)["messages"]] for line in demo_rows()[1]]
    model = tuned.model
    prompts = [asking_ids(model, one[:-1]) for one in conversations]
    answers: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for begin in range(0, len(order), TOGETHER):
        part = order[begin : begin + TOGETHER]
        answers |= zip(part, greedy(tuned, [prompts[at] for at in part]), strict=True)
    asked = [
        {"prompt": model.template.text(one[:-1], answer_next=True), "prompt_ids": prompts[at],
         "answer_ids": answers[at], "max_new_tokens": LONGEST_ANSWER}
        for at, one in enumerate(conversations)
    ]  # fmt: skip
    return asked, [one[-1].content for one in conversations]


@torch.inference_mode()
def greedy(tuned: TunedModel, prompts: list[list[int]]) -> list[list[int]]:
    from transformers import GenerationConfig

    module: Any = tuned.model.module
    ends = tuned.model.template.end_ids
    width = max(map(len, prompts))
    settings = GenerationConfig(
        max_new_tokens=LONGEST_ANSWER, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0]
    )
    ids = module.generate(
        input_ids=torch.tensor([[ends[0]] * (width - len(row)) + row for row in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts]),
        generation_config=settings,
    )
    rows = ids[:, width:].tolist()
    return [row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))] for row in rows]


@torch.inference_mode()
def log_probabilities(tuned: TunedModel, one: dict[str, Any]) -> list[float]:
    prompt, answer = one["prompt_ids"], one["answer_ids"]
    logits = tuned.model.module(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


def arrived(engine: str, request: dict[str, Any], ours: list[list[float]], right: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(
        [engine, "-E", "-s", str(Path(driver.__file__))], input=json.dumps(request), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    reply = json.loads(done.stdout)
    if "error" in reply:
        raise SystemExit(f"{request['export']}: {reply['error']}")
    pairs = list(zip(request["questions"], reply["replies"], strict=True))
    differences = [
        abs(one - other)
        for our, (_, their) in zip(ours, pairs, strict=True)
        for one, other in zip(our, their["log_probabilities"], strict=True)
    ]
    return {
        "rows": len(pairs),
        "same_prompt_ids": sum(one["prompt_ids"] == their["prompt_ids"] for one, their in pairs),
        "same_answers": sum(one["answer_ids"] == their["answer_ids"] for one, their in pairs),
        "right_answers": sum(
            their["answer"].strip() == wanted for (_, their), wanted in zip(pairs, right, strict=True)
        ),
        "log_probability_difference": statistics.fmean(differences),
        "largest_log_probability_difference": max(differences),
        "engine": f"{reply['engine']} {reply['version']}",
        "seconds": round(time.perf_counter() - began, 1),
    }


def reference(run: str, file: Path) -> dict[str, Any]:
    """Our answers, which take minutes, stored in `file` for the next time."""
    if not file.is_file():
        tuned = tuned_model(run)
        asked, right = questions(tuned)
        file.write_text(json.dumps({
            "questions": asked, "right": right, "log_probabilities": [log_probabilities(tuned, one) for one in asked],
            "answers": [tuned.model.tokenizer.readable(one["answer_ids"]).strip() for one in asked],
        }))  # fmt: skip
    return json.loads(file.read_text())


def measured(run: str, base: Path, engine: str, ours: dict[str, Any], threads: int) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    right = ours["right"]
    results: dict[str, Any] = {
        "run": Path(run).name, "base_file": base.name, "threads": threads,
        "right_answers_of_rankwise": sum(one == wanted for one, wanted in zip(ours["answers"], right, strict=True)),
        "ways": ways,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for at, (name, settings) in enumerate(WAYS.items()):
            options = dict(settings)
            over = options.pop("base_model", False)
            exported = export(run, Path(folder) / f"{at}.gguf", base_model=str(base) if over else None, **options)
            request = {
                "export": exported.to, "base": str(base), "format": exported.format, "questions": ours["questions"],
                "threads": threads,
            }  # fmt: skip
            ways[name] = {"bytes": exported.bytes, **arrived(engine, request, ours["log_probabilities"], right)}
            print(f"{name}: {json.dumps(ways[name])}", flush=True)
            Path(exported.to).unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--base", type=Path, required=True, help="the GGUF file of the base model")
    parser.add_argument("--engine", required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--reference", type=Path, default=Path("arrival-reference.json"), help="our own answers")
    given = parser.parse_args()
    results = measured(given.run, given.base, given.engine, reference(given.run, given.reference), given.threads)
    given.to.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
