"""A classifier from Python: what it is given is read as it was in training, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rankwise
from kit import command
from kit.classifiers import encoder_folder, labelled, write_rows
from rankwise.errors import DataError

SETTINGS = {"model": "tiny-bert", "steps": 2, "method": "head", "progress": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encoder_folder(Path("tiny-bert"))
        yield folder


@pytest.fixture(scope="module")
def run(home):
    return rankwise.train(data=labelled(12), run="films", max_length=26, **SETTINGS)


def test_the_classes_are_those_that_the_command_writes(run, home):
    texts = [row["text"] for row in labelled(3)]
    write_rows("texts.jsonl", [{"text": text} for text in texts])
    done = command.rankwise("predict", "films", "--data", "texts.jsonl", "--out", "out.jsonl", "--quiet")
    assert done.exit_code == 0, done.output
    theirs = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for mine, other in zip(run.predict(texts), theirs, strict=True):
        assert mine["probabilities"]["bad"] == pytest.approx(other["probability_bad"], abs=1e-6)
    assert run.predict([("a film", "")]) == run.predict(["a film"]) == run.predict([["a film", ""]])
    assert run.predict([("a film", "so bad")]) != run.predict([("a film", "")])
    assert run.predict([]) == []


class Table:
    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("a film", "one text, 'a film'"),
        (Table(), "a table"),
        (5, "of type int"),
        ([5, "a film", None, ("a", "b", "c"), {"text": "a"}, " ", ("a", 1)], "item 0 of the texts to classify: is 5"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_texts_is_refused(run, texts, said):
    with pytest.raises(DataError) as caught:
        run.predict(texts)
    assert said in str(caught.value)
    places = [number for number in range(7) if f"item {number} of the texts" in str(caught.value)]
    assert places == [0, 2, 3, 4, 5, 6] * ("item " in said), "all wrong items at once"


def test_a_text_longer_than_a_row_may_be_is_refused_or_cut_as_the_run_s_rows_were(run):
    with pytest.raises(DataError, match=r"item 1 of the texts to classify: has 32 tokens, .* may have 26 "):
        run.predict(["a film", "a " * 30])
    cut = rankwise.train(data=labelled(12), run="cut", max_length=26, too_long="truncate", **SETTINGS)
    assert cut.predict(["a " * 30]) == cut.predict(["a " * 24])


def test_a_run_whose_best_is_the_head_that_it_began_with_leaves_nothing_and_begins_again(home):
    settings = SETTINGS | {"method": "lora", "steps": 8, "batch_size": 4, "learning_rate": 1e-9, "held_out": 12}
    for _ in range(2):
        again = rankwise.train(data=labelled(60), run="again", keep="best", restart=True, **settings)
        assert again.results["kept_step"] == 0
        assert not (again.folder / "best").exists() and (again.folder / "adapter").is_dir()
