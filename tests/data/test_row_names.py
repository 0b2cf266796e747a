"""Names of rows in arrays and on the disk are the names they were made of, and damage is never another row's name."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.data.row_names import NAMES, STARTS, RowNames
from rankwise.data.sequences import EncodedRows
from rankwise.errors import DataError
from rankwise.text.tokenize import Tokens
from sampling import draws

TEXTS = st.lists(st.text(max_size=12), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


def written(names, folder):
    shutil.rmtree(folder / "d", ignore_errors=True)
    (folder / "d").mkdir()
    names.write(folder / "d")
    return folder / "d"


@settings(max_examples=draws(60), deadline=None)
@given(parts=st.lists(TEXTS, max_size=3))
def test_names_come_back_one_part_after_another(folder, parts):
    names = RowNames.gathered([RowNames.of(part) for part in parts])
    expected = [name for part in parts for name in part]
    assert list(names) == expected
    assert list(RowNames.read(written(names, folder), len(expected)) or ()) == expected


def test_a_half_character_of_a_file_s_name_is_replaced():
    assert list(RowNames.of(["\udcff.png", "a.png"])) == ["?.png", "a.png"]


@pytest.mark.parametrize("name", [NAMES, STARTS])
def test_files_that_lost_bytes_are_refused(folder, name):
    file = written(RowNames.of(["a.jsonl:1", "a.jsonl:2"]), folder) / name
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged"):
        RowNames.read(file.parent, 2)


def test_rows_keep_their_names_through_parts_and_files(folder):
    def part(*names):
        return EncodedRows.of(Tokens((1, 2), (False, False), target=1.0, name=name) for name in names)

    rows = EncodedRows.gathered([part("a:1", "a:2"), EncodedRows.of([]), part("b:1")])
    shutil.rmtree(folder / "rows", ignore_errors=True)
    (folder / "rows").mkdir()
    rows.write(folder / "rows")
    for one in (rows, EncodedRows.read(folder / "rows")):
        assert [row.name for row in one] == ["a:1", "a:2", "b:1"]
    assert EncodedRows.of([Tokens((1, 2), (False, True))])[0].name is None
    assert np.array_equal(rows.starts, [0, 2, 4, 6])
