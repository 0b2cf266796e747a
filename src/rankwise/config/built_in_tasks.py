"""The tasks that are named instead of written: GLUE, questions with choices, running text, and questions to answer."""

from __future__ import annotations

from typing import Any


def _raw(file: str, ask: str, *, score: tuple[str, ...] = ("accuracy",), **more: Any) -> dict[str, Any]:
    return {"data": file, "ask": ask, "score": score, "chat": False, **more}


def _glue(file: str, ask: str, labels: tuple[str, ...], *score: str, **more: Any) -> dict[str, Any]:
    return {"data": f"glue/{file}", "ask": ask, "choices": labels, "score": score, **more}


BUILT_IN: dict[str, dict[str, Any]] = {
    "arc_easy": _raw("retention/arc_easy_test.jsonl", "{query}\nAnswer:", choices="choices"),
    "arc_challenge": _raw("retention/arc_challenge_test.jsonl", "{query}\nAnswer:", choices="choices"),
    "boolq": _raw("retention/boolq_val.jsonl", "{query}\nAnswer:", choices="choices"),
    "hellaswag": _raw("retention/hellaswag_val.jsonl", "{ctx}", choices="endings", answer="{label}"),
    "mmlu": _raw("retention/mmlu_test.jsonl", "{question}", choices="choices", lettered=True),
    "openbookqa": _raw("retention/openbookqa_test.jsonl", "{query}", choices="choices"),
    "piqa": _raw("retention/piqa_val.jsonl", "{query}Answer:", choices="choices"),
    "winogrande": _raw("retention/winogrande_val.jsonl", "{context_options}", answer="{continuation}"),
    "lambada": _raw(
        "retention/lambada_openai_test.jsonl", "{context}", answer="{continuation}", score=("loss",)
    ),
    "humaneval": _raw(
        "retention/humaneval.jsonl", "{prompt}", answer="{canonical_solution}", score=("loss",)
    ),
    "truthfulqa": _raw(
        "retention/truthfulqa.jsonl", "Q: {Question}\nA:", choices="{Best Answer}; {Incorrect Answers}"
    ),
    "wikitext": {"data": "retention/wikitext-2/valid.txt", "score": ("loss",)},
    "svamp": {
        "data": "retention/svamp.jsonl", "ask": "{context}", "answer": "{answer}", "score": ("number",),
    },
    "gsm8k": {"data": "gsm8k/test.jsonl", "score": ("number",), "max_new_tokens": 256},
    "cola": _glue(
        "CoLA/dev.tsv", 'Is this sentence grammatical? Answer yes or no.\n"{sentence}"', ("no", "yes"),
        "matthews", "accuracy", header=("source", "label", "mark", "sentence"), answer="{label}",
    ),
    "sst2": _glue(
        "SST-2/dev.tsv", "Is the feeling of this review negative or positive?\n{sentence}", ("negative", "positive"),
        "accuracy", answer="{label}",
    ),
    "rte": _glue(
        "RTE/dev.tsv", "{sentence1}\nDoes this follow from it? {sentence2}", ("entailment", "not_entailment"),
        "accuracy", "f1", answer="{label}",
    ),
    "qnli": _glue(
        "QNLI/dev_0_2999.tsv", "{question}\nDoes this text answer the question? {sentence}",
        ("entailment", "not_entailment"), "accuracy", "f1", answer="{label}",
    ),
    "stsb": {
        "data": "glue/STS-B/dev.tsv", "score": ("pearson",), "answer": "{score}", "max_new_tokens": 8,
        "ask": "How alike are these sentences, from 0 (not at all) to 5 (the same)? Answer with a number.\n"
        "{sentence1}\n{sentence2}",
    },
}  # fmt: skip
