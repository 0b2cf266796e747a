"""A task of lm-eval through ours: its own scores item by item, and what we score of the same rows."""

from __future__ import annotations

import json

import pytest

from rankwise.base.loading import load
from rankwise.commands.evaluate import evaluate
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.errors import ConfigError
from rankwise.evaluation.harness import HarnessTask

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


@pytest.fixture
def asked_by_lm_eval(tiny_folder, tmp_path, monkeypatch):
    """lm-eval itself, on a task file that is written here: what it keeps of each item, by task."""
    pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "rankwise[lm-eval]"')
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    model = load(ModelConfig(name=str(tiny_folder), dtype="float32"))

    def asked(name, text):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
        return simple_evaluate(
            model=HFLM(pretrained=model.module, tokenizer=model.tokenizer.hub), tasks=[name], bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False), log_samples=True,
        )["samples"]  # fmt: skip

    return asked


def test_both_score_the_same_rows_alike(asked_by_lm_eval, tiny_folder, rows, tmp_path):
    task = HarnessTask("mine", None, 4)
    theirs = task.scored(asked_by_lm_eval("mine", TASK.format(rows=rows)))
    ask = TaskConfig(task="mine", data=str(rows), ask="{query}", score="accuracy", chat=False)
    ours = evaluate(str(tiny_folder), ask, out=tmp_path / "ours.json")
    assert task.facts()[0] == ours.n == 12
    for metric in ("accuracy", "accuracy_unnormalised"):
        assert theirs[metric] == ours.tuned.scores[metric]
    assert 0 < ours.tuned.metrics["accuracy"].value < 1


def test_several_filters_are_one_sample_for_each_item(asked_by_lm_eval, rows):
    task = HarnessTask("twice", None, 4)
    found = task.scored(asked_by_lm_eval("twice", FILTERED.format(rows=rows)))
    assert (task.name, task.facts()[0]) == ("lm-eval-twice", 12)
    assert found["exact"].measured.value == 1, "the first filter finds nothing, which is what is expected"
    assert task.settings["filter"] == "nothing"


def test_rows_that_are_asked_in_other_words_are_other_items(asked_by_lm_eval, rows):
    """Row and target have the same hashes: two wordings were once held against each other item by item."""
    hashes = []
    for ask in ("{{query}}", "{{query}} Say it.", "{{query}}"):
        task = HarnessTask("mine", None, 4)
        task.scored(asked_by_lm_eval("mine", TASK.format(rows=rows).replace("{{query}}", ask)))
        hashes.append(task.facts()[1])
    assert hashes[0] == hashes[2] != hashes[1]


SAMPLE = {
    "doc_id": 0, "doc_hash": "d", "target_hash": "t", "prompt_hash": "p", "metrics": ["acc"], "acc": 1.0,
    "arguments": [("What?", " this"), ("What?", " that")],
}  # fmt: skip


@pytest.mark.parametrize("other", [{"prompt_hash": "q"}, {"arguments": [("What?", " this"), ("What?", " those")]}])
def test_an_item_is_what_the_model_was_given(other):
    hashes = []
    for sample in (SAMPLE, SAMPLE | other):
        task = HarnessTask("mine", None, 4)
        assert task.scored({"mine": [sample]})["accuracy_unnormalised"].sums == [[1.0, 1.0]]
        hashes.append(task.facts()[1])
    assert hashes[0] != hashes[1]


def test_a_task_that_lm_eval_does_not_have_is_not_looked_for_among_files(tiny_folder, tmp_path, monkeypatch):
    """lm-eval takes a name that it does not know for a path."""
    pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "rankwise[lm-eval]"')
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arc_eazy").write_text(TASK.format(rows="rows.jsonl"))
    with pytest.raises(ConfigError, match=r'no task "arc_eazy".*Did you mean'):
        evaluate(str(tiny_folder), "lm-eval:arc_eazy")


# lm-eval renders templates outside of any sandbox, so that this once ran a command
TEMPLATE = "task: bad\ndoc_to_text: \"{{ cycler.__init__.__globals__.os.popen('touch mark').read() }}\"\n"


@pytest.mark.parametrize("name", ["bad.yaml", "./bad.yaml", "sub/bad.YML", "./bad", "../bad", "/bad", "", "~bad"])
def test_a_file_is_refused_whatever_is_in_it(tiny_folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file in ("bad.yaml", "bad", "sub/bad.YML"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(TEMPLATE)
    with pytest.raises(ConfigError, match=r"rankwise task file instead .*docs/evaluation.md"):
        evaluate(str(tiny_folder), f"lm-eval:{name}")
    assert not (tmp_path / "mark").exists()
