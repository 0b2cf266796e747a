"""What a row asks is what its task says, and a row that cannot be asked is named."""

from __future__ import annotations

import json

import pytest

from rankwise.config.tasks import BUILT_IN, TaskConfig, task_named
from rankwise.errors import ConfigError, DataError
from rankwise.evaluation.task_documents import task_documents


def asked(tmp_path, written, **task):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    return task_documents(TaskConfig(**{"task": "t", "data": str(file), "ask": "{q}", "score": "accuracy"} | task))


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"choices": ["a", "b", "c"], "gold": 2}, 2),
        ({"choices": ["a", "b", "c"], "answer": "B"}, 1),
        ({"choices": ["a", "b", "c"], "label": "c"}, 2),
        ({"choices": ["a", "b"], "gold": "0"}, 0),
        ({"choices": ["no", "yes"], "answer": True}, 1),
        ({"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}, 0),
    ],
)
def test_the_right_choice_by_number_letter_or_text(tmp_path, row, right):
    (question,) = asked(tmp_path, [{"q": "which?", **row}])
    assert question.right == right
    assert question.choices[right] == question.target


@pytest.mark.parametrize(
    ("choices", "labels", "target"),
    [
        (["true", "false"], [True, False], ["true", "false"]),  # was the wrong one, by its number
        (["False", "True"], [False, True], ["False", "True"]),
        (["yes", "no"], [True, False], ["yes", "no"]),
        (["bad", "good"], [True, False], ["good", "bad"]),
        (["1", "2", "3"], [1, 2, 1], ["1", "2", "1"]),  # meant something else than the same rows as CSV
        (["1", "2", "3", "4", "5"], [5, 1, "3"], ["5", "1", "3"]),
        (["2", "1"], [0, 1, 0], None),  # 0 is a number and no text, so 1 cannot be told
        (["1", "2", "3"], [1, 7], None),
        (["a", "b"], [0, "b"], None),
    ],
)
def test_labels_are_texts_where_they_are_among_the_choices(tmp_path, choices, labels, target):
    rows = [{"q": "which?", "label": label} for label in labels]
    if target is None:
        with pytest.raises(DataError, match="by number, letter or text"):
            asked(tmp_path, rows, answer="{label}", choices=choices)
        return
    assert [one.target for one in asked(tmp_path, rows, answer="{label}", choices=choices)] == target
    own = asked(tmp_path, [row | {"choices": choices} for row in rows])
    assert [choices[one.right] for one in own] == target


def test_numbers_among_choices_of_other_rows_are_no_texts(tmp_path):
    """As in questions of arithmetic, whose labels are numbers of choices that are numbers."""
    rows = [{"q": "2 + 1?", "choices": ["1", "3"], "gold": 1}, {"q": "4 + 4?", "choices": ["8", "6"], "gold": 0}]
    assert [one.target for one in asked(tmp_path, rows)] == ["3", "8"]


def test_a_right_choice_that_is_there_twice_is_refused(tmp_path):
    """The order of the two decided; of two that are wrong it decides nothing, and public sets have such rows."""
    row = {"q": "which?", "choices": ["yes", "yes", "no"]}
    with pytest.raises(DataError, match=r"rows.jsonl:1: the right choice 'yes' occurs twice"):
        asked(tmp_path, [row | {"gold": 1}])
    assert asked(tmp_path, [row | {"gold": 2}])[0].target == "no"
    assert asked(tmp_path, [row | {"gold": 1}], lettered=True)[0].target == "B"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"choices": ["a", "b"], "gold": 2}, "none of the 2 choices"),
        ({"choices": ["a", "b"], "gold": "x"}, "none of the 2 choices"),
        ({"choices": ["a", "b"]}, "which choice is right"),
        ({"choices": "ab", "gold": 0}, "a list of two or more texts"),
        ({"choices": ["a"], "gold": 0}, "a list of two or more texts"),
        ({"choices": ["a", " "], "gold": 0}, "choice 2 of 2 is empty"),
        ({"label": ""}, "the answer is empty"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, row, problem):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{problem}"):
        asked(tmp_path, [{"q": "which?", **row}])


