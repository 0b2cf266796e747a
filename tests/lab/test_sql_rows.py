"""Every question of the lab's SQL has one right result, and a part of what is measured is new."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
from sql_rows import LEARNED, MEASURED, sql_rows

ORDERED = re.compile(r"SELECT .*?( FROM .*?) ORDER BY (\S+)( DESC)? LIMIT (\d+)")


@pytest.mark.parametrize("measured", [False, True])
def test_no_tie_decides_what_comes_first(measured):
    counted = 0
    for row in sql_rows(measured, 120, 3):
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(row["tables"])
            result = database.execute(row["completion"]).fetchall()
            assert result, "a question with no answer tells nothing"
            if "AS a WHERE" in row["completion"]:
                assert len({kind for kind, _ in result}) == len(result), "one of each kind"
            if found := ORDERED.fullmatch(row["completion"]):
                rest, key, down, limit = found.groups()
                values = database.execute(f"SELECT {key}{rest} ORDER BY {key}{down or ''}").fetchall()
                assert len(set(values[: int(limit) + 1])) == min(len(values), int(limit) + 1), row["completion"]
                counted += 1
    assert counted > 10


def test_databases_and_a_third_of_the_wordings_are_only_measured():
    learned, measured = sql_rows(False, 400, 0), sql_rows(True, 300, 0)
    assert not {two.name for pair in LEARNED for two in pair} & {two.name for pair in MEASURED for two in pair}
    old, every = ({row["wording"] for row in rows} for rows in (learned, measured))
    assert old < every and len(every) == 54 and len(old) == 36
    assert learned == sql_rows(False, 400, 0)
