"""Compare evaluated runs item by item, where their items are the same.

The others are compared with the first. Each may be a run or a file written by `rankwise evaluate --out`. No model is
loaded: the comparison uses the stored sums of each item.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.errors import RunError
from rankwise.evaluation.intervals import difference, set_apart
from rankwise.evaluation.metrics import METRICS, metric_named
from rankwise.runs.evaluations import (
    ComparedForgetting,
    ComparedTask,
    Comparison,
    Differing,
    Evaluation,
    Forgetting,
    OfBlocks,
    differing,
)
from rankwise.runs.measured import Difference, Verdict
from rankwise.runs.snapshot import Candidate, forgettings_of, open_candidates

REVERSED: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}


@dataclass(frozen=True)
class ComparedRuns:
    candidates: list[Candidate]
    comparisons: list[Comparison]

    def summary(self) -> dict[str, Any]:
        """What `rankwise compare --json` prints."""
        return {"comparisons": self.comparisons}

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each metric of each two runs: both values, and the difference b - a."""
        from pandas import DataFrame  # pyright: ignore[reportMissingImports]

        return DataFrame([
            {"task": task.task, "metric": metric, "run_a": one.a, "run_b": one.b, **dict(difference)}
            for one in self.comparisons for task in one.tasks for metric, difference in task.differences.items()
        ])  # fmt: skip


def compare(names: Sequence[str | os.PathLike[str]]) -> ComparedRuns:
    """Compare evaluated runs, item by item, with the first one. RunError for fewer than two names."""
    if len(names) < 2:
        raise RunError("name at least two runs: the one to compare with, and the others.")
    first, *others = candidates = open_candidates([os.fspath(name) for name in names])
    return ComparedRuns(candidates, [_compared(first, other) for other in others])


def _compared(a: Candidate, b: Candidate) -> Comparison:
    shared = [task for task in a.evaluations if task in b.evaluations]
    return Comparison(
        a=a.name,
        b=b.name,
        settings=_differing(a, b, lambda run: run.experiment.model_dump(mode="json"), but={"run"}),
        data=_differing(a, b, lambda run: run.manifest.data.model_dump(mode="json")),
        base_model=_differing(a, b, lambda run: run.manifest.base_model.model_dump(mode="json")),
        cost=_differing(a, b, lambda run: run.manifest.results.model_dump(mode="json") if run.manifest.results else {}),
        made_with=_differing(a, b, lambda run: run.manifest.versions | run.manifest.machine),
        tasks=[_task(a.evaluations[task], b.evaluations[task]) for task in shared],
        only_a=[task for task in a.evaluations if task not in b.evaluations],
        only_b=[task for task in b.evaluations if task not in a.evaluations],
        forgetting=_forgetting(a, b),
    )


def _differing(a: Candidate, b: Candidate, recorded: Any, but: set[str] | None = None) -> list[Differing]:
    """List recorded values that differ; an evaluation file alone has none."""
    if a.run is None or b.run is None:
        return []
    return differing(recorded(a.run), recorded(b.run), but or set())


def _task(a: Evaluation, b: Evaluation) -> ComparedTask:
    unpaired = None
    if a.items_sha256 != b.items_sha256:
        unpaired = (
            f"the items or their order differ ({a.n:,} from {a.data}, {b.n:,} from {b.data}), so the scores are shown "
            "without a comparison; evaluate both on the same file"
        )
    shared = [] if unpaired else [name for name in a.tuned.scores if name in b.tuned.scores and _is_known(name, a)]
    why = {metric: reason for metric in shared if (reason := set_apart(metric, a, b))}
    return ComparedTask(
        task=a.task, n_a=a.n, n_b=b.n, a=a.tuned.metrics, b=b.tuned.metrics,
        differences=_differences(a, b, [metric for metric in shared if metric not in why]), unpaired=unpaired,
        set_apart=why, settings=differing(a.settings, b.settings),
    )  # fmt: skip


def _differences(a: Evaluation, b: Evaluation, metrics: Sequence[str]) -> dict[str, Difference]:
    differences = {}
    for metric in metrics:
        one, other = (_sums(evaluation, metric) for evaluation in (a, b))
        if len(one[0]) != len(other[0]):
            raise RunError(
                f"{a.task}: the two evaluations count {metric} in different ways; evaluate one of them again."
            )
        try:
            with np.errstate(all="ignore"):
                differences[metric] = _difference(metric, one, other)
        except ValueError:  # the sums give no number
            raise RunError(
                f"{a.task}: the items of {a.model} or {b.model} have sums that are impossible for {metric}: an "
                f"evaluation is "
                "damaged. Evaluate both again."
            ) from None
    return differences


def _is_known(metric: str, evaluation: Evaluation) -> bool:
    """Whether its formula is ours, or it is the mean of a function of the user's."""
    return metric in METRICS or metric in evaluation.settings.get("functions", ())