@pytest.mark.parametrize(
    ("row", "what"),
    [({"q": "a\ud800", "a": "b"}, "question"), ({"q": "a", "a": "\udfff"}, "reference answer"),
     ({"q": "a\0", "a": "b"}, "question")],
)  # fmt: skip
def test_what_no_text_should_have_is_refused_as_in_rows_of_a_known_form(tmp_path, row, what):
    """Half a character ended in the tokenizer's TypeError."""
    with pytest.raises(DataError, match=rf"rows.jsonl:1: the {what} has (half a character|a NUL)"):
        asked(tmp_path, [row], answer="{a}", score="loss")


def test_more_choices_than_letters_are_refused(tmp_path):
    row = {"q": "which?", "choices": [f"choice {at}" for at in range(27)], "gold": 0}
    with pytest.raises(DataError, match=r"rows.jsonl:1: has 27 choices"):
        asked(tmp_path, [row], lettered=True)
    assert len(asked(tmp_path, [row])[0].choices) == 27


def test_one_choice_that_is_left_is_no_choice(tmp_path):
    with pytest.raises(DataError, match=r'rows.jsonl:1: "\{a\}; \{b\}" gives .same.'):
        asked(tmp_path, [{"q": "which?", "a": "same", "b": "same"}], choices="{a}; {b}")


def test_what_follows_several_contexts_is_not_empty(tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl:1: .* is empty"):
        asked(tmp_path, [{"q": ["Ann", "Bea"], "then": "", "gold": 1}], answer="{then}")


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r'no column "qq".* Did you mean "q"'):
        asked(tmp_path, [{"q": "which?", "choices": ["a", "b"], "gold": 0}], ask="{qq}")


def test_braces_of_a_row_are_text(tmp_path):
    row = {"q": "{answer} {0} {q.__class__}", "answer": "{q}"}
    (question,) = asked(tmp_path, [row], answer="{answer}", score="exact")
    assert question.prompts == ("{answer} {0} {q.__class__}",)
    assert question.target == "{q}"


def test_rows_without_choices_choose_between_all_answers(tmp_path):
    rows = [{"q": "sky?", "label": "blue"}, {"q": "grass?", "label": "green"}, {"q": "sea?", "label": "blue"}]
    found = asked(tmp_path, rows)
    assert [one.choices for one in found] == [("blue", "green")] * 3
    assert [one.right for one in found] == [0, 1, 0]


def test_labels_are_counted_over_all_rows(tmp_path):
    rows = [{"q": f"sky {at}?", "label": ("blue", "grey", "blue")[at % 3]} for at in range(9)]
    found = asked(tmp_path, rows, rows=2)
    assert len(found) == 2 and {one.labels for one in found} == {(("blue", 6), ("grey", 3))}
    assert not asked(tmp_path, [{"q": "which?", "choices": ["a", "b"], "gold": 0}])[0].labels


@pytest.mark.parametrize(("rows", "labels", "fits"), [(12, 6, True), (12, 7, False), (3, 2, True), (200, 50, True),
                                                      (200, 51, False), (4, 1, False)])  # fmt: skip
def test_answers_that_are_hardly_labels_are_not_chosen_between(tmp_path, rows, labels, fits):
    """An accuracy among answers that nobody sees says nothing."""
    made = [{"q": f"q {at}", "label": f"answer {at % labels}"} for at in range(rows)]
    if fits:
        assert len(asked(tmp_path, made)[0].choices) == labels
        return
    with pytest.raises(DataError, match=rf"score: \[accuracy\] needs choices.*{labels} different.*score: \[exact\]"):
        asked(tmp_path, made)


@pytest.mark.parametrize("named", ["choices", "{choices}", "options", "{options}"])
@pytest.mark.parametrize("form", ["list", "json"])
def test_choices_of_a_row_are_a_list_or_a_list_as_text(tmp_path, named, form):
    column = named.strip("{}")
    several = ["a, or so", "b; or not"]
    row = {"q": "which?", column: several if form == "list" else json.dumps(several), "answer": "b; or not"}
    (question,) = asked(tmp_path, [row], choices=named)
    assert question.choices == tuple(several) and question.right == 1


