"""A table of answers has the dialect of the table that the rows came from, and a workbook keeps what it had."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from rankwise.config.data import Rows
from rankwise.errors import DataError
from rankwise.rows.files.files import records
from rankwise.rows.files.output import SUFFIXES, Origin, file_of

DIALECTS = {
    "semicolon-cp1252": (";", "cp1252", b"", "\r\n"),
    "semicolon-bom": (";", "utf-8", codecs.BOM_UTF8, "\r\n"),
    "comma": (",", "utf-8", b"", "\n"),
    "pipe": ("|", "utf-8", b"", "\n"),
    "utf-16": ("\t", "utf-16-le", codecs.BOM_UTF16_LE, "\r\n"),
    "utf-16-be": (",", "utf-16-be", codecs.BOM_UTF16_BE, "\n"),
}
TEXTS = ["Größe fehlt", 'sagt "nein"; oder, |ja', "zwei\nZeilen"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(given: Path, out: Path, answers, sheet=None, warned=None):
    """`given` with an answer and a probability beside each row, as the file `out`."""
    rows = [(where, row) for where, row in records(given)]
    table = [row | {"prediction": answer, "p": 0.25} for (_, row), answer in zip(rows, answers, strict=True)]
    origin = Origin(given, Rows(path=str(given)), sheet, [where for where, _ in rows], ["prediction", "p"])
    out.write_bytes(file_of(table, out, origin, (warned if warned is not None else []).append))
    return out.read_bytes(), [row for _, row in records(out)]


@pytest.mark.parametrize("name", DIALECTS)
def test_a_table_goes_out_in_the_dialect_in_which_it_came(name):
    delimiter, codec, mark, end = DIALECTS[name]
    head = delimiter.join(("nr", "text")) + end
    body = "".join(f'{n}{delimiter}"{text.replace(chr(34), chr(34) * 2)}"{end}' for n, text in enumerate(TEXTS))
    Path("in.csv").write_bytes(mark + (head + body).encode(codec))
    content, rows = written(Path("in.csv"), Path("out.csv"), TEXTS[::-1])
    assert content.startswith(
        mark + delimiter.join(("nr", "text", "prediction", "p")).encode(codec) + end.encode(codec)
    )
    number = "0,25" if delimiter == ";" else "0.25"
    assert [tuple(row.values()) for row in rows] == [
        (str(n), text, other, number) for n, (text, other) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))
    ]


def test_numbers_keep_their_point_where_those_of_the_table_have_one_and_the_line_of_excel_stays():
    Path("in.csv").write_text("sep=;\nnr;text\n1.5;a\n")
    content, _ = written(Path("in.csv"), Path("out.csv"), ["b"])
    assert content == b"sep=;\nnr;text;prediction;p\n1.5;a;b;0.25\n"


def test_a_character_that_the_encoding_lacks_is_written_in_utf_8_and_said():
    Path("in.csv").write_bytes("text\tnr\nGröße\t1\n".encode("cp1252"))
    warned = []
    content, rows = written(Path("in.csv"), Path("out.csv"), ["→"], warned=warned)
    assert content.startswith(codecs.BOM_UTF8) and rows[0]["text"] == "Größe" and rows[0]["prediction"] == "→"
    assert "because cp1252 has no character '→'" in warned[0].text


def test_a_workbook_keeps_its_cells_and_gets_columns_that_are_texts_and_no_formulas():
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    sheet = book.create_sheet("Tickets")
    sheet.column_dimensions["A"].width = 40
    for row in ([], [None, "text", "sum"], [None, "a", 1], [], [None, "b", "=C3+1"]):
        sheet.append(row)
    sheet["C5"].number_format = "0.00"
    book.save("in.xlsx")
    places = ["in.xlsx:3", "in.xlsx:5"]
    rows = [{"text": "a", "sum": "1", "prediction": "=1+1", "tags": ["x"]}, {"text": "b", "prediction": "#N/A\x01"}]
    origin = Origin(Path("in.xlsx"), Rows(path="in.xlsx"), "Tickets", places, ["prediction", "tags"])
    Path("out.xlsx").write_bytes(file_of(rows, Path("out.xlsx"), origin))
    out = openpyxl.load_workbook("out.xlsx")
    assert out.sheetnames == ["Notes", "Tickets"]
    cells = out["Tickets"]
    assert [cells.cell(row, 4).value for row in range(1, 6)] == [None, "prediction", "=1+1", None, "#N/A\ufffd"]
    assert cells["D3"].data_type == "s" and cells["D5"].data_type == "s" and cells["E3"].value == '["x"]'
    assert cells["C5"].value == "=C3+1" and cells["C5"].number_format == "0.00"
    assert cells.column_dimensions["A"].width == 40
    with pytest.raises(DataError, match="32,768 characters, and a cell of a workbook holds 32,767"):
        file_of([{"prediction": "x" * 32_768}], Path("new.xlsx"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_that_came_from_no_table_go_into_any_file(suffix):
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    out = Path(f"new{suffix}")
    out.write_bytes(file_of([{"text": "ä", "p": 0.5}, {"text": "b", "n": [1]}], out))
    rows = [row for _, row in records(out)]
    assert rows[0]["text"] == "ä" and str(rows[0]["p"]) == "0.5" and rows[1]["n"] in ("[1]", [1])


def test_an_image_without_a_name_is_found_again_by_its_place():
    rows = [
        {"image": {"bytes": b"1", "path": None}, "prediction": "a"},
        {"image": {"bytes": b"2", "path": "b.png"}, "prediction": "b"},
    ]
    origin = Origin(Path("in.npz"), Rows(path="in.npz"), None, ["in.npz:1", "in.npz:2"], ["prediction"])
    assert file_of(rows, Path("out.csv"), origin) == b"image,prediction\nin.npz:1,a\nb.png,b\n"
