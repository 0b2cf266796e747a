"""Documents in arrays and on the disk are the rows they were made from."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.text.tokenize import Tokens

PAIRS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=20)
ROWS = st.lists(PAIRS, max_size=12)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


def of(rows, *, arrays=False):
    kind = np.array if arrays else tuple
    return EncodedRows.of(Tokens(kind([i for i, _ in row]), kind([bool(one) for _, one in row])) for row in rows)


def pairs(tokens):
    return [(int(i), bool(one)) for i, one in zip(tokens.ids, tokens.loss_mask, strict=True)]


def rows_of(sequences):
    return [pairs(tokens) for tokens in sequences]


def written(sequences, place):
    shutil.rmtree(place / "d", ignore_errors=True)
    (place / "d").mkdir()
    return write(sequences, place / "d")


def write(sequences, folder):
    """By way of files without names."""
    writer = RowWriter(folder)
    writer.add(sequences)
    writer.write(folder)
    return folder


def supervised(row):
    return sum(one for _, one in row[1:])


@settings(max_examples=draws(80), deadline=None)
@given(rows=ROWS, arrays=st.booleans())
def test_documents_are_the_rows_they_were_made_of(rows, arrays):
    sequences = of(rows, arrays=arrays)
    assert len(sequences) == len(rows)
    assert rows_of(sequences) == rows
    assert (sequences.ids.dtype, sequences.loss_mask.dtype, sequences.starts.dtype) == (np.int32, np.bool_, np.int64)
    assert [tokens.loss_count for tokens in sequences] == [supervised(row) for row in rows]


@settings(max_examples=draws(80), deadline=None)
@given(rows=ROWS, numbers=st.lists(st.integers(-15, 15), max_size=5), cut=st.slices(12))
def test_an_index_a_slice_and_an_index_from_the_end_mean_what_they_mean_for_a_list(rows, numbers, cut):
    sequences = of(rows)
    assert [pairs(tokens) for tokens in sequences[cut]] == rows[cut]
    for number in numbers:
        if -len(rows) <= number < len(rows):
            assert pairs(sequences[number]) == pairs(sequences[np.int64(number)]) == rows[number]
        else:
            with pytest.raises(IndexError):
                sequences[number]


@settings(max_examples=draws(80), deadline=None)
@given(parts=st.lists(ROWS, max_size=5))
def test_parts_gathered_are_their_rows_one_part_after_another(parts):
    gathered = EncodedRows.gathered([of(rows) for rows in parts])
    together = of([row for rows in parts for row in rows])
    for name in ("ids", "loss_mask", "starts"):
        one, other = getattr(gathered, name), getattr(together, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@settings(max_examples=draws(60), deadline=None)
@given(parts=st.lists(ROWS, max_size=4))
def test_what_is_written_and_read_again_is_the_same_also_in_parts_and_twice(place, parts):
    sequences = EncodedRows.gathered([of(rows) for rows in parts])
    read = EncodedRows.read(written(sequences, place))
    assert rows_of(read) == rows_of(sequences) == [row for rows in parts for row in rows]
    assert (read.ids.dtype, read.loss_mask.dtype, read.starts.dtype) == (np.int32, np.bool_, np.int64)
    again = EncodedRows.gathered([read, sequences])
    (place / "d2").mkdir(exist_ok=True)
    assert rows_of(EncodedRows.read(write(again, place / "d2"))) == 2 * rows_of(sequences)


def test_a_file_is_read_from_the_disk_as_it_is_needed_and_cannot_be_written_into(place):
    read = EncodedRows.read(written(of([[(1, False), (2, True)], [(3, True)]]), place))
    assert isinstance(read.ids, np.memmap) and isinstance(read.loss_mask, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        read[1].ids[0] = 7


@settings(max_examples=draws(80), deadline=None)
@given(rows=ROWS.filter(bool), data=st.data(), mapped=st.booleans())
def test_chosen_rows_and_their_counts_are_those_of_the_documents_as_often_as_chosen(place, rows, data, mapped):
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    sequences = EncodedRows.read(written(of(rows), place)) if mapped else of(rows)
    chosen = SelectedRows(sequences, np.array(numbers, np.int64))
    wanted = [rows[number] for number in numbers]
    assert len(chosen) == len(wanted)
    assert rows_of(chosen) == wanted
    assert chosen.tokens == sum(map(len, wanted))
    assert chosen.loss_count == sum(map(supervised, wanted)) == sum(tokens.loss_count for tokens in chosen)
    assert rows_of(chosen[1:7:2]) == wanted[1:7:2]
    assert [pairs(chosen[index]) for index in range(-len(wanted), 0)] == wanted
    with pytest.raises(IndexError):
        chosen[len(wanted)]


# Where each row came from

NAMES = st.lists(st.text(max_size=12), max_size=8)


def named(names):
    return EncodedRows.of(Tokens((1, 2), (False, False), target=1.0, name=name) for name in names)


@settings(max_examples=draws(60), deadline=None)
@given(parts=st.lists(NAMES, max_size=3))
def test_names_come_back_one_part_after_another(place, parts):
    rows = EncodedRows.gathered([named(part) for part in parts])
    for one in (rows, EncodedRows.read(written(rows, place))):
        assert [row.name for row in one] == [name for part in parts for name in part]


def test_a_half_character_of_a_file_s_name_is_replaced():
    assert [row.name for row in named(["\udcff.png", "a.png"])] == ["?.png", "a.png"]
    assert EncodedRows.of([Tokens((1, 2), (False, True))])[0].name is None
