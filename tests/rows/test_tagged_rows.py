"""Rows with tags and rows with spans: what they become, and what is refused in one sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.classifiers import write_rows
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.classes import read_tags
from rankwise.rows.forms.formats import find_format, parse_row
from rankwise.rows.text.example import TaggedWords

TEXT = "Anna met Boris Novak in Oslo."


def span(start: Any, end: Any, label: Any = "PER", **more: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, **more}


def parsed(row: dict[str, Any], labels: tuple[str, ...] = ()) -> TaggedWords:
    (example,) = parse_row(row, find_format(row, "rows:1"), "rows:1", labels=labels)
    assert example.tagged is not None
    return example.tagged


def test_spans_become_tags_of_words():
    tagged = parsed({"text": TEXT, "spans": [span(9, 20), span(0, 4), span(24, 28, "LOC", text="Oslo")]})
    assert tagged.tags == ("B-PER", "O", "B-PER", "I-PER", "O", "B-LOC", "O") and tagged.widened == ()


def test_words_keep_the_tags_that_they_have():
    tagged = parsed({"tokens": ["Anna", "met", "New York"], "tags": ["B-PER", "O", "B-LOC"]})
    assert tagged.words == ((0, 4), (5, 8), (9, 17)) and tagged.tags == ("B-PER", "O", "B-LOC") and tagged.is_split


def test_numbers_are_named_by_labels():
    row = {"tokens": ["Anna", "met"], "tags": [1, 0]}
    assert parsed(row, ("O", "B-PER", "I-PER")).tags == ("B-PER", "O")


def test_cells_of_tables_hold_lists_as_json():
    assert parsed({"text": TEXT, "spans": json.dumps([span(0, 4)])}).tags[0] == "B-PER"
    assert parsed({"tokens": '["Anna"]', "tags": '["B-PER"]'}).tags == ("B-PER",)


@pytest.mark.parametrize(("start", "end"), [(10, 20), (9, 18), (9, 19)])
def test_a_span_that_ends_inside_a_word_is_widened_and_counted(start, end):
    tagged = parsed({"text": TEXT, "spans": [span(start, end)]})
    assert tagged.tags == ("O", "O", "B-PER", "I-PER", "O", "O", "O") and tagged.widened == (TEXT[start:end],)


def test_white_space_around_a_span_is_no_reason_to_count_it():
    assert parsed({"text": TEXT, "spans": [span(8, 21)]}).widened == ()


BAD = {
    "crossing": ({"text": TEXT, "spans": [span(0, 8), span(5, 20, "X")]}, "0 to 8 ('PER') and 5 to 20 ('X') overlap"),
    "nested": ({"text": TEXT, "spans": [span(0, 20), span(9, 14)]}, "0 to 20 ('PER') and 9 to 14 ('PER') overlap"),
    "the same": ({"text": TEXT, "spans": [span(0, 4), span(0, 4, "LOC")]}, "overlap"),
    "outside": ({"text": TEXT, "spans": [span(24, 40)]}, "from 24 to 40, outside of the text of 29 characters"),
    "before the text": ({"text": TEXT, "spans": [span(-4, 4)]}, "from -4 to 4, outside"),
    "reversed": ({"text": TEXT, "spans": [span(4, 0)]}, "begins at 4 and ends at 0, so it is reversed"),
    "empty": ({"text": TEXT, "spans": [span(4, 4)]}, "empty (the end is exclusive)"),
    "white space": ({"text": TEXT, "spans": [span(4, 5)]}, "has no word"),
    "one word": ({"text": TEXT, "spans": [span(0, 2), span(2, 4)]}, "shares the word 'Anna'"),
    "an unknown key": ({"text": TEXT, "spans": [span(0, 4, begin=3)]}, "unknown key 'begin'"),
    "a missing key": ({"text": TEXT, "spans": [{"start": 0, "end": 4}]}, "span 1 has no label"),
    "no object": ({"text": TEXT, "spans": ["Anna"]}, "span 1 is 'Anna'"),
    "no list": ({"text": TEXT, "spans": None}, "write [] where the text has none"),
    "no number": ({"text": TEXT, "spans": [span("0", True)]}, "from '0' to true, and whole numbers are expected"),
    "no name": ({"text": TEXT, "spans": [span(0, 4, " ")]}, "the label of span 1 is ' '"),
    "another text": ({"text": TEXT, "spans": [span(0, 4, text="Ann")]}, "has the text 'Ann', but 'Anna' lies there"),
    "lengths": ({"tokens": ["Anna", "met"], "tags": ["O"]}, "there are 2 tokens and 1 tags"),
    "an empty token": ({"tokens": ["Anna", " "], "tags": ["O", "O"]}, "token 2 is empty"),
    "no tokens": ({"tokens": [], "tags": []}, "the list of tokens is empty"),
    "a token that is a number": ({"tokens": ["Anna", 3], "tags": ["O", "O"]}, "token 2 is 3; text is expected"),
    "a bare prefix": ({"tokens": ["Anna"], "tags": ["B-"]}, "tag 1 is 'B-', and a name is expected"),
    "a NUL in a word": ({"tokens": ["An\0na"], "tags": ["O"]}, "the token 1 has a NUL character at 2"),
    "half a character": ({"tokens": ["Anna"], "tags": ["B-\ud83d"]}, "tag 1 is 'B-\\ud83d'"),
    "a NUL in a tag": ({"tokens": ["Anna"], "tags": ["B-\0"]}, "tag 1 is 'B-\\x00'"),
    "a tag of null": ({"tokens": ["Anna"], "tags": [None]}, "tag 1 is null"),
    "half a character in a span": ({"text": TEXT, "spans": [span(0, 4, "\ud83d")]}, "label of span 1 is '\\ud83d'"),
    "a place in decimals": ({"text": TEXT, "spans": [span(0.0, 4)]}, "whole numbers are expected"),
    "a number without names": ({"tokens": ["Anna"], "tags": [3]}, "tag 1 is 3, and a name is expected (name the tags"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_refused_in_one_sentence(kind):
    row, said = BAD[kind]
    with pytest.raises(DataError) as error:
        parsed(row)
    told = str(error.value)
    assert told.startswith("rows:1: ") and said in told and "\n" not in told and told.endswith(".")


def facts(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    path = write_rows(folder / "rows.jsonl", rows)
    return read_tags(DataConfig(path=path, **settings), ClassificationConfig())


def test_both_tags_of_each_type_are_classes(tmp_path):
    targets = facts(tmp_path, [{"text": TEXT, "spans": [span(24, 28, "LOC"), span(0, 4)]}])
    assert targets.classes == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and targets.counts == (5, 1, 0, 1, 0)
    assert targets.form == "tags" and targets.loss_unit == "nats per word"


def test_names_of_labels_give_the_order(tmp_path):
    row = {"tokens": ["Anna", "met"], "tags": [1, 0]}
    assert facts(tmp_path, [row], labels=("I-PER", "O", "B-PER")).classes == ("I-PER", "O", "B-PER")


def test_parts_of_speech_are_classes_as_they_are(tmp_path):
    assert facts(tmp_path, [{"tokens": ["Anna", "met"], "tags": ["PROPN", "VERB"]}]).classes == ("PROPN", "VERB")


@pytest.mark.parametrize(("rows", "said"), [
    ([{"text": TEXT, "spans": []}] * 2, "every word of this and all other rows has the tag 'O'"),
    ([{"tokens": ["a", "b"], "tags": ["S-PER", "O"]}], "rows.jsonl:1: the tag 'S-PER' is not O, B-TYPE or I-TYPE"),
    ([{"tokens": ["a", "b"], "tags": ["B-PER", "PER"]}], "the tag 'PER' is not O, B-TYPE or I-TYPE"),
    ([{"tokens": ["a"], "tags": ["O"]}, {"text": TEXT, "spans": []}], "rows.jsonl:2: is in the spans format"),
])  # fmt: skip
def test_tags_that_cannot_be_told_apart_are_refused(tmp_path, rows, said):
    with pytest.raises(DataError) as error:
        facts(tmp_path, rows)
    assert said in str(error.value)


def test_all_bad_rows_are_listed_at_once(tmp_path):
    bad = [{"text": TEXT, "spans": [span(9, 3)]}, {"text": TEXT, "spans": [span(0, 4)]}, {"text": TEXT, "spans": [3]}]
    assert refused_lines(tmp_path, bad) == ["rows.jsonl:1", "rows.jsonl:3"]


def test_tags_of_other_schemes_are_listed_with_the_other_bad_rows(tmp_path):
    words = ["a", "b"]
    bad = [{"tokens": words, "tags": ["O"]}, {"tokens": words, "tags": ["S-X", "O"]}]
    assert refused_lines(tmp_path, bad) == ["rows.jsonl:1", "rows.jsonl:2"]


def refused_lines(folder, rows):
    with pytest.raises(DataError) as error:
        facts(folder, rows)
    return [line.split(": ")[0].rpartition("/")[2] for line in str(error.value).splitlines()]