def test_choices_with_semicolons_in_one_column_have_their_right_one_elsewhere(tmp_path):
    """The first was taken as the right one, whatever the column answer said."""
    (question,) = asked(tmp_path, [{"q": "which?", "options": "x; y; z", "answer": "y"}], choices="{options}")
    assert question.choices == ("x", "y", "z") and question.target == "y"


def test_choices_in_no_known_form_are_refused_with_the_way_to_write_them(tmp_path):
    for text in ("A. x\nB. y", "x; y"):
        with pytest.raises(DataError, match=r'rows.jsonl:1: .*write JSON, \["first", "second"\]'):
            asked(tmp_path, [{"q": "which?", "options": text, "answer": "x"}], choices="options")


@pytest.mark.parametrize(
    ("answer", "references"),
    [("{a}", ["one", "two"]), (["{b}", "{c}"], ["three", "four"]), (["{c}", "{a}", "{c}"], ["four", "one", "two"]),
     ("so {b}", ["so three"])],
)  # fmt: skip
def test_references_come_from_a_list_or_from_several_columns(tmp_path, answer, references):
    row = {"q": "which?", "a": ["one", "two"], "b": "three", "c": "four"}
    (question,) = asked(tmp_path, [row], answer=answer, score="rouge_l")
    assert [question.target, *question.alternatives] == references


@pytest.mark.parametrize(("held", "problem"), [([], "one or more reference"), ([{"a": 1}], "one or more reference")])
def test_references_are_texts(tmp_path, held, problem):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{problem}"):
        asked(tmp_path, [{"q": "which?", "a": held}], answer="{a}", score="exact")
    with pytest.raises(DataError, match="pearson compares with one number"):
        asked(tmp_path, [{"q": "which?", "a": ["1", "2"]}], answer="{a}", score="pearson")


def test_letters_stand_below_the_question(tmp_path):
    (question,) = asked(tmp_path, [{"q": "which?", "choices": ["x", "y"], "gold": 1}], lettered=True)
    assert question.prompts == ("which?\nA. x\nB. y\nAnswer:",)
    assert (question.choices, question.target) == (("A", "B"), "B")


def test_several_contexts_are_the_choice(tmp_path):
    row = {"q": ["Ann, so Ann", "Ann, so Bea"], "then": "won.", "gold": 1}
    (question,) = asked(tmp_path, [row], answer="{then}")
    assert question.prompts == ("Ann, so Ann", "Ann, so Bea")
    assert (question.choices, question.right) == (("won.", "won."), 1)


