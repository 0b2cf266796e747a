"""A task of lm-eval, where that is installed (`pip install rankwise[lm-eval]`): asked and scored by it, judged by us.

Named `lm-eval:NAME` for one that it knows, or `lm-eval:FILE.yaml` for one of the user's own. It hands over what each
item scored, so intervals and comparisons are those of every other task. Its own tasks may fetch their data from the
hub, which is why one has to be asked for by name. Of a user's file it gets the plain values, written anew: no tag, no
other file, and nothing that would have Python code fetched or run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankwise.errors import EvaluationError, ResourceError, SpecError, first_line, is_out_of_memory
from rankwise.evaluation.intervals import scores
from rankwise.models.loaded import LoadedModel
from rankwise.run.evaluations import Sample, Side
from rankwise.run.records import Announce, Said
from rankwise.spec.reading import read_values

PREFIX = "lm-eval:"
KNOWN = {"acc_norm": "accuracy", "acc": "accuracy_unnormalised", "exact_match": "exact"}
"""Its names and ours, for metrics that are a mean over items. One it does not know it would fetch, as code."""
OF_CODE = ("include", "unsafe_code", "hf_evaluate", "use_prompt", "trust_remote_code", "class")
"""Settings by which a file reaches other files, or code."""
PICKLED = ("pandas", "webdataset")
"""Kinds of data that may hold code."""


@dataclass
class HarnessTask:
    asked: str
    rows: int | None
    together: int
    left_out: int = 0
    _hashes: list[str] = field(default_factory=list)
    _filter: str = ""

    @property
    def name(self) -> str:
        """Beside our own tasks of the same name."""
        return f"lm-eval-{self._theirs}"

    @property
    def _theirs(self) -> str:
        return Path(self.asked).stem if _is_file(self.asked) else Path(self.asked).name

    @property
    def data(self) -> str:
        return f"{PREFIX}{self._theirs}"

    @property
    def settings(self) -> dict[str, Any]:
        from importlib.metadata import version

        rows = {"rows": self.rows} if self.rows else {}
        return {"lm-eval": version("lm_eval"), **rows, **({"filter": self._filter} if self._filter else {})}

    def side(self, model: LoadedModel, who: str, announce: Announce) -> Side:
        announce(Said(f"lm-eval asks {self._theirs}, {who}"))
        began = time.perf_counter()
        found = self._samples(model)
        self._hashes = [f"{one['doc_hash']} {one['target_hash']}" for one in found]
        metrics = [name for name in KNOWN if name in found[0]["metrics"]]
        if not metrics:
            raise EvaluationError(
                f'the task "{self._theirs}" scores {", ".join(found[0]["metrics"])}; of lm-eval\'s metrics '
                f"{', '.join(KNOWN)} can be taken over, which are means over items."
            )
        rows = {KNOWN[name]: [[float(one[name]), 1.0] for one in found] for name in metrics}
        return Side(
            scores={metric: scores(metric, each) for metric, each in rows.items()}, seconds=time.perf_counter() - began
        )

    def _samples(self, model: LoadedModel) -> list[dict[str, Any]]:
        """One for each item. Where answers are filtered in several ways there is one for each way: the first counts."""
        with _harness(self.asked) as (evaluate, wrap, manager):
            try:
                harness = wrap(pretrained=model.module, tokenizer=model.tokenizer.hub, batch_size=self.together)
                found = evaluate(
                    model=harness, tasks=[self._theirs], task_manager=manager, limit=self.rows, bootstrap_iters=0,
                    log_samples=True, verbosity="ERROR",
                )  # fmt: skip
            except Exception as error:  # as many kinds as there are tasks
                raise self._told(error) from None
        samples = found["samples"].get(self._theirs)
        if not samples:
            raise EvaluationError(f'"{self._theirs}" is a group of lm-eval\'s tasks; name one of them.')
        self._filter = str(samples[0].get("filter", ""))
        return sorted(
            (one for one in samples if str(one.get("filter", "")) == self._filter), key=lambda one: one["doc_id"]
        )

    def _told(self, error: Exception) -> Exception:
        if is_out_of_memory(error):
            return ResourceError(
                f'out of memory while lm-eval asks "{self._theirs}", {self.together} at once. Lower --batch-size.'
            )
        return EvaluationError(f'lm-eval cannot run the task "{self._theirs}": {first_line(error)}')

    def facts(self) -> tuple[int, str]:
        return len(self._hashes), sha256("\n".join(self._hashes).encode()).hexdigest()

    def samples(self, tuned: Side, base: Side | None) -> list[Sample]:
        return []


def _is_file(asked: str) -> bool:
    return Path(asked).suffix.lower() in (".yaml", ".yml")


@contextmanager
def _harness(asked: str) -> Iterator[tuple[Any, Any, Any]]:
    values = _plain_task(Path(asked)) if _is_file(asked) else None
    try:
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SpecError([f"{PREFIX}{asked} needs lm-eval: pip install 'rankwise[lm-eval]'."]) from None
    if values is None:
        yield simple_evaluate, HFLM, TaskManager()
        return
    with TemporaryDirectory() as folder:
        (Path(folder) / "task.yaml").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        yield simple_evaluate, HFLM, TaskManager(include_path=folder, include_defaults=False)


def _plain_task(file: Path) -> dict[str, Any]:
    """A user's task as plain values, with the file's name for its own."""
    if not file.is_file():
        raise SpecError([f"{file}: there is no such file."])
    values = read_values(file)
    problems = sorted(set(_of_code(values)))
    if problems:
        raise SpecError([f"{file}: {problem}; nothing that a task holds is run." for problem in problems])
    return {**values, "task": file.stem} if isinstance(values.get("task"), str) else values


def _of_code(value: Any) -> Iterator[str]:
    """What of a task would have lm-eval read other files or run code."""
    if isinstance(value, list):
        for one in value:
            yield from _of_code(one)
    if not isinstance(value, dict):
        return
    for key, one in value.items():
        if key in OF_CODE:
            yield f'"{key}" leads to other files or to Python code'
        if key == "dataset_path" and one in PICKLED:
            yield f'data of the kind "{one}" may hold Python code'
        if key == "metric" and one not in tuple(KNOWN):
            yield f'the metric "{one}" may be fetched as Python code (known here are {", ".join(KNOWN)})'
        yield from _of_code(one)
