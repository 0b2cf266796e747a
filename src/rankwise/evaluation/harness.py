"""Tasks of lm-eval, if it is installed (`pip install rankwise[lm-eval]`): lm-eval scores items, rankwise compares
models.

`lm-eval:NAME` selects one of its built-in tasks. lm-eval returns the score of each item, so intervals and comparisons
work as for every other task. Its tasks may download data from the hub, so they run only when named. A user's task file
is not passed on: lm-eval renders its contents as jinja2 templates without a sandbox, and so would run code from the
file. Our own task files (config/tasks.py) can express the same and run nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.config.tasks import OF_LM_EVAL
from rankwise.errors import ConfigError, EvaluationError, ResourceError, did_you_mean, first_line, is_out_of_memory
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.metrics import means
from rankwise.evaluation.task import WithoutAnswers
from rankwise.runs.evaluations import ModelScores, Scores
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.extras import installs

PREFIX = "lm-eval:"
KNOWN = {"acc_norm": "accuracy", "acc": "accuracy_unnormalised", "exact_match": "exact"}
"""lm-eval's names and ours, for metrics that are means over items."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
FILES = (".yaml", ".yml")
ASKED_TOGETHER = 16
"""Documents in a batch; the logits of all of them are in memory."""
LoggedSample = Mapping[str, Any]
"""What lm-eval logs for one item."""


@dataclass
class HarnessTask(WithoutAnswers):
    task_name: str
    rows: int | None
    batch_size: int
    left_out: int = 0
    _hashes: list[str] = field(default_factory=list)
    _filter: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.task_name) or self.task_name.lower().endswith(FILES):
            raise ConfigError(
                [
                    f'"{PREFIX}{self.task_name}": tasks of lm-eval can only be given by name, because their task '
                    "files can "
                    "run code. Write a rankwise task file instead (task, data, ask, score; docs/evaluation.md): "
                    "--task FILE.yaml"
                ]
            )

    @property
    def name(self) -> str:
        """Name in results, distinct from rankwise's own tasks."""
        return f"{OF_LM_EVAL}{self.task_name}"

    @property
    def data(self) -> str:
        return f"{PREFIX}{self.task_name}"

    @property
    def settings(self) -> dict[str, Any]:
        from importlib.metadata import version

        rows = {"rows": self.rows} if self.rows else {}
        return {"lm-eval": version("lm_eval"), **rows, **({"filter": self._filter} if self._filter else {})}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        callback(StatusMessage(f"lm-eval runs {self.task_name}, {who}"))
        began = time.perf_counter()
        found = self.scored(self._samples(model))
        return ModelScores(scores=found, seconds=time.perf_counter() - began)

    def _samples(self, model: LoadedModel) -> Mapping[str, Sequence[LoggedSample]]:
        """Run the task in lm-eval and return its logged samples by task."""
        evaluate, wrap, manager = _harness(self.task_name)
        if self.task_name not in manager.all_tasks:
            raise ConfigError(
                [f'lm-eval has no task "{self.task_name}".{did_you_mean(self.task_name, manager.all_tasks)}']
            )
        try:
            harness = wrap(pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=self.batch_size)
            return evaluate(
                model=harness, tasks=[self.task_name], task_manager=manager, limit=self.rows, bootstrap_iters=0,
                log_samples=True, verbosity="ERROR",
            )["samples"]  # fmt: skip
        except Exception as error:  # tasks raise errors of any kind
            raise self._explained(error) from None

    def scored(self, samples: Mapping[str, Sequence[LoggedSample]]) -> dict[str, Scores]:
        """Turn logged samples into scores, and remember their hashes for `facts`."""
        found = self._first_way(samples.get(self.task_name, ()))
        self._hashes = list(map(_identity, found))
        metrics = [name for name in KNOWN if name in found[0]["metrics"]]
        if not metrics:
            raise EvaluationError(
                f'the task "{self.task_name}" scores {", ".join(found[0]["metrics"])}; of lm-eval\'s metrics '
                f"rankwise supports {', '.join(KNOWN)}, which are means over items."
            )
        return {KNOWN[metric]: scores(KNOWN[metric], means(one[metric] for one in found)) for metric in metrics}

    def _first_way(self, samples: Sequence[LoggedSample]) -> list[LoggedSample]:
        """Return one sample per item. If lm-eval filters answers in several ways, the first filter counts."""
        if not samples:
            raise EvaluationError(f'"{self.task_name}" is a group of lm-eval tasks; name one task of the group.')
        self._filter = str(samples[0].get("filter", ""))
        return sorted(
            (one for one in samples if str(one.get("filter", "")) == self._filter), key=lambda item: item["doc_id"]
        )

    def _explained(self, error: Exception) -> Exception:
        if is_out_of_memory(error):
            return ResourceError(
                f'out of memory while lm-eval runs "{self.task_name}" with {self.batch_size} answers at once. Lower '
                "--batch-size."
            )
        return EvaluationError(f'lm-eval cannot run the task "{self.task_name}": {first_line(error)}')

    def facts(self) -> tuple[int, str]:
        return len(self._hashes), sha256("\n".join(self._hashes).encode()).hexdigest()


def _identity(sample: LoggedSample) -> str:
    """Identify an item by its row, its target and everything that the model was given; `prompt_hash` only covers the
    prompt of the first choice."""
    given = sha256(json.dumps(sample["arguments"], default=str).encode()).hexdigest()
    return f"{sample['doc_hash']} {sample['target_hash']} {sample['prompt_hash']} {given}"


def _harness(task_name: str) -> tuple[Any, Any, Any]:
    try:
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError([f"{PREFIX}{task_name} needs lm-eval: {installs('lm-eval')}."]) from None
    return simple_evaluate, HFLM, TaskManager()