def test_a_table_without_names_gets_them(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text('a\t1\tHe said "no\nb\t0\tYes\n')
    task = TaskConfig(task="t", data=str(file), ask="{text}", answer="{label}", header=("source", "label", "text"),
                    choices=("bad", "good"), score="accuracy")  # fmt: skip
    assert [(one.prompts[0], one.target) for one in task_documents(task)] == [('He said "no', "good"), ("Yes", "bad")]


def test_a_table_without_names_is_one_file(tmp_path):
    for data, problem in ((tmp_path, "header names the columns of one file"), (tmp_path / "no.csv", "cannot be read")):
        with pytest.raises(DataError, match=problem):
            task_documents(TaskConfig(task="t", data=str(data), ask="{q}", answer="{a}", header=("q", "a")))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"score": ["exact", "accuracy"]}, "make two tasks of it"),
        ({"score": ["exact", "exact"]}, "each once"),
        ({"score": []}, "each once"),
        ({"score": "regex"}, "needs a pattern"),
        ({"score": "exact", "pattern": "x"}, "needs a pattern"),
        ({"score": "regex", "pattern": "("}, "not a valid regular expression"),
        ({"score": "regex", "pattern": ""}, "would match every answer"),
        ({"ask": "\ud800 {q}", "answer": "{a}"}, "half a character"),
        ({"ask": "{q}", "score": "accuracy", "choices": ["a", "\ud800"]}, "half a character"),
        ({"chat": False}, "ask must give the question"),
        ({"answer": "{a}"}, "need ask"),
        ({"choices": ["a", "b"], "ask": "x"}, "hoices need one of the scores"),
        ({"scroe": "exact"}, 'Did you mean "score"'),
        ({"ask": "{q}", "score": "accuracy", "choices": ["one"]}, "two or more"),
        ({"ask": "{q}", "score": "accuracy", "choices": ["one", ""]}, "none empty"),
        ({"ask": "{q}", "score": "accuracy", "choices": ["one", "one"]}, "each once"),
        ({"ask": "{q}", "answer": "{a}", "columns": {"prompt": "p"}}, "leave out columns, which would change nothing"),
        (
            {"ask": "{q}", "answer": "{a}", "labels": ["a"], "format": "prompt"},
            "leave out format, labels, which would change nothing",
        ),
        (
            {"ask": "{q}", "answer": "{a}", "chat": False, "system": "Be brief."},
            "leave out system, which would change nothing",
        ),
        (
            {"ask": "{q}", "answer": "{a}", "header": ["q", "a"], "split": "test"},
            "leave out split, which would change nothing",
        ),
        ({"data": "text.txt", "score": "exact"}, "leave out score, which would change nothing"),
        ({"data": "text.txt", "ask": "{q}"}, "leave out ask, which would change nothing"),
        ({"ask": "{q}", "score": "accuracy", "answer": ["{a}", "{b}"]}, "work only with text metrics"),
        ({"max_new_tokens": 5}, "leave out max_new_tokens, which would change nothing"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        TaskConfig(**{"task": "t", "data": "rows.jsonl"} | settings)


def test_a_task_of_three_lines(tmp_path):
    file = tmp_path / "tickets.yaml"
    file.write_text("task: tickets\ndata: tickets.jsonl\nscore: [exact, json]\n")
    assert task_named(str(file)).score == ("exact", "json")
    assert task_named(str(file), rows=5).rows == 5
    file.write_text("data: tickets.jsonl\nscore: [exact, json]\n")
    assert task_named(str(file)).task == "tickets", "without a name it is called as its file is"
    rows = file.with_name("rows.jsonl")
    rows.write_text("{}")
    with pytest.raises(ConfigError, match="are both files of rows"):
        task_named(str(rows), data="other.jsonl")
    file.write_text("task: tickets\ndata: x.jsonl\nscroe: exact\n")
    with pytest.raises(ConfigError, match=r'tickets.yaml:3: unknown setting "scroe"'):
        task_named(str(file))


def test_an_unknown_task_names_the_nearest(monkeypatch):
    monkeypatch.delenv("RANKWISE_DATA", raising=False)
    with pytest.raises(ConfigError, match='Did you mean "arc_easy"'):
        task_named("arc_eazy")
    with pytest.raises(ConfigError, match="--data FILE"):
        task_named("arc_easy")


@pytest.mark.parametrize("name", ["held-out", "Held-Out", "boolq", "lm-eval-piqa"])
def test_no_task_of_ones_own_passes_for_another(tmp_path, name):
    """A file called held-out.jsonl once replaced the evaluation of the rows that a run held out."""
    (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert task_named(str(tmp_path / f"{name}.jsonl")).task == f"{name}-rows"
    (tmp_path / "mine.yaml").write_text(f"task: {name}\ndata: rows.jsonl\n")
    with pytest.raises(ConfigError, match=rf"mine.yaml: .*choose another name, such as task: my-{name}"):
        task_named(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", [name for name in BUILT_IN if BUILT_IN[name].get("ask")])
def test_every_row_of_the_public_sets_is_asked(name, shared_data, monkeypatch):
    monkeypatch.setenv("RANKWISE_DATA", str(shared_data))
    task = task_named(name)
    found = task_documents(task)
    assert len(found) > 90
    assert all(one.prompts[0].strip() and one.target for one in found)
    if task.chosen:
        assert all(0 <= one.right < len(one.choices) for one in found)
        assert len({one.right for one in found}) > 1 or name == "truthfulqa"  # whose first answer is the right one