def _sums(evaluation: Evaluation, metric: str) -> list[list[float]]:
    sums = evaluation.tuned.scores[metric].sums
    whole = len(sums) == evaluation.n > 0 and len({len(row) for row in sums}) == 1 and _fit(metric, sums[0])
    if not whole:
        raise RunError(
            f"the evaluation of {evaluation.model} on {evaluation.task} is damaged: its {metric} needs "
            f"{evaluation.n:,} items with valid sums, but has {len(sums):,}. Evaluate it again."
        )
    return sums


def _fit(metric: str, row: list[float]) -> bool:
    """Tell whether the metric's formula accepts rows of this length."""
    try:
        metric_named(metric).value([[0.0] * len(row)])
    except (IndexError, ValueError):
        return False
    return True


def _difference(metric: str, a: list[list[float]], b: list[list[float]]) -> Difference:
    """Compare both in a canonical order, so that exchanging a and b exactly reverses the result."""
    if a <= b:
        return difference(metric_named(metric), a, b)
    other = difference(metric_named(metric), b, a)
    return other.model_copy(
        update={"a": other.b, "b": other.a, "difference": -other.difference, "low": -other.high, "high": -other.low,
                "verdict": REVERSED[other.verdict]}
    )  # fmt: skip


def _forgetting(a: Candidate, b: Candidate) -> ComparedForgetting | None:
    one, other = _on_one_text(a, b)
    if one is None and other is None:
        return None
    why = _incomparable(a, b, one, other)
    without_sums = [measured and measured.model_copy(update={"sums": None}) for measured in (one, other)]
    if why or one is None or other is None:
        return ComparedForgetting(a=without_sums[0], b=without_sums[1], verdict=None, incomparable=why)
    differences = _by_blocks(one, other)
    apart: Verdict = "better" if other.high < one.low else "worse" if other.low > one.high else "cannot tell"
    verdict = differences["kl"].verdict if differences else apart
    return ComparedForgetting(a=without_sums[0], b=without_sums[1], verdict=verdict, differences=differences)


def _by_blocks(first: Forgetting, other: Forgetting) -> dict[str, Difference]:
    """Compare KL and dNLL over common blocks; both are means over positions and lower is better, like a loss."""
    if first.sums is None or other.sums is None:
        return {}
    sides = _blocks(first, first.sums), _blocks(other, other.sums)
    shared = [number for number in sides[0] if number in sides[1]]
    if not shared:
        return {}
    rows = [[side[number] for number in shared] for side in sides]
    return {
        name: _difference("loss", *([list(pair[at]) for pair in side] for side in rows))
        for at, name in enumerate(("kl", "delta_nll"))
    }


def _blocks(forgetting: Forgetting, sums: OfBlocks) -> dict[int, tuple[tuple[float, float], tuple[float, float]]]:
    """Return the sums of KL and dNLL by block number; evaluations may have measured different blocks."""
    numbers = list(range(forgetting.blocks)) if sums.numbers is None else sums.numbers
    if not forgetting.blocks == len(numbers) == len(set(numbers)) == len(sums.kl) == len(sums.delta_nll):
        raise RunError(
            f"{forgetting.blocks:,} blocks of {forgetting.text} were measured, but the number of sums differs: the "
            "file is damaged. Evaluate again."
        )
    return dict(zip(numbers, zip(sums.kl, sums.delta_nll, strict=True), strict=True))


def _on_one_text(a: Candidate, b: Candidate) -> tuple[Forgetting | None, Forgetting | None]:
    """Choose measurements on the last text that both share, or else the last of each."""
    one, other = forgettings_of(a.evaluations), forgettings_of(b.evaluations)
    shared = [text for text in one if text in other]
    if not shared:
        return a.forgetting, b.forgetting
    last = max(shared, key=lambda text: (list(one).index(text) + list(other).index(text), text))
    return one[last], other[last]


def _incomparable(a: Candidate, b: Candidate, first: Forgetting | None, other: Forgetting | None) -> str | None:
    if first is None or other is None:
        return f"forgetting was only measured for {b.name if first is None else a.name}"
    if first.sha256 != other.sha256:
        return "the texts differ"
    bases = _base_of(a, first), _base_of(b, other)
    if None in bases:
        return "the base model of one of them is unknown; evaluate that one again, or name its run"
    if bases[0] != bases[1]:
        return "the base models differ"
    if first.dtype != other.dtype:
        dtypes = [measured.dtype or "an unknown dtype" for measured in (first, other)]
        return f"one was measured in {dtypes[0]}, the other in {dtypes[1]}"
    return None


def _base_of(side: Candidate, forgetting: Forgetting) -> str | None:
    """Return the fingerprint of the base, for older files without one from the run's manifest."""
    return forgetting.base or (side.run.manifest.base_model.fingerprint if side.run is not None else None)
