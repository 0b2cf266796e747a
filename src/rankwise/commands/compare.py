"""Two or more evaluated runs, item against item where the items are the same, and set apart where they are not.

The first is the one that the others are compared with. A side may be a run or a file that `rankwise evaluate --out`
wrote. No model is loaded: what is compared are the sums that each item left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.errors import RunError
from rankwise.evaluation.comparable import set_apart
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.metrics import METRICS
from rankwise.runs.comparisons import ComparedForgetting, ComparedTask, Comparison, Differing, differing
from rankwise.runs.evaluations import Difference, Evaluation, Forgetting, OfBlocks, Verdict
from rankwise.runs.opened import Candidate, forgettings_of, open_candidates

TURNED: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}


@dataclass(frozen=True)
class Compared:
    comparisons: list[Comparison]

    def summary(self) -> dict[str, Any]:
        """What `rankwise compare --json` prints."""
        return {"comparisons": [one.model_dump(mode="json") for one in self.comparisons]}


def compare(names: Sequence[str]) -> Compared:
    if len(names) < 2:
        raise RunError("name two runs at least: the one to compare with, and the others.")
    first, *others = open_candidates(names)
    return Compared([_compared(first, other) for other in others])


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
    """Of a file alone nothing is recorded that could differ."""
    if a.run is None or b.run is None:
        return []
    return differing(recorded(a.run), recorded(b.run), but or set())


def _task(a: Evaluation, b: Evaluation) -> ComparedTask:
    unpaired = None
    if a.items_sha256 != b.items_sha256:
        unpaired = (
            f"the items differ, or stand in another order ({a.n:,} from {a.data}, {b.n:,} from {b.data}), so they are "
            "shown and not compared; evaluate both on the same file"
        )
    shared = [] if unpaired else [name for name in a.tuned.scores if name in b.tuned.scores and name in METRICS]
    why = {metric: said for metric in shared if (said := set_apart(metric, a, b))}
    return ComparedTask(
        task=a.task, n_a=a.n, n_b=b.n, a=a.tuned.metrics, b=b.tuned.metrics,
        differences=_differences(a, b, [metric for metric in shared if metric not in why]), unpaired=unpaired,
        set_apart=why, settings=differing(a.settings, b.settings),
    )  # fmt: skip


def _differences(a: Evaluation, b: Evaluation, metrics: Sequence[str]) -> dict[str, Difference]:
    found = {}
    for metric in metrics:
        one, other = (_sums(evaluation, metric) for evaluation in (a, b))
        if len(one[0]) != len(other[0]):
            raise RunError(
                f"{a.task}: the two evaluations count {metric} in different ways; evaluate one of them again."
            )
        try:
            with np.errstate(all="ignore"):
                found[metric] = _difference(metric, one, other)
        except ValueError:  # no number comes of them
            raise RunError(
                f"{a.task}: the items of {a.model} or {b.model} have sums that {metric} cannot have: an evaluation is "
                "damaged. Evaluate both again."
            ) from None
    return found


def _sums(evaluation: Evaluation, metric: str) -> list[list[float]]:
    sums = evaluation.tuned.scores[metric].sums
    whole = len(sums) == evaluation.n > 0 and len({len(row) for row in sums}) == 1 and _fit(metric, sums[0])
    if not whole:
        raise RunError(
            f"the evaluation of {evaluation.model} on {evaluation.task} is damaged: its {metric} has {len(sums):,} "
            f"items, and {evaluation.n:,} were asked, each with as many numbers as {metric} takes. Evaluate it again."
        )
    return sums


def _fit(metric: str, row: list[float]) -> bool:
    """Whether the metric's formula takes a row of so many numbers."""
    try:
        METRICS[metric].of(np.zeros(len(row)))
    except (IndexError, ValueError):
        return False
    return True


def _difference(metric: str, a: list[list[float]], b: list[list[float]]) -> Difference:
    """Drawn in one order of the two, whichever was named first, so that turning them round turns the answer round."""
    if a <= b:
        return difference(METRICS[metric], a, b)
    found = difference(METRICS[metric], b, a)
    return found.model_copy(
        update={"a": found.b, "b": found.a, "difference": -found.difference, "low": -found.high, "high": -found.low,
                "verdict": TURNED[found.verdict]}
    )  # fmt: skip


def _forgetting(a: Candidate, b: Candidate) -> ComparedForgetting | None:
    one, other = _on_one_text(a, b)
    if one is None and other is None:
        return None
    why = _incomparable(a, b, one, other)
    told = [kept and kept.model_copy(update={"sums": None}) for kept in (one, other)]
    if why or one is None or other is None:
        return ComparedForgetting(a=told[0], b=told[1], verdict=None, incomparable=why)
    found = _by_blocks(one, other)
    apart: Verdict = "better" if other.high < one.low else "worse" if other.low > one.high else "cannot tell"
    verdict = found["kl"].verdict if found else apart
    return ComparedForgetting(a=told[0], b=told[1], verdict=verdict, differences=found)


def _by_blocks(one: Forgetting, other: Forgetting) -> dict[str, Difference]:
    """Both are means over positions of which less is better, as a loss is."""
    if one.sums is None or other.sums is None:
        return {}
    sides = _blocks(one, one.sums), _blocks(other, other.sums)
    shared = [number for number in sides[0] if number in sides[1]]
    if not shared:
        return {}
    rows = [[side[number] for number in shared] for side in sides]
    return {
        name: _difference("loss", *([list(pair[at]) for pair in side] for side in rows))
        for at, name in enumerate(("kl", "delta_nll"))
    }


def _blocks(kept: Forgetting, sums: OfBlocks) -> dict[int, tuple[tuple[float, float], tuple[float, float]]]:
    """Sums of KL and of dNLL by the block's number in the text: of one text two may have needed other blocks."""
    numbers = list(range(kept.blocks)) if sums.numbers is None else sums.numbers
    if not kept.blocks == len(numbers) == len(set(numbers)) == len(sums.kl) == len(sums.delta_nll):
        raise RunError(
            f"of {kept.text} {kept.blocks:,} blocks were measured, and there are not as many sums: it is damaged. "
            "Evaluate again."
        )
    return dict(zip(numbers, zip(sums.kl, sums.delta_nll, strict=True), strict=True))


def _on_one_text(a: Candidate, b: Candidate) -> tuple[Forgetting | None, Forgetting | None]:
    """On a text of both, and of several on the one that both came to last; else the last of each."""
    one, other = forgettings_of(a.evaluations), forgettings_of(b.evaluations)
    shared = [text for text in one if text in other]
    if not shared:
        return a.forgetting, b.forgetting
    last = max(shared, key=lambda text: (list(one).index(text) + list(other).index(text), text))
    return one[last], other[last]


def _incomparable(a: Candidate, b: Candidate, one: Forgetting | None, other: Forgetting | None) -> str | None:
    if one is None or other is None:
        return f"it was measured of {b.name if one is None else a.name} alone"
    if one.sha256 != other.sha256:
        return "the texts differ"
    bases = _base_of(a, one), _base_of(b, other)
    if None in bases:
        return "the base of one is not known; evaluate it again, or name its run"
    if bases[0] != bases[1]:
        return "the base models differ"
    if one.dtype != other.dtype:
        return f"one was held in {one.dtype or 'a format not known'}, the other in {other.dtype or 'one not known'}"
    return None


def _base_of(side: Candidate, kept: Forgetting) -> str | None:
    """By its fingerprint, which files of older evaluations do not have; a run knows it."""
    return kept.base or (side.run.manifest.base_model.fingerprint if side.run is not None else None)
