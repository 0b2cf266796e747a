"""A task of lm-eval, where that is installed (`pip install rankwise[lm-eval]`): asked and scored by it, judged by us.

Named `lm-eval:NAME`, for one of its own. It hands over what each item scored, so intervals and comparisons are those of
every other task. Its tasks may fetch their data from the hub, which is why one has to be asked for by name. A file of a
user's is not handed over: lm-eval renders whatever stands in it as a jinja2 template outside of any sandbox, and so
runs any code of whoever wrote the file. Our own task files (config/tasks.py) ask the same questions and run nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from rankwise.config.tasks import OF_LM_EVAL
from rankwise.errors import ConfigError, EvaluationError, ResourceError, did_you_mean, first_line, is_out_of_memory
from rankwise.evaluation.intervals import scores
from rankwise.models.loaded import LoadedModel
from rankwise.runs.evaluations import Sample, Scores, Side
from rankwise.runs.records import Callback, StatusMessage

PREFIX = "lm-eval:"
KNOWN = {"acc_norm": "accuracy", "acc": "accuracy_unnormalised", "exact_match": "exact"}
"""Its names and ours, for metrics that are a mean over items."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
FILES = (".yaml", ".yml")
ASKED_TOGETHER = 16
"""Documents, whose logits are all kept."""
Found = Mapping[str, Any]
"""What lm-eval keeps of one item."""


@dataclass
class HarnessTask:
    asked: str
    rows: int | None
    together: int
    left_out: int = 0
    _hashes: list[str] = field(default_factory=list)
    _filter: str = ""
    labels: tuple[tuple[str, int], ...] = ()
    """Its tasks name their choices."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.asked) or self.asked.lower().endswith(FILES):
            raise ConfigError(
                [
                    f'"{PREFIX}{self.asked}": a task of lm-eval is asked for by its name alone, for in a file of its '
                    "kind anything would be run as code. Write it as a task file of ours (task, data, ask, score; "
                    "docs/evaluation.md) and give that: --task FILE.yaml"
                ]
            )

    @property
    def name(self) -> str:
        """Beside our own tasks of the same name."""
        return f"{OF_LM_EVAL}{self.asked}"

    @property
    def data(self) -> str:
        return f"{PREFIX}{self.asked}"

    @property
    def settings(self) -> dict[str, Any]:
        from importlib.metadata import version

        rows = {"rows": self.rows} if self.rows else {}
        return {"lm-eval": version("lm_eval"), **rows, **({"filter": self._filter} if self._filter else {})}

    @property
    def identity(self) -> None:
        """What it asks stands in lm-eval."""

    def side(self, model: LoadedModel, who: str, callback: Callback) -> Side:
        callback(StatusMessage(f"lm-eval asks {self.asked}, {who}"))
        began = time.perf_counter()
        found = self.scored(self._samples(model))
        return Side(scores=found, seconds=time.perf_counter() - began)

    def _samples(self, model: LoadedModel) -> Mapping[str, Sequence[Found]]:
        """By task."""
        evaluate, wrap, manager = _harness(self.asked)
        if self.asked not in manager.all_tasks:
            raise ConfigError([f'lm-eval has no task "{self.asked}".{did_you_mean(self.asked, manager.all_tasks)}'])
        try:
            harness = wrap(pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=self.together)
            return evaluate(
                model=harness, tasks=[self.asked], task_manager=manager, limit=self.rows, bootstrap_iters=0,
                log_samples=True, verbosity="ERROR",
            )["samples"]  # fmt: skip
        except Exception as error:  # as many kinds as there are tasks
            raise self._told(error) from None

    def scored(self, samples: Mapping[str, Sequence[Found]]) -> dict[str, Scores]:
        """Of what lm-eval kept of each item, which then says what was asked (`facts`)."""
        found = self._first_way(samples.get(self.asked, ()))
        self._hashes = list(map(_identity, found))
        metrics = [name for name in KNOWN if name in found[0]["metrics"]]
        if not metrics:
            raise EvaluationError(
                f'the task "{self.asked}" scores {", ".join(found[0]["metrics"])}; of lm-eval\'s metrics '
                f"{', '.join(KNOWN)} can be taken over, which are means over items."
            )
        return {
            KNOWN[metric]: scores(KNOWN[metric], [[float(one[metric]), 1.0] for one in found]) for metric in metrics
        }

    def _first_way(self, samples: Sequence[Found]) -> list[Found]:
        """One for each item. Where answers are filtered in several ways there is one for each way: the first counts."""
        if not samples:
            raise EvaluationError(f'"{self.asked}" is a group of lm-eval\'s tasks; name one of them.')
        self._filter = str(samples[0].get("filter", ""))
        return sorted(
            (one for one in samples if str(one.get("filter", "")) == self._filter), key=lambda one: one["doc_id"]
        )

    def _told(self, error: Exception) -> Exception:
        if is_out_of_memory(error):
            return ResourceError(
                f'out of memory while lm-eval asks "{self.asked}", {self.together} at once. Lower --batch-size.'
            )
        return EvaluationError(f'lm-eval cannot run the task "{self.asked}": {first_line(error)}')

    def facts(self) -> tuple[int, str]:
        return len(self._hashes), sha256("\n".join(self._hashes).encode()).hexdigest()

    def samples(self, tuned: Side, base: Side | None) -> list[Sample]:
        return []


def _identity(one: Found) -> str:
    """Of an item: its row, what is wanted, and all that the model was given. `prompt_hash` is of the first choice's
    prompt alone."""
    given = sha256(json.dumps(one["arguments"], default=str).encode()).hexdigest()
    return f"{one['doc_hash']} {one['target_hash']} {one['prompt_hash']} {given}"


def _harness(asked: str) -> tuple[Any, Any, Any]:
    try:
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError([f"{PREFIX}{asked} needs lm-eval: pip install 'rankwise[lm-eval]'."]) from None
    return simple_evaluate, HFLM, TaskManager()
