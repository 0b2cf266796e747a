"""A task of lm-eval through ours: its own scores item by item, and what we score of the same rows."""

from __future__ import annotations

import json

import pytest

from rankwise.errors import SpecError
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
FILTERED = """\
task: twice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
doc_to_text: "{{{{query}}}}"
doc_to_target: "[invalid]"
metric_list:
  - metric: exact_match
filter_list:
  - name: nothing
    filter:
      - {{function: regex, regex_pattern: "(a pattern that never occurs)"}}
      - {{function: take_first}}
  - name: all
    filter:
      - {{function: take_first}}
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


CODE = """\
import pathlib
pathlib.Path({mark!r}).write_text("was run")
def run(documents):
    return documents
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("process_docs: !function evil.run\n", "asks for an object"),
        ("include: other.yml\n", "include"),
        ('"incl\\x75de": [other.yml]\n', "include"),
        ("unsafe_code: true\n", "unsafe_code"),
        ("metric_list: [{metric: evil}]\n", 'metric "evil"'),
        ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "hf_evaluate"),
        ("dataset_path: pandas\n", "pandas"),
    ],
)
def test_code_in_a_task_is_refused_and_not_run(tmp_path, text, problem):
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(CODE.format(mark=str(mark)))
    (tmp_path / "other.yml").write_text("process_docs: !function evil.run\n")
    file = tmp_path / "bad.yaml"
    file.write_text("task: bad\n" + text)
    with pytest.raises(SpecError, match=problem):
        HarnessTask(str(file), None, 4)._samples(None)  # pyright: ignore
    assert not mark.exists()


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SpecError, match=r"nowhere.yaml: there is no such file"):
        HarnessTask("nowhere.yaml", None, 4)._samples(None)  # pyright: ignore


def test_what_lies_beside_a_task_is_not_read(tiny_folder, rows, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'rankwise[lm-eval]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=rows))
    (tmp_path / "evil.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    (tmp_path / "beside.yaml").write_text(TASK.format(rows=rows) + "process_docs: !function evil.run\n")
    assert evaluate(str(tiny_folder), f"lm-eval:{tmp_path / 'mine.yaml'}", rows=5).n == 5
    assert not (tmp_path / "mark").exists()


def test_several_filters_are_one_sample_for_each_item(tiny_folder, rows, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'rankwise[lm-eval]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "twice.yaml").write_text(FILTERED.format(rows=rows))
    found = evaluate(str(tiny_folder), f"lm-eval:{tmp_path / 'twice.yaml'}")
    assert (found.task, found.n) == ("lm-eval-twice", 12)
    assert found.tuned.metrics["exact"].value == 1, "the first filter finds nothing, which is what is wanted"
    assert found.settings["filter"] == "nothing"
