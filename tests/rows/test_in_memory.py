"""Rows given from Python become a file that says the same, whatever library held them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.files.in_memory import rows_file
from rankwise.rows.images.decode import decode
from rankwise.rows.sources import open_source

ROWS = [{"prompt": "2 + 2", "completion": "4"}, {"prompt": "zwölf", "completion": "\u2028 zw\nei"}]


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_list_a_frame_and_a_dataset_of_the_same_rows_are_the_same_file():
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    files = {rows_file(ROWS), rows_file(tuple(ROWS)), rows_file(pandas.DataFrame(ROWS))}
    files.add(rows_file(datasets.Dataset.from_list(ROWS)))
    assert len(files) == 1
    assert lines_of(files.pop()) == ROWS


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=3), min_size=1, max_size=4))
def test_whatever_json_can_hold_is_read_back_as_it_was(rows):
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(DataError):
            rows_file(rows)
        return
    assert lines_of(rows_file(rows)) == rows


def test_other_rows_are_another_file():
    assert rows_file(ROWS) != rows_file(ROWS[:1])


def test_numbers_of_numpy_dates_and_missing_values_are_what_json_has_for_them():
    pandas = pytest.importorskip("pandas")
    day = datetime.date(2026, 11, 27)
    row = {"n": np.int64(3), "x": np.float32(0.5), "yes": np.True_, "none": float("nan"), "na": pandas.NA, "day": day}
    row |= {"nat": pandas.NaT, "stamp": pandas.Timestamp("2026-11-27 10:00")}
    (read,) = lines_of(rows_file([row]))
    assert read == {
        "n": 3, "x": 0.5, "yes": True, "none": None, "na": None, "day": "2026-11-27", "nat": None,
        "stamp": "2026-11-27T10:00:00",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["no rows"]),
        ({"prompt": ["a"]}, ["dict", "list of dicts"]),
        (3, ["int", "list of dicts"]),
        ([{"a": "b"}, "text"], ["row 1 is a str"]),
        ([{"a": b"x"}, {"b": {1, 2}}], ["row 0, column 'a' holds a bytes", "row 1, column 'b' holds a set"]),
        ([{"a": float("inf")}], ["row 0, column 'a' is inf"]),
        ([{"a": np.zeros(3)}], ["row 0, column 'a' holds a ndarray"]),
        ([{1: "a", "1": "b"}], ["row 0 has two columns of the same name"]),
        ([{"a": "\ud800"}], ["row 0, column 'a' holds a lone surrogate"]),
    ],
    ids=["empty", "columns", "number", "text", "bytes and set", "infinity", "array", "names", "surrogate"],
)
def test_what_cannot_be_written_is_refused_by_row_and_column(rows, words):
    with pytest.raises(DataError) as caught:
        rows_file(rows)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_dictionary_of_splits_asks_for_one_of_them():
    datasets = pytest.importorskip("datasets")
    with pytest.raises(DataError, match="train, test"):
        rows_file(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS)))


def test_labels_of_a_dataset_that_have_names_are_written_as_names_as_those_of_the_hub_are():
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, kinds)
    assert [row["label"] for row in lines_of(rows_file(rows))] == ["good", "bad", None]


# Images


def image_rows():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    Image.fromarray(pixels[2]).save("third.png")
    return pixels, [
        {"image": Image.fromarray(pixels[0]), "label": "cat"},
        {"image": pixels[1], "label": "dog"},
        {"image": "third.png", "label": "dog"},
        {"image": Path("third.png"), "label": "dog"},
        {"image": Path("third.png").read_bytes(), "label": "dog"},
    ]


def test_images_in_memory_are_written_once_and_read_as_they_were():
    pixels, rows = image_rows()
    spec = DataConfig(path=str(rows_file(rows)))
    reading = open_source(spec, spec.all_sources[0])
    examples = [example for chunk in reading.chunks() for row in chunk for example in row]
    assert reading.skipped == []
    read = [np.asarray(decode(example.image, example.where).picture) for example in examples]
    assert all((one == pixels[number]).all() for one, number in zip(read, (0, 1, 2, 2, 2), strict=True))
    assert [example.messages[1].content for example in examples] == ["cat", "dog", "dog", "dog", "dog"]
    assert len(list(Path("runs/.rows/images").iterdir())) == 3
    assert rows_file(rows) == Path(spec.path)


def test_a_dataset_of_images_keeps_the_bytes_of_its_files():
    datasets = pytest.importorskip("datasets")
    image_rows()
    content = Path("third.png").read_bytes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    held = {"image": [{"bytes": content, "path": None}], "label": [1]}
    (row,) = lines_of(rows_file(datasets.Dataset.from_dict(held, features=features)))
    assert row["label"] == "dog"
    assert (Path("runs/.rows") / row["image"]).read_bytes() == content


def test_images_that_cannot_be_written_are_named():
    with pytest.raises(DataError) as refused:
        rows_file([{"image": np.zeros((8, 8)), "label": 1}, {"image": "missing.png", "label": 2}])
    assert "row 0, column 'image': is an array of the type float64 and the shape (8, 8)" in str(refused.value)
    assert "row 1, column 'image': missing.png cannot be read (No such file or directory)" in str(refused.value)
    text = {"prompt": "a", "completion": "b", "path": "missing.png"}
    assert lines_of(rows_file([text])) == [text]
