"""A task of lm-eval through ours: its own scores item by item, and what we score of the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.errors import EvaluationError, SpecError
from rankwise.evaluation.harness import HarnessTask
from rankwise.spec.tasks import TaskSpec
from rankwise.verbs.evaluate import evaluate

WORDS = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "refund", "glass", "radio", "order", "capital"]
TASK = """\
task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    made = [{"query": f"What is {WORDS[at]} {WORDS[(at * 5) % 12]}?", "gold": at % 3,
             "choices": [WORDS[(at + 2) % 12], f"{WORDS[(at + 5) % 12]} {WORDS[at]}", WORDS[(at * 7) % 12]]}
            for at in range(12)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def test_both_score_the_same_rows_alike(tiny_folder, rows, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'rankwise[lm-eval]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=rows))
    theirs = evaluate(str(tiny_folder), f"lm-eval:{tmp_path / 'mine.yaml'}", out=tmp_path / "theirs.json")
    ask = TaskSpec(task="mine", data=str(rows), ask="{query}", score="accuracy", chat=False)
    ours = evaluate(str(tiny_folder), ask, out=tmp_path / "ours.json")
    assert theirs.n == ours.n == 12
    for metric in ("accuracy", "accuracy_unnormalised"):
        assert theirs.tuned.scores[metric] == ours.tuned.scores[metric]
    assert 0 < ours.tuned.metrics["accuracy"].value < 1


def test_code_in_a_task_is_refused(tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'rankwise[lm-eval]'")
    file = tmp_path / "bad.yaml"
    file.write_text("task: bad\nprocess_docs: !function evil.run\n")
    with pytest.raises(SpecError, match="nothing that a task holds is run"):
        HarnessTask(str(file), None, 4)._samples(None)  # pyright: ignore
    with pytest.raises((SpecError, EvaluationError)):
        HarnessTask(str(Path("nowhere.yaml")), None, 4)._samples(None)  # pyright: ignore
