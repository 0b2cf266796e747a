"""Labels are found where rows have some, counted, and spellings that look like one are remarked."""

import csv

import pytest

from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.classes import read_targets
from rankwise.rows.forms.labels import Labels
from rankwise.rows.forms.proposals import guessed, label_among
from rankwise.rows.samples import tickets
from rankwise.rows.text.example import Example, Message


def labelled(answers, *, classification=False):
    found = Labels()
    for line, answer in enumerate(answers, 1):
        example = Example((Message("user", f"question {line}"), Message("assistant", answer)), f"rows.jsonl:{line}")
        found.add([example], classification=classification)
    return found


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ("Billing", "'Billing'"),
        ("billing ", "'billing '"),
        ("bil\u00adling", None),
        ("ｂilling", r"'\uff42illing'"),
        ("billing.", "'billing.'"),
    ],
)
def test_a_label_spelled_otherwise_is_remarked_with_both_counts_and_places(other, shown):
    found = labelled(["returns", "billing", other] + ["billing"] * 6 + ["returns"] * 6, classification=True)
    if shown is None:  # a soft hyphen is one letter more, once
        assert "differs by one letter" in found.remarks()[0]
        return
    (remark,) = [one for one in found.remarks() if "differ only in" in one]
    assert (
        f"{shown} (1 row, first rows.jsonl:3) and 'billing' (7 rows, first rows.jsonl:2, rows.jsonl:4, rows.jsonl:5)"
        in remark
    )
    assert "one letter" not in " ".join(found.remarks())


def test_composed_and_decomposed_letters_are_shown_as_different():
    (remark,) = labelled(["caf\u00e9", "cafe\u0301", "tea", "tea"], classification=True).remarks()
    assert r"'caf\xe9'" in remark and r"'cafe\u0301'" in remark


@pytest.mark.parametrize(
    ("rare", "frequent", "near"),
    [("biling", "billing", True), ("billimg", "billing", True), ("billings", "billing", True),
     ("bililng", "billing", True), ("nil", "nul", False),
     ("class 1", "class 2", False), ("blling", "billings", False), ("returns", "billing", False)],
)  # fmt: skip
def test_a_rare_label_that_is_nearly_a_frequent_one_is_remarked(rare, frequent, near):
    remarks = labelled([frequent] * 9 + [rare] * 2, classification=True).remarks()
    places = f"{rare!r} (2 rows, first rows.jsonl:10, rows.jsonl:11)"
    assert [places in one and f"{frequent!r} (9 rows" in one for one in remarks] == ([True] if near else [])
    assert not labelled([frequent] * 9 + [rare] * 4, classification=True).remarks(), "so often it is meant"


def test_few_answers_that_come_often_are_labels_and_others_are_not():
    assert labelled(["yes", "no"] * 5)
    assert not labelled(["yes", "no"] * 4), "too few of each to tell"
    assert not labelled([f"answer {n}" for n in range(51)] * 10)
    assert not labelled(["yes"] * 40)
    assert not labelled(["yes " * 60, "no"] * 9), "too long to be labels"
    assert labelled(["yes"], classification=True)
    assert labelled([f"answer {n}" for n in range(300)], classification=True)


def test_the_chosen_answer_of_a_pair_is_no_label():
    found = Labels()
    for line in range(40):
        question = Message("user", f"question {line}")
        sides = [(question, Message("assistant", text)) for text in (("yes", "no") if line % 2 else ("no", "yes"))]
        found.add([Example(sides[0], f"rows.jsonl:{line}", rejected=sides[1])], classification=False)
    assert not found


def test_a_row_with_several_answers_or_a_text_has_no_label():
    turns = [Message("user", "a"), Message("assistant", "b")]
    for example in (Example((*turns, *turns), "r:1"), Example((), "r:1", text="b")):
        found = Labels()
        assert found.add([example], classification=True) == "" and not found
        assert labelled(["x"] * 5).add([example], classification=False) == ""


def test_labels_of_several_sources_are_counted_together():
    one, other = labelled(["yes", "no"] * 5), labelled(["Yes", "no"] * 5)
    both = Labels.joined([one, labelled(["a", "b", "c"]), other])
    assert both.counts == {"yes": 5, "no": 10, "Yes": 5}
    (remark,) = both.remarks()
    assert "'Yes' (5 rows, first rows.jsonl:1, rows.jsonl:3" in remark


def test_the_label_that_is_guessed_is_the_one_that_words_tell(tmp_path):
    rows = [
        {
            "no": str(at),
            "body": f"Hello, {row['message']}",
            "queue": row["queue"],
            "priority": ("low", "high")[at % 7 < 3],
        }
        for at, row in enumerate(tickets())
    ]
    assert label_among(rows) == "queue" and guessed(rows[0], rows) == (["body"], "queue")
    assert label_among([row | {"queue": str(at)} for at, row in enumerate(rows)]) is None, "nothing tells the priority"
    assert label_among(rows[:12]) is None and guessed(rows[0] | {"label": "a"}, rows) == (["body"], "label")
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match="--text body --label queue") as refused:
        read_targets(DataConfig(path=str(tmp_path / "rows.csv")), ClassificationConfig())
    assert "--prompt" not in str(refused.value)
