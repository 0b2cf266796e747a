"""Our multiple-choice accuracy and perplexity against lm-eval's, item by item, on the same rows and the same model.

    python bench/lm_eval_parity.py [--json] [--rows 150] [--tasks arc_easy,piqa,…] [--out bench/results/TITLE]

Both get SmolLM2-135M in float32. lm-eval reads the rows itself, by a task file written here with its own words for the
same question, and applies its own normaliser (acc_norm). Where the two choose differently it is a tie if our two best
choices differ by less than 1e-4 nats a character. Perplexity is that of windows of 1,024 tokens over the beginning of
wikitext-2. Needs lm-eval (the extra `bench`) and the data sets at RANKWISE_DATA.
"""

from __future__ import annotations

import argparse
import os
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from telling import parser_of, tell

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import BUILT_IN, task_named
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.requests import Request, requests_of

WORDS = {  # how lm-eval is asked to put it: question, choices, the right one
    "arc_easy": ("{{query}}\\nAnswer:", "choices", "gold"),
    "arc_challenge": ("{{query}}\\nAnswer:", "choices", "gold"),
    "boolq": ("{{query}}\\nAnswer:", "choices", "gold"),
    "hellaswag": ("{{ctx}}", "endings", "label"),
    "openbookqa": ("{{query}}", "choices", "gold"),
    "piqa": ("{{query}}Answer:", "choices", "gold"),
}
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{ask}"
doc_to_choice: "{{{{{choices}}}}}"
doc_to_target: "{{{{{right}}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TIE = 1e-4


def compared(name: str, rows: int, model: LoadedModel, folder: Path) -> dict[str, Any]:
    file, task = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    with (Path(os.environ["RANKWISE_DATA"]) / BUILT_IN[name]["data"]).open(encoding="utf-8") as lines:
        file.write_text("".join(islice(lines, rows)), encoding="utf-8")
    ask, choices, right = WORDS[name]
    task.write_text(TASK.format(name=name, rows=file, ask=ask, choices=choices, right=right), encoding="utf-8")
    theirs = samples_of_lm_eval(name, folder, model)
    items = requests_of(task_named(name, str(file)), model).requests
    flat = iter(likelihoods(model.module, [one for item in items for one in item.documents]))
    nats = [[next(flat).nats for _ in item.documents] for item in items]
    found: dict[str, Any] = {"task": name, "n": len(items)}
    for metric, sizes in (("acc_norm", [item.sizes for item in items]), ("acc", [(1,) * len(one) for one in nats])):
        hits = [_pick(own, each) == item.right for own, each, item in zip(nats, sizes, items, strict=True)]
        others = [bool(sample[metric]) for sample in theirs]
        differing = [at for at, (a, b) in enumerate(zip(hits, others, strict=True)) if a != b]
        found |= {
            metric: float(np.mean(hits)),
            f"{metric}_of_lm_eval": float(np.mean(others)),
            f"{metric}_differing": len(differing),
            f"{metric}_ties_among_them": sum(_margin(nats[at], sizes[at], items[at]) < TIE for at in differing),
        }
    return found


def samples_of_lm_eval(name: str, folder: Path, model: LoadedModel) -> list[dict[str, Any]]:
    """Of the task file that was written into the folder, item by item."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found: Any = simple_evaluate(
        model=HFLM(pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=8),  # pyright: ignore[reportArgumentType]
        tasks=[name], task_manager=TaskManager(include_path=str(folder), include_defaults=False), bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    return sorted(found["samples"][name], key=lambda one: one["doc_id"])


def _pick(nats: list[float], sizes: tuple[int, ...]) -> int:
    return int(np.argmin([one / size for one, size in zip(nats, sizes, strict=True)]))


def _margin(nats: list[float], sizes: tuple[int, ...], item: Request) -> float:
    """Nats a character, between the two best."""
    best, second = sorted(one / size for one, size in zip(nats, sizes, strict=True))[:2]
    return (second - best) / (1 if sizes == item.sizes else min(item.sizes))


def perplexities(blocks: int, model: LoadedModel) -> dict[str, Any]:
    """Of the same tokens: the harness cuts the text of the blocks into windows of their size itself."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model.module, tokenizer=model.tokenizer.hub, max_length=1024)  # pyright: ignore[reportArgumentType]
    items = requests_of(task_named("wikitext"), model).requests[:blocks]
    found = likelihoods(model.module, [item.documents[0] for item in items])
    text = model.tokenizer.decode([token for item in items for token in item.documents[0].ids[1:]])
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("t", 0, 1))
    (nats,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    tokens, ours = sum(one.tokens for one in found), sum(one.nats for one in found)
    return {
        "task": "wikitext",
        "n": tokens,
        "perplexity": float(np.exp(ours / tokens)),
        "perplexity_of_lm_eval": float(np.exp(-nats / tokens)),
        "difference_nats_per_token": abs(ours + nats) / tokens,
    }


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    model = load(ModelConfig(name="smollm2-135m", dtype="float32"))
    with TemporaryDirectory() as folder:
        os.environ.setdefault("HF_DATASETS_CACHE", f"{folder}/hub")
        found = [compared(task, options.rows, model, Path(folder)) for task in options.tasks.split(",")]
    return [*found, perplexities(8, model)]


def show(found: dict[str, Any]) -> None:
    for row in found["tasks"]:
        print(
            "  ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--tasks", default=",".join(WORDS))
    options = parser.parse_args()
    tell(options, {"tasks": measured(options)}, show)


if __name__ == "__main__":
    main()
