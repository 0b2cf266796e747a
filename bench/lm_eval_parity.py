"""Our multiple-choice accuracy and perplexity against lm-eval's, item by item, on the same rows and the same model.

    python bench/lm_eval_parity.py [--json] [--rows 200] [--tasks arc_easy,piqa,…] [--out bench/results/TITLE]

Both get SmolLM2-135M in float32. A choice that differs is looked at: it is a tie where the two best scores of ours
differ by less than 1e-4 nats a character. Perplexity is that of rolling windows over wikitext-2, as many blocks.
Needs `pip install lm-eval` (the extra `bench`) and the data sets at RANKWISE_DATA.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from telling import parser_of, tell

from rankwise.evaluation.items import Item, items_of
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.models.loaded import LoadedModel
from rankwise.models.loading import load
from rankwise.run.records import silent
from rankwise.spec.models import ModelSpec
from rankwise.spec.tasks import task_named

TASKS = "arc_easy,arc_challenge,hellaswag,openbookqa,piqa,boolq"
TIE = 1e-4


def theirs_of(harness: Any, tokenizer: Any, items: Sequence[Item]) -> list[list[float]]:
    """By the harness's own request of a context and its continuation."""
    from lm_eval.api.instance import Instance

    requests = []
    for at, item in enumerate(items):
        for number, document in enumerate(item.documents):
            learned = np.asarray(document.learned)
            cut = int(np.argmax(learned))
            ids = list(document.ids)
            pair = (tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:]))
            requests.append(
                Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number, metadata=("t", at, 1))
            )
    found = iter(harness.loglikelihood(requests, disable_tqdm=True))
    return [[-next(found)[0] for _ in item.documents] for item in items]


def picks(nats: Sequence[Sequence[float]], items: Sequence[Item]) -> list[int]:
    return [
        int(np.argmin([one / size for one, size in zip(own, item.sizes, strict=True)]))
        for own, item in zip(nats, items, strict=True)
    ]


def margin(own: Sequence[float], item: Item) -> float:
    best, second = sorted(one / size for one, size in zip(own, item.sizes, strict=True))[:2]
    return second - best


def compared(task: str, rows: int, model: LoadedModel, harness: Any) -> dict[str, Any]:
    items = items_of(task_named(task, rows=rows), model).items
    flat = iter(likelihoods(model.module, [one for item in items for one in item.documents]))
    ours = [[next(flat).nats for _ in item.documents] for item in items]
    theirs = theirs_of(harness, model.tokenizer.hub, items)
    mine, others = picks(ours, items), picks(theirs, items)
    differing = [at for at, (a, b) in enumerate(zip(mine, others, strict=True)) if a != b]
    right = [item.right for item in items]
    return {
        "task": task,
        "n": len(items),
        "accuracy": float(np.mean(np.equal(mine, right))),
        "lm_eval": float(np.mean(np.equal(others, right))),
        "differing": len(differing),
        "ties_among_them": sum(margin(ours[at], items[at]) < TIE for at in differing),
        "largest_difference_nats": max(
            abs(a - b) for own, other in zip(ours, theirs, strict=True) for a, b in zip(own, other, strict=True)
        ),
    }


def perplexities(blocks: int, model: LoadedModel, harness: Any) -> dict[str, Any]:
    """Of the same tokens: the harness cuts the text of the blocks into windows of their size itself."""
    from lm_eval.api.instance import Instance

    items = items_of(task_named("wikitext", rows=blocks), model).items
    found: list[Likelihood] = likelihoods(model.module, [item.documents[0] for item in items])
    text = model.tokenizer.decode([token for item in items for token in item.documents[0].ids[1:]])
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("t", 0, 1))
    (nats,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    tokens = sum(one.tokens for one in found)
    ours = sum(one.nats for one in found)
    return {
        "task": "wikitext",
        "n": tokens,
        "perplexity": float(np.exp(ours / tokens)),
        "lm_eval": float(np.exp(-nats / tokens)),
        "largest_difference_nats": abs(ours + nats) / tokens,
    }


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    from lm_eval.models.huggingface import HFLM

    model = load(ModelSpec(name="smollm2-135m", dtype="float32"), silent)
    harness = HFLM(
        pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=8, max_length=1024, backend="causal"
    )
    found = [compared(task, options.rows, model, harness) for task in options.tasks.split(",")]
    return [*found, perplexities(8, model, harness)]


def show(found: dict[str, Any]) -> None:
    for row in found["tasks"]:
        print(
            "  ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tasks", default=TASKS)
    options = parser.parse_args()
    tell(options, {"tasks": measured(options)}, show)


if __name__ == "__main__":
    main()
