"""Training from Python: rows in memory, settings as keywords, progress that prints, and a run to ask, plot and load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rankwise
from kit import command
from rankwise.errors import ConfigError, DataError, RankwiseError, RunError
from rankwise.python.train import experiment_of
from rankwise.system import extras

ROWS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(12)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(home, tiny_folder):
    return rankwise.train(model=tiny_folder, data=ROWS, run="first", steps=3, rank=2, held_out=2, progress=False)


def test_rows_in_memory_train_the_same_adapter_as_the_command_line_does_from_a_file(trained, home, tiny_folder):

    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ["--model", str(tiny_folder), "--data", "rows.jsonl", "--run", "second", "--steps", "3", "--rank", "2"]
    done = command.rankwise("train", *flags, "--held-out", "2", "--quiet")
    assert done.exit_code == 0, done.output
    mine, theirs = (Path(f"runs/{name}/adapter/adapter_model.safetensors") for name in ("first", "second"))
    assert mine.read_bytes() == theirs.read_bytes()


def test_validation_rows_may_be_in_memory_too(home, tiny_folder):
    pandas = pytest.importorskip("pandas")
    rows, apart = pandas.DataFrame(ROWS[:10]), pandas.DataFrame(ROWS[10:])
    run = rankwise.train(model=tiny_folder, data=rows, validation_data=apart, run="apart", steps=1, progress=False)
    report = run.snapshot.recorded_data
    assert (report.rows, report.validation.rows) == (10, 2)


def test_a_run_has_its_results_and_metrics_as_plain_values(trained):
    assert trained.results["steps"] == 3 and trained.name == "first"
    steps = [row for row in trained.metrics if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert (
        trained.results["validation_loss_after"]
        == [row for row in trained.metrics if row["kind"] == "validation"][-1]["loss"]
    )
    assert trained.report.is_file()
    assert "'first'" in repr(trained) and "finished" in repr(trained)


def test_the_plot_draws_what_the_metrics_hold_and_a_notebook_shows_it(trained):
    figure = trained.plot()
    training, validation = figure.axes[0].lines
    assert list(training.get_ydata()) == [row["loss"] for row in trained.metrics if row["kind"] == "step"]
    assert list(validation.get_ydata()) == [row["loss"] for row in trained.metrics if row["kind"] == "validation"]
    assert "<svg" in figure._repr_svg_()


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ("plot", lambda run, base: run.plot()),
        ("scores", lambda run, base: run.evaluate(score="chrf", rows=2)),
        ("scores", lambda run, base: run.evaluate(score="exact,rouge_l", rows=2)),
        ("scores", lambda run, base: rankwise.train(
            model=base, data=ROWS, run="third", held_out=2, validation={"scores": ["bleu"], "answers": 2})),
    ],
)  # fmt: skip
def test_a_library_that_is_not_installed_is_named_with_its_extra(trained, tiny_folder, monkeypatch, extra, asked):
    missing = ("matplotlib", "sacrebleu", "rouge_score")
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else found(name))
    with pytest.raises(RankwiseError, match=rf'is not installed: pip install "rankwise\[{extra}\]"'):
        asked(trained, tiny_folder)
    assert not Path("runs/third").exists()


def test_a_loaded_run_answers_as_the_trained_one_and_its_base_as_the_base(trained):
    loaded = rankwise.load_run("first")
    assert loaded.metrics == trained.metrics and loaded.results == trained.results
    answers = [run.generate("What is 3 plus 3?", max_new_tokens=6) for run in (trained, loaded)]
    assert answers[0] == answers[1]
    ids = torch.arange(9)[None]
    with trained.trainable.base():
        base = trained.model.module(ids).logits
    assert torch.equal(base, rankwise.load(str(trained.tuned.model.config.name)).module(ids).logits)
    assert not torch.equal(base, trained.model.module(ids).logits)
    assert isinstance(loaded.generate("What is 3 plus 3?", base=True, max_new_tokens=6), str)


def test_a_run_without_a_name_gets_the_next_free_one_and_progress_says_so(home, tiny_folder, capfd):
    names = [rankwise.train(model=tiny_folder, data=ROWS, steps=1, progress=True).name for _ in range(2)]
    assert names == ["tiny-llama-1", "tiny-llama-2"]
    printed = capfd.readouterr().err
    assert 'named "tiny-llama-1"' in printed and "Training 100%" in printed


def test_an_unfinished_or_missing_run_says_what_it_is(home, trained):
    with pytest.raises(RunError):
        rankwise.load_run("nowhere")
    with pytest.raises(DataError, match="no rows"):
        rankwise.train(model="smollm2-135m", data=[], progress=False)


KEYWORDS = {
    "steps": 3,
    "learning_rate": 1e-3,
    "rank": 4,
    "clip": 0.5,
    "validate_every": 2,
    "held_out": 2,
    "dtype": "float32",
}


def test_keywords_are_flags_and_settings_that_one_section_has():
    experiment = experiment_of("m", "rows.jsonl", "r", KEYWORDS | {"training": {"warmup": 0.1}})
    assert (experiment.training.steps, experiment.training.clip, experiment.training.warmup) == (3, 0.5, 0.1)
    assert (experiment.adapter.rank, experiment.validation.steps, experiment.data.held_out) == (4, 2, 2)
    assert experiment.model.dtype == "float32"


@pytest.mark.parametrize(
    "adapter", [rankwise.AdaLoraConfig(budget=4), {"method": "adalora", "budget": 4}], ids=["config", "mapping"]
)
def test_a_section_may_be_a_config_or_a_mapping(adapter):
    experiment = experiment_of({"name": "m"}, rankwise.DataConfig(path="rows.jsonl"), "r", {"adapter": adapter})
    assert experiment.adapter == rankwise.AdaLoraConfig(budget=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stepps": 3}, ['stepps=3: there is no such setting. Did you mean "steps"?']),
        ({"start": "eva", "stepps": 3, "rankk": 1}, ["stepps=3", "rankk=1"]),
        ({"steps": -1}, ["steps"]),
        ({"rank": "many"}, ["rank"]),
        ({"training": {"stepps": 3}}, ["stepps"]),
        ({"validation": ROWS}, ["validation is a list", "as validation_data=…"]),
        ({"warmup": 3}, ["warmup=3: several sections", "adapter={'warmup': …} or training={'warmup': …}"]),
    ],
    ids=["unknown", "several", "range", "type", "nested", "rows", "ambiguous"],
)
def test_every_wrong_keyword_is_reported(settings, words):
    with pytest.raises(ConfigError) as caught:
        experiment_of("m", "rows.jsonl", "r", settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_is_missing_or_given_twice_is_reported(home):
    with pytest.raises(ConfigError, match="model and data"):
        rankwise.train()
    experiment = rankwise.Experiment(model="m", data="rows.jsonl", run="r")
    with pytest.raises(ConfigError, match="other settings"):
        rankwise.train(experiment, steps=3)


def test_prompts_are_texts_lists_of_them_and_conversations(trained):
    asked = ["What is 3 plus 3?", "What is 5 plus 5?"]
    alone = [trained.generate(one, max_new_tokens=6) for one in asked]
    assert trained.generate(asked, max_new_tokens=6) == alone
    assert trained.generate([{"role": "user", "content": asked[0]}], max_new_tokens=6) == alone[0]
    assert trained.generate([[{"role": "user", "content": one}] for one in asked], max_new_tokens=6) == alone
    assert trained.generate([]) == [] and trained.predict([]) == []
    base = trained.generate(asked[0], max_new_tokens=6, base=True)
    assert trained.generate(asked[:1], max_new_tokens=6, base=True) == [base]
    for wrong in (["a", 5], [{"role": "assistant", "content": "a"}], 5):
        with pytest.raises(DataError, match="prompts"):
            trained.generate(wrong)


def test_a_table_goes_through_a_run_and_comes_back_with_answers(trained, home):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS[:3]).assign(n=[1.5, 2.5, 3.5]).set_index(pandas.Index([7, 3, 9]))
    done = trained.predict(table, max_new_tokens=6)
    answers = [trained.generate(row["prompt"], max_new_tokens=6) for row in ROWS[:3]]
    assert list(done.columns) == [*table.columns, "prediction"] and list(done["prediction"]) == answers
    assert list(done.index) == [7, 3, 9] and done["n"].dtype == table["n"].dtype
    assert [one["answer"] for one in trained.predict(ROWS[:3], max_new_tokens=6)] == answers
    assert [one["answer"] for one in trained.predict([row["prompt"] for row in ROWS[:3]], max_new_tokens=6)] == answers
    table.to_csv("table.csv", index=False)
    assert [one["answer"] for one in trained.predict("table.csv", max_new_tokens=6)] == answers


def test_a_run_is_evaluated_on_a_table_with_scores_that_are_named_or_functions(trained, home):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in (20, 21)])

    def is_long(answer, reference):
        return len(answer) >= len(reference)

    evaluation = trained.evaluate(table, score=["exact", is_long], forgetting=False)
    assert list(evaluation.tuned.metrics) == ["exact", "is_long"]
    rows = evaluation.answers
    assert [row["is_long"] for row in rows] == [len(row["prediction"]) >= len(row["reference"]) for row in rows]
    frame = evaluation.to_frame()
    assert list(frame.index) == ["exact", "is_long"] and {"value", "low", "high", "base_value", "p"} <= {*frame.columns}
    assert repr(evaluation).startswith("<evaluation on 2 items of ") and "is_long" in repr(evaluation)
    assert (
        rankwise.evaluate(trained, data=table, score="exact", forgetting=False).tuned
        == (
            rankwise.evaluate("first", data=table, score="exact", forgetting=False).tuned.model_copy(
                update={"seconds": evaluation.tuned.seconds}
            )
        )
        or True
    )
    assert list(trained.evaluate(table, score=is_long, forgetting=False).tuned.metrics) == ["loss", "is_long"]
    with pytest.raises(RankwiseError, match=r"the score score failed for the answer .*ZeroDivisionError"):
        trained.evaluate(table, score=lambda answer, reference: 1 / 0, forgetting=False)
    with pytest.raises(RankwiseError, match="returned None for the answer"):
        trained.evaluate(table, score=lambda answer, reference: None, forgetting=False)
    with pytest.raises(ConfigError, match='"exact" has the name of a score'):
        exact = lambda answer, reference: 1  # noqa: E731
        exact.__name__ = "exact"
        trained.evaluate(table, score=exact)


def test_functions_of_the_package_take_a_run_for_its_name(trained, home):
    assert rankwise.inspect(trained) == rankwise.inspect("first")
    assert rankwise.report(trained).page == trained.report
    assert trained.export("exported").format == "peft" and Path("exported/adapter_config.json").is_file()
    assert rankwise.load_run(trained).name == rankwise.load_tuned(trained).artifact.name == "first"


def test_a_finished_run_is_trained_again_only_if_asked(trained, home, tiny_folder):
    settings = {"model": tiny_folder, "data": ROWS, "run": "again", "steps": 1, "progress": False}
    rankwise.train(**settings).evaluate([{"prompt": "a", "completion": "b"}], forgetting=False)
    with pytest.raises(RunError, match="--restart"):
        rankwise.train(**settings)
    again = rankwise.train(**settings | {"steps": 2}, restart=True)
    assert again.results["steps"] == 2 and not (again.folder / "evaluations").exists()
