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

from rankwise.commands.demo import LONGEST_ANSWER, demo_rows
from rankwise.commands.export import export
from rankwise.exporting.engine_process import CHILD
from rankwise.exporting.engines import llama_cpp
from rankwise.inference.generate import asking_ids
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.rows.text.example import Message

WAYS: dict[str, dict[str, Any]] = {
    "gguf float32": {"format": "gguf", "dtype": "float32"},
    "gguf float16": {"format": "gguf", "dtype": "float16"},
    "gguf q8_0": {"format": "gguf", "dtype": "q8_0"},
    "gguf-lora over the base file": {"format": "gguf-lora", "base_model": True},
    "gguf from the base file": {"format": "gguf", "base_model": True},
}


def tuned_model(name: str) -> TunedModel:
    artifact = open_artifact(name)
    spec = artifact.model
    return load_tuned(artifact, config=spec.model_copy(update={"dtype": "float32", "device": "cpu"}))


def questions(tuned: TunedModel) -> tuple[list[dict[str, Any]], list[list[float]], list[str]]:
    """The test rows as an engine receives them with our answers, their log-probabilities, and the right answers."""
    conversations = [[Message(**one) for one in json.loads(line)["messages"]] for line in demo_rows()[1]]
    model = tuned.model
    asked, ours = [], []
    for one in conversations:
        prompt = asking_ids(model, one[:-1])
        answer, values = greedy(tuned, prompt, [*model.tokenizer.encode(one[-1].content), model.template.end_ids[0]])
        ours.append(values)
        asked.append({
            "prompt": model.template.text(one[:-1], answer_next=True), "prompt_ids": prompt, "answer_ids": answer,
            "max_new_tokens": LONGEST_ANSWER,
        })  # fmt: skip
        print(f"{len(asked)} of {len(conversations)} rows", flush=True)
    return asked, ours, [one[-1].content for one in conversations]


@torch.inference_mode()
def greedy(tuned: TunedModel, prompt: list[int], draft: list[int]) -> tuple[list[int], list[float]]:
    """Our greedy answer and the log-probabilities of its tokens. The draft is read in one pass; as far as its tokens
    are the likeliest, they are the answer. From there on it is decoded, and what was decoded is the next draft."""
    ends = tuned.model.template.end_ids
    while True:
        values = log_probabilities(tuned, prompt, draft)
        likeliest = values.argmax(-1).tolist()
        shared = next((at for at, token in enumerate(draft) if likeliest[at] != token), len(draft))
        if shared == len(draft) and (draft[-1] in ends or len(draft) == LONGEST_ANSWER):
            return draft, values.gather(1, torch.tensor(draft)[:, None])[:, 0].tolist()
        begun = [*draft[:shared], likeliest[shared]] if shared < len(draft) else draft
        draft = begun if begun[-1] in ends else begun + decoded(tuned, prompt + begun, LONGEST_ANSWER - len(begun))


def decoded(tuned: TunedModel, ids: list[int], room: int) -> list[int]:
    from transformers import GenerationConfig

    if room <= 0:
        return []
    ends = tuned.model.template.end_ids
    settings = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0])
    module: Any = tuned.model.module
    return module.generate(input_ids=torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()


def log_probabilities(tuned: TunedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of all tokens at each place of the answer (A, V)."""
    logits = tuned.model.module(input_ids=torch.tensor([prompt + answer])).logits
    return logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def arrived(engine: str, request: dict[str, Any], ours: list[list[float]]) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(
        [engine, "-E", "-s", str(CHILD), llama_cpp.__name__], input=json.dumps(request), capture_output=True, text=True,
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
        "log_probability_difference": statistics.fmean(differences),
        "largest_log_probability_difference": max(differences),
        "engine": f"{reply['engine']} {reply['version']}",
        "seconds": round(time.perf_counter() - began, 1),
    }


def reference(run: str, file: Path) -> dict[str, Any]:
    """Our answers, which take minutes, stored in `file` for the next time."""
    if not file.is_file():
        tuned = tuned_model(run)
        asked, ours, right = questions(tuned)
        file.write_text(json.dumps({
            "questions": asked, "right": right, "log_probabilities": ours,
            "answers": [tuned.model.tokenizer.readable(one["answer_ids"]).strip() for one in asked],
        }), encoding="utf-8")  # fmt: skip
    return json.loads(file.read_text(encoding="utf-8"))


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
            ways[name] = {"bytes": exported.bytes, **arrived(engine, request, ours["log_probabilities"])}
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
