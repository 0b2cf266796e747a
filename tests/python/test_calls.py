"""What a new user tries on a run: each call works, or says in a RankwiseError what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import rankwise
from kit.classifiers import encoder_folder, labelled
from rankwise.errors import RankwiseError
from rankwise.evaluation.validation_rows import refuse_without_answers

ROWS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(12)]
OTHERS = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(20, 24)]
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
FAST = {"max_new_tokens": 3}
QUICK = {"forgetting": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("calls"))
        encoder_folder(Path("tiny-bert"))
        yield tiny_folder


@pytest.fixture(scope="module")
def text(home):
    return rankwise.train(model=home, data=ROWS, run="text", steps=1, rank=2, held_out=2, progress=False)


@pytest.fixture(scope="module")
def classes(home):
    settings = {"method": "head", "held_out": 6, "progress": False}
    return rankwise.train(model="tiny-bert", data=labelled(24), run="classes", steps=2, **settings)


@pytest.fixture(scope="module")
def frames(text):
    pandas = pytest.importorskip("pandas")
    return {"text": pandas.DataFrame(OTHERS), "classes": pandas.DataFrame(labelled(30)[24:])}


def answer_length(answer, reference):
    return len(answer)


WORKS = {
    "evaluate a run": lambda text, classes, frames: text.evaluate(**QUICK),
    "evaluate a table": lambda text, classes, frames: text.evaluate(frames["text"], **QUICK),
    "evaluate dicts": lambda text, classes, frames: text.evaluate(OTHERS, **QUICK),
    "a score": lambda text, classes, frames: text.evaluate(OTHERS, score="exact", **QUICK),
    "scores in a text": lambda text, classes, frames: text.evaluate(OTHERS, score="exact,rouge_l", **QUICK),
    "a list of scores": lambda text, classes, frames: text.evaluate(OTHERS, score=["exact", "bleu"], **QUICK),
    "a function": lambda text, classes, frames: text.evaluate(OTHERS, score=answer_length, **QUICK),
    "a lambda": lambda text, classes, frames: text.evaluate(OTHERS, score=lambda a, b: a == b, **QUICK),
    "to_frame": lambda text, classes, frames: text.evaluate(OTHERS, **QUICK).to_frame(),
    "an evaluation in a notebook": lambda text, classes, frames: text.evaluate(OTHERS, **QUICK)._repr_html_(),
    "compare in a table": lambda text, classes, frames: rankwise.compare([text.folder, text.folder]).to_frame(),
    "plan": lambda text, classes, frames: rankwise.plan(model="tiny-bert", method="lora", steps=4).forecast,
    "plan of rows": lambda text, classes, frames: rankwise.plan(model=text.model, data=ROWS, steps=4).forecast,
    "str of an evaluation": lambda text, classes, frames: str(text.evaluate(OTHERS, **QUICK)),
    "every answer": lambda text, classes, frames: text.evaluate(OTHERS, score="exact", **QUICK).answers,
    "a table to a file": lambda text, classes, frames: text.evaluate(OTHERS, score="exact", out="every.csv", **QUICK),
    "rankwise.evaluate(run)": lambda text, classes, frames: rankwise.evaluate(text, **QUICK),
    "rankwise.evaluate(name, data=df)": lambda text, classes, frames: rankwise.evaluate(
        "text", data=frames["text"], **QUICK
    ),
    "rankwise.evaluate(run, df)": lambda text, classes, frames: rankwise.evaluate(text, frames["text"], **QUICK),
    "rankwise.predict(name, texts)": lambda text, classes, frames: rankwise.predict("classes", ["a film"]).records,
    "a classifier and a function": lambda text, classes, frames: classes.evaluate(
        frames["classes"], score=answer_length
    ),
    "evaluate a classifier": lambda text, classes, frames: classes.evaluate(),
    "a classifier on a table": lambda text, classes, frames: classes.evaluate(frames["classes"]),
    "answers of a classifier": lambda text, classes, frames: classes.evaluate(frames["classes"]).answers,
    "predict a table": lambda text, classes, frames: text.predict(frames["text"], **FAST),
    "predict dicts": lambda text, classes, frames: text.predict(OTHERS, **FAST),
    "predict texts": lambda text, classes, frames: text.predict(["Hello", "You"], **FAST),
    "predict conversations": lambda text, classes, frames: text.predict([TALK], **FAST),
    "predict one column": lambda text, classes, frames: text.predict(list(frames["text"]["prompt"]), **FAST),
    "a classifier's texts": lambda text, classes, frames: classes.predict(["a film", "a bad film"]),
    "a classifier's table": lambda text, classes, frames: classes.predict(frames["classes"]),
    "a classifier's rows": lambda text, classes, frames: classes.predict([{"text": "a film"}]),
    "a classifier's column": lambda text, classes, frames: classes.predict(frames["classes"]["text"]),
    "nothing to predict": lambda text, classes, frames: text.predict([]),
    "generate": lambda text, classes, frames: text.generate("Hello", **FAST),
    "generate texts": lambda text, classes, frames: text.generate(["Hello", "You"], **FAST),
    "generate a column": lambda text, classes, frames: text.generate(list(frames["text"]["prompt"]), **FAST),
    "generate messages": lambda text, classes, frames: text.generate(TALK, **FAST),
    "generate conversations": lambda text, classes, frames: text.generate([TALK, TALK], **FAST),
    "the base's answer": lambda text, classes, frames: text.generate(["Hello"], base=True, **FAST),
    "rankwise.generate(run)": lambda text, classes, frames: rankwise.generate(text, "Hello", **FAST),
    "rankwise.predict(run, df)": lambda text, classes, frames: rankwise.predict(text, frames["text"], **FAST).records,
    "rankwise.load_run(run)": lambda text, classes, frames: rankwise.load_run(text),
    "rankwise.load_run(folder)": lambda text, classes, frames: rankwise.load_run(text.folder),
    "rankwise.inspect(run)": lambda text, classes, frames: rankwise.inspect(text),
    "rankwise.report(run)": lambda text, classes, frames: rankwise.report(text),
    "rankwise.compare([run, name])": lambda text, classes, frames: rankwise.compare([text, "text"]),
    "run.export": lambda text, classes, frames: text.export("one"),
    "rankwise.export(run)": lambda text, classes, frames: rankwise.export(text, Path("two"), "portable"),
    "a merged export": lambda text, classes, frames: text.export("merged", "merged"),
    "the report": lambda text, classes, frames: text.report.read_text(),
    "metrics as a table": lambda text, classes, frames: type(frames["text"])(text.metrics),
    "train again": lambda text, classes, frames: rankwise.train(
        model="tiny-bert", data=labelled(24), run="classes", steps=1, method="head", restart=True, progress=False
    ),
}  # fmt: skip
SAYS = {
    "a classifier generates": (lambda text, classes, frames: classes.generate("Hello"), "classifier"),
    "a classifier generates two": (lambda text, classes, frames: classes.generate(["a", "b"]), "classifier"),
    "an unknown score": (lambda text, classes, frames: text.evaluate(OTHERS, score="exakt"), 'Did you mean "exact"'),
    "a score that is a number": (lambda text, classes, frames: text.evaluate(OTHERS, score=[5]), "a function"),
    "a classifier and a score": (lambda text, classes, frames: classes.evaluate(score="rouge_l"), "always has"),
    "an argument that is not there": (lambda text, classes, frames: text.evaluate(forgeting=1), '"forgetting"'),
    "a table without answers": (lambda text, classes, frames: classes.evaluate(frames["classes"][["text"]]), "label"),
    "two lambdas": (
        lambda text, classes, frames: text.evaluate(OTHERS, score=[lambda a, b: 1, lambda a, b: 0]), "several functions"
    ),
    "rows of training": (lambda text, classes, frames: text.evaluate(ROWS), "belongs to the data of the run"),
    "other columns": (lambda text, classes, frames: text.predict([{"frage": "a"}]), "frage"),
    "a missing file": (lambda text, classes, frames: text.evaluate("missing.csv"), "missing.csv"),
    "one text to predict": (lambda text, classes, frames: text.predict("Hello"), "Give a list"),
    "a number to predict": (lambda text, classes, frames: text.predict(5), "Give a list"),
    "a table to generate": (lambda text, classes, frames: text.generate(frames["text"]), "prompts"),
    "an export that is there": (lambda text, classes, frames: text.export("runs"), "already exists"),
    "an unknown format": (lambda text, classes, frames: text.export("x", "onnxx"), "onnxx"),
    "a run that is finished": (
        lambda text, classes, frames: rankwise.train(model="tiny-bert", data=labelled(9), run="text"), "--restart",
    ),
    "a plan of nothing": (lambda text, classes, frames: rankwise.plan(data=ROWS), "plan needs model"),
    "an empty prompt": (lambda text, classes, frames: text.generate(""), "empty"),
    "a run that is not there": (lambda text, classes, frames: rankwise.load_run("nowhere"), "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("call", WORKS)
def test_a_natural_call_works(text, classes, frames, call):
    WORKS[call](text, classes, frames)


@pytest.mark.parametrize("call", SAYS)
def test_any_other_call_says_what_to_do(text, classes, frames, call):
    tried, words = SAYS[call]
    with pytest.raises(RankwiseError) as caught:
        tried(text, classes, frames)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "shared",
    [
        {"columns": {"text": "body", "label": "queue"}},
        {"prompt": "{body}", "completion": "{queue}"},
        {"columns": {"prompt": "body", "completion": "queue"}},
    ],
)
def test_rows_without_answers_are_for_predict(shared):
    refuse_without_answers(shared, {"body": "a", "queue": "b"}, "new.csv")
    refuse_without_answers(shared, {"other": "a"}, "new.csv")  # which is told elsewhere
    with pytest.raises(RankwiseError, match=r"has no column 'queue'.*rankwise predict"):
        refuse_without_answers(shared, {"body": "a", "id": 1}, "new.csv")
