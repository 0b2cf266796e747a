"""The demo: evaluate a base model on bundled data, train it, and evaluate it again.

The data are messy customer messages, each with one line of strict JSON as target (data/demo.jsonl): 400 training rows
and 100 test rows that share no name, product or order number.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.commands.train import train
from rankwise.config.adapters import LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import GenerationConfig
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.rows.text.example import Message
from rankwise.runs.manifest import Results, peak_rss
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.system.files import told_when_full, write_atomic

TRAINING_ROWS = 400
LONGEST_ANSWER = 64


@dataclass(frozen=True)
class DemoRow:
    message: str
    expected: str
    base: str
    adapted: str


@dataclass(frozen=True)
class Demo:
    """Results of the demo; `base_exact` and `adapted_exact` are shares of test rows answered exactly."""

    run: str
    base_exact: float
    adapted_exact: float
    rows: list[DemoRow]
    results: Results

    def summary(self) -> dict[str, Any]:
        """What `rankwise demo --json` prints."""
        results = self.results.model_dump()
        keys = ("adapter_bytes", "train_seconds", "tokens_per_second", "trainable_parameters", "total_parameters")
        return {
            "base_exact": self.base_exact,
            "adapted_exact": self.adapted_exact,
            **{key: results[key] for key in keys},
            "peak_rss_bytes": peak_rss(),
            "test_rows": len(self.rows),
            "run": self.run,
        }


def demo(model: str = "smollm2-135m", *, callback: Callback = silent, seed: int = 0) -> Demo:
    """Train a small model on the sample messages, and compare its answers with the base model's."""
    loaded = load(ModelConfig(name=model), callback)
    training, testing = demo_rows()
    test = [[Message(**message) for message in json.loads(line)["messages"]] for line in testing]
    before = _answers(loaded, test, "Asking the base model", callback)
    rows_folder = Path("runs") / "demo-rows"
    write_rows(rows_folder / "test.jsonl", testing)
    write_rows(rows_folder / "train.jsonl", training)
    trained = train(_experiment(model, rows_folder / "train.jsonl", seed), callback=callback, model=loaded)
    after = _answers(loaded, test, "Asking the adapted model", callback)
    rows = [
        DemoRow(messages[-2].content, messages[-1].content, base, adapted)
        for messages, base, adapted in zip(test, before, after, strict=True)
    ]
    results = trained.manifest.results
    assert results is not None, "only a finished run is returned"
    return Demo(
        run=trained.run.folder.name,
        base_exact=sum(row.base == row.expected for row in rows) / len(rows),
        adapted_exact=sum(row.adapted == row.expected for row in rows) / len(rows),
        rows=rows,
        results=results,
    )


def _experiment(model: str, file: Path, seed: int) -> Experiment:
    name = next(name for name in _names() if not (Path("runs") / name).exists())
    return Experiment(
        model=ModelConfig(name=model),
        data=DataConfig(path=str(file), held_out=0),
        run=name,
        adapter=LoraConfig(rank=8),
        training=TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3, seed=seed),
    )


def _names() -> itertools.chain[str]:
    return itertools.chain(["demo"], (f"demo-{number}" for number in itertools.count(2)))


def demo_rows() -> tuple[list[str], list[str]]:
    """The shipped lines for training and for testing, each a conversation as OpenAI's messages."""
    lines = (files("rankwise.rows") / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    return lines[:TRAINING_ROWS], lines[TRAINING_ROWS:]


def write_rows(file: Path, lines: Sequence[str]) -> None:
    with told_when_full(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, "".join(f"{line}\n" for line in lines).encode())


def _answers(model: LoadedModel, questions: list[list[Message]], what: str, callback: Callback) -> list[str]:
    """Generate greedy answers, without surrounding white space."""
    prompts = [asking_ids(model, messages[:-1]) for messages in questions]
    given = answers_in_turn(
        model, prompts, GenerationConfig(max_new_tokens=LONGEST_ANSWER),
        on_progress=lambda done: callback(ProgressUpdate(what, done, len(prompts), "rows")),
    )  # fmt: skip
    return [one.text.strip() for one in given]
