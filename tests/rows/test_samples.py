"""Sample rows are the same everywhere, the new ones were not learned, and pictures are a folder that trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.command import done, printed, rankwise
from rankwise.rows.files.files import records
from rankwise.rows.samples import PRODUCTS, SAMPLES


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_a_file_of_two_filled_columns_without_a_repeated_text(name):
    told = printed("data", "sample", name, "--out", f"{name}.csv")
    rows = [row for _, row in records(Path(f"{name}.csv"))]
    assert told == {"out": f"{name}.csv", "rows": len(rows)} and 40 <= len(rows) <= 96
    assert all(list(row) == list(SAMPLES[name].columns) and all(row.values()) for row in rows)
    assert len({row[SAMPLES[name].columns[0]] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["tickets", "replies", "orders"])
def test_new_rows_were_not_learned(name):
    learned, new = ({row[SAMPLES[one].columns[0]] for row in SAMPLES[one].rows} for one in (name, f"new-{name}"))
    assert not learned & new


def test_pictures_are_a_folder_of_images_for_each_product():
    pytest.importorskip("PIL")
    assert printed("data", "sample", "pictures", "--out", "pictures")["pictures"] == 90
    assert {path.name: len(list(path.iterdir())) for path in Path("pictures").iterdir()} == dict.fromkeys(PRODUCTS, 30)
    assert len({path.read_bytes() for path in Path("pictures").rglob("*.png")}) == 90
    assert "lamp 30, mug 30, shirt 30" in done("data", "check", "pictures").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ticket", "--out", "a.csv"), 'Did you mean "tickets"?'),
        (("tickets", "--out", "here.csv"), "already exists"),
        (("tickets", "--out", "a.ods"), "must end in .jsonl"),
    ],
)
def test_samples_that_cannot_be_written_are_refused(words, said):
    Path("here.csv").write_text("mine")
    result = rankwise("data", "sample", *words)
    assert result.exit_code == 2 and said in result.stderr and Path("here.csv").read_text() == "mine"
