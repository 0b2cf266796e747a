"""A classifier out of a table in one go: what is wrong with the rows, a probe, and an adapter where one pays.

    probe      the head fitted to the frozen model, which takes seconds
    adapter    LoRA, trained where a tenth of its steps already has a lower loss than a fitted head

Both learn from the same rows and are measured on the same others, which choose nothing while they train. Each is a run,
and the one that is right more often is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rankwise.commands.advise import advise
from rankwise.commands.compare import compare
from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import Trained, train
from rankwise.config.experiment import Experiment, named_after
from rankwise.runs.advice import Advice
from rankwise.runs.data_report import DataReport
from rankwise.runs.measured import Difference, Measurement
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot

SHARE_HELD_OUT, PASSES = 0.2, 4
FITTED = {"steps": 1, "learning_rate": 1e-9}
"""A head is fitted before the first step, and this leaves it as it is."""


@dataclass(frozen=True)
class Classified:
    rows: DataReport
    advice: Advice
    runs: dict[str, Trained]
    """The probe, and the adapter where one was trained."""
    scores: dict[str, Measurement]
    """Accuracy on the rows that were held out."""
    words: float | None
    """That of logistic regression on words alone, where scikit-learn is installed."""
    gain: Difference | None
    """Accuracy of the adapter less that of the probe."""

    @property
    def better(self) -> str:
        return max(self.scores, key=lambda name: self.scores[name].value)

    def summary(self) -> dict[str, Any]:
        """What `rankwise classify --json` prints."""
        kept = self.runs[self.better]
        return {
            "run": str(kept.run.folder), "kept": self.better, "report": str(kept.run.page), "accuracy": self.scores,
            "words": self.words, "gain": self.gain, "advice": self.advice.text, "warnings": self.rows.warnings,
            "rows": self.rows.used, "held_out": self.rows.validation_rows, "labels": self.rows.labels,
        }  # fmt: skip


def classify(
    data: str, text: str, label: str, *, model: str = "minilm", run: str | None = None, seed: int = 0,
    callback: Callback = silent,
) -> Classified:  # fmt: skip
    """`text` and `label` name columns of the file. The runs are `run`-probe and `run`-adapter, by default of a free
    name after the file."""
    file = named_after(Path(data).stem, "table")
    stems = (f"{file}{'' if number == 1 else f'-{number}'}" for number in count(1))
    ways = "probe", "adapter"
    stem = run or next(one for one in stems if not any(Path("runs", f"{one}-{way}").exists() for way in ways))

    def experiment(way: str, method: str, training: dict[str, Any]) -> Experiment:
        columns = {"text": text, "label": label}
        return Experiment(**{
            "model": model, "data": {"path": data, "held_out": SHARE_HELD_OUT, "columns": columns},
            "run": f"{stem}-{way}", "classification": {"targets": "classes"}, "objective": "sequence-classification",
            "adapter": {"method": method}, "training": {"seed": seed, **training},
        })  # fmt: skip

    runs = {"probe": train(experiment("probe", "head", FITTED), callback=callback)}
    longer = experiment("adapter", "lora", {"epochs": PASSES})
    advice = advise(longer, callback=callback)
    callback(StatusMessage(advice.text))
    over = advice.over_untrained
    if advice.verdict == "train" and (over is None or over.difference < 0):
        runs["adapter"] = train(longer, callback=callback)
    scores = {way: evaluate(one.run.folder, callback=callback).tuned.metrics["accuracy"] for way, one in runs.items()}
    paired = compare([one.run.folder for one in runs.values()]).comparisons[0].tasks if len(runs) > 1 else []
    results, report = runs["probe"].manifest.results, RunSnapshot.of(runs["probe"].run).recorded_data
    words = (results.baselines or {}).get("words") if results is not None else None
    gain = paired[0].differences.get("accuracy") if paired else None
    return Classified(report, advice, runs, scores, words, gain)
