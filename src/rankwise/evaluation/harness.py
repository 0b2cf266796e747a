"""A task of lm-eval, where that is installed (`pip install rankwise[lm-eval]`): asked and scored by it, judged by us.

Named `lm-eval:NAME` for one that it knows, or `lm-eval:FILE.yaml` for one of the user's own. It hands over what each
item scored, so intervals and comparisons are those of every other task. Its own tasks may fetch their data from the
hub, which is why one has to be asked for by name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from rankwise.errors import EvaluationError, SpecError, first_line
from rankwise.evaluation.intervals import scores
from rankwise.models.loaded import LoadedModel
from rankwise.run.evaluations import Sample, Side
from rankwise.run.records import Announce, Said

PREFIX = "lm-eval:"
KNOWN = {"acc_norm": "accuracy", "acc": "accuracy_unnormalised", "exact_match": "exact"}
"""Its names and ours, for metrics that are a mean over items."""


@dataclass
class HarnessTask:
    asked: str
    rows: int | None
    together: int
    _hashes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return Path(self.asked).stem

    @property
    def data(self) -> str:
        return f"{PREFIX}{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"lm-eval": version("lm_eval"), **({"rows": self.rows} if self.rows else {})}

    def side(self, model: LoadedModel, who: str, announce: Announce) -> Side:
        announce(Said(f"lm-eval asks {self.name}, {who}"))
        began = time.perf_counter()
        found = self._samples(model)
        self._hashes = [f"{one['doc_hash']} {one['target_hash']}" for one in found]
        metrics = [name for name in found[0]["metrics"] if name in KNOWN]
        if not metrics:
            raise EvaluationError(
                f'the task "{self.name}" scores {", ".join(found[0]["metrics"])}; of lm-eval\'s metrics '
                f"{', '.join(KNOWN)} can be taken over, which are means over items."
            )
        rows = {KNOWN[name]: [[float(one[name]), 1.0] for one in found] for name in metrics}
        return Side(
            scores={metric: scores(metric, each) for metric, each in rows.items()}, seconds=time.perf_counter() - began
        )

    def _samples(self, model: LoadedModel) -> list[dict[str, Any]]:
        evaluate, wrap, manager = _harness(self.asked)
        harness = wrap(pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=self.together)
        try:
            found = evaluate(
                model=harness, tasks=[self.name], task_manager=manager, limit=self.rows, bootstrap_iters=0,
                log_samples=True, verbosity="ERROR",
            )  # fmt: skip
        except Exception as error:  # as many kinds as there are tasks
            raise EvaluationError(f'lm-eval cannot run the task "{self.name}": {first_line(error)}') from None
        samples = found["samples"].get(self.name)
        if not samples:
            raise EvaluationError(f'"{self.name}" is a group of lm-eval\'s tasks; name one of them.')
        return sorted(samples, key=lambda one: one["doc_id"])

    def facts(self) -> tuple[int, str]:
        return len(self._hashes), sha256("\n".join(self._hashes).encode()).hexdigest()

    def samples(self, tuned: Side, base: Side | None) -> list[Sample]:
        return []


def _harness(asked: str) -> tuple[Any, Any, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise SpecError([f"{PREFIX}{asked} needs lm-eval: pip install 'rankwise[lm-eval]'."]) from None
    own = Path(asked)
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise SpecError([f"{asked}: there is no such file."])
        _refuse_code(own)
        return simple_evaluate, HFLM, TaskManager(include_path=str(own.parent), include_defaults=False)
    return simple_evaluate, HFLM, TaskManager()


def _refuse_code(file: Path) -> None:
    """lm-eval would run Python that a task's file names."""
    text = file.read_text(encoding="utf-8")
    if "!function" in text or "unsafe_code" in text:
        raise SpecError([f"{file}: names Python code to be run (!function); nothing that a task holds is run."])
