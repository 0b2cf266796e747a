"""Answers with a form, against tables that were written by hand: each is judged as its table says."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing

import pytest

from kit.call_pairs import ADD, ONE, PAIRS, PLAIN, ROME, THREE, TIME, tagged
from kit.hostile_queries import QUERIES
from kit.sql_pairs import OTHER, SAME, TABLES
from rankwise.evaluation import scoring
from rankwise.evaluation.scoring import QueryProcess, field_figures, json_exact, json_valid, number


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_calls_are_right_by_function_by_arguments_and_as_a_whole(number):
    reference, answer, right = PAIRS[number]
    rows = [getattr(scoring, f"tool_{what}")(answer, reference) for what in ("call", "function", "arguments")]
    assert "".join(letter if row[0] == row[1] > 0 else "-" for letter, row in zip("wfa", rows, strict=True)) == right


def test_missing_and_needless_calls_are_counted_apart():
    assert scoring.tool_missing(tagged(ROME, TIME), THREE) == [1, 3] == scoring.tool_needless(THREE, tagged(ROME, TIME))
    assert scoring.tool_missing(PLAIN, ONE) == [1, 1] and scoring.tool_needless(PLAIN, ONE) == [0, 0]
    assert scoring.tool_arguments(tagged(ADD, TIME.replace("CET", "UTC")), THREE) == [1, 2]


@pytest.fixture(scope="module")
def queries():
    with closing(QueryProcess()) as process:
        yield process


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("shop.db") as made:
        made.executescript(TABLES)
    made.close()
    return tmp_path / "shop.db"


def test_queries_are_right_by_their_results(queries, shop):
    assert len(SAME) + len(OTHER) == 120
    for database in (("tables", TABLES), ("database", str(shop))):
        wrong = [pair for pair in SAME if queries.judged(pair[1], pair[0], database) is not True]
        assert wrong + [pair for pair in OTHER if queries.judged(pair[1], pair[0], database) is not False] == []


def test_no_query_writes_reaches_outside_or_ends_the_judging(queries, shop):
    before = hashlib.sha256(shop.read_bytes()).digest()
    database, count = ("database", str(shop)), "SELECT count(*) FROM customer"
    assert [query for query in QUERIES if queries.judged(query, count, database) is not False] == []
    assert queries.judged("SELECT 5", count, database) is True
    assert hashlib.sha256(shop.read_bytes()).digest() == before and [one.name for one in shop.parent.iterdir()] == [
        shop.name
    ]


@pytest.mark.parametrize(
    ("reference", "database", "why"),
    [
        ("SELECT price", ("tables", TABLES), "no such column"),
        ("DROP TABLE customer", ("tables", TABLES), "not authorized"),
        ("", ("tables", TABLES), "it is no query"),
        ("SELECT 1", ("tables", "CREATE TABLE"), "incomplete input"),
        ("SELECT 1", ("tables", TABLES + "ATTACH 'other.db' AS other;"), "not authorized"),
        ("SELECT 1", ("tables", TABLES + "SELECT load_extension('evil');"), "not authorized"),
        ("SELECT 1", ("database", "absent.db"), "there is no file"),
        ("SELECT 1 FROM customer", ("database", "other.db"), "not a database"),
        (QUERIES[15], ("tables", TABLES), "takes more than"),
    ],
)
def test_a_reference_without_a_result_is_refused_with_the_reason(queries, shop, reference, database, why):
    (shop.parent / "other.db").write_bytes(b"no database" * 1000)
    database = (database[0], str(shop.parent / database[1]) if database[0] == "database" else database[1])
    assert why in str(queries.judged(reference, reference, database))
    said = scoring.problem_of_references(["sql"], [("rows.jsonl:3", reference, database)])
    assert said is not None and said.startswith("rows.jsonl:3: the reference query has no result") and why in said


@pytest.mark.parametrize(
    ("answer", "target", "settings", "right"),
    [
        ("5.04", "5", {"tolerance": 0.01}, True), ("5.06", "5", {"tolerance": 0.01}, False),
        ("-99", "-100", {"tolerance": 0.01}, True), ("0.001", "0", {"tolerance": 0.01}, False),
        ("5.04", "5", {}, False), ("5 km", "5 km", {"units": True}, True), ("5km", "5 km", {"units": True}, True),
        ("5 m", "5 km", {"units": True}, False), ("5", "5 km", {"units": True}, False), ("5 m", "5 km", {}, True),
        ("5 apples", "5", {"units": True}, True), ("#### 7 %", "so #### 7%", {"units": True}, True),
        ("about 5.01 km", "5 km", {"units": True, "tolerance": 0.01}, True),
    ],
)  # fmt: skip
def test_numbers_may_be_near_and_have_units(answer, target, settings, right):
    assert number(answer, target, **settings) == [float(right), 1.0]


@pytest.mark.parametrize(
    ("answer", "exact", "valid"),
    [
        ('{"b": [1, 2], "a": {"x": 1.0}}', 1, 1), ('```json\n{"a": {"x": 1}, "b": [1, 2]}\n```', 1, 1),
        ('{"a": {"x": 1}, "b": [2, 1]}', 0, 1), ('{"a": {"x": true}, "b": [1, 2]}', 0, 1), ("7", 0, 1),
        ('{"a": {"x": 1}, "b": [1, 2]} Done.', 0, 0), ("", 0, 0), ("[" * 100_000, 0, 0), ('{"a": 1, "a": 1}', 0, 0),
    ],
)  # fmt: skip
def test_json_is_valid_and_exact_as_a_whole(answer, exact, valid):
    target = '{"a": {"x": 1}, "b": [1, 2]}'
    assert (json_exact(answer, target), json_valid(answer, target)) == ([exact, 1.0], [valid, 1.0])


def test_the_figures_of_each_field():
    references = ['{"sum": 100, "tags": ["a", "b", "b"], "to": {"name": "Ada"}}', '{"sum": 7, "to": {"name": "Ben"}}']
    answers = ['{"sum": 100.5, "tags": ["b", "a", "c"], "to": {"name": "Ada"}, "odd": 1}', "no JSON"]
    found = field_figures(answers, [(one,) for one in references], None)
    assert found["sum"] == {"exact": [[0, 1], [0, 1]], "missing": [[0, 1], [1, 1]], "near": [[1, 1], [0, 1]]}
    assert found["tags"] == {"exact": [[0, 1]], "missing": [[0, 1]], "f1": [[2, 3, 3]], "extra": [[0, 1]]}
    assert found["to.name"] == {"exact": [[1, 1], [0, 1]], "missing": [[0, 1], [1, 1]]}
    assert found["(other fields)"] == {"extra": [[1, 1], [0, 1]]}
    assert field_figures(answers, [(one,) for one in references], 0.001)["sum"]["near"] == [[0, 1], [0, 1]]
