"""Tables as spreadsheets write them: every separator, encoding and line end is read alike, or refused with the reason.

What was detected stands in the data report; a plan reads the same rows as a training.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import zipfile

import openpyxl
import pytest

from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig
from rankwise.errors import DataError
from rankwise.rows.files import workbooks
from rankwise.rows.sample import sample_rows
from rankwise.rows.sources import open_source, raw_records
from rankwise.runs.records import silent

ENCODINGS = {
    "utf-8": ("utf-8", "UTF-8"),
    "utf-8-sig": ("utf-8-sig", "UTF-8 with a byte order mark"),
    "utf-16": ("utf-16", "UTF-16 LE"),
    "utf-16-be with a mark": ("utf-16-be", "UTF-16 BE"),
    "utf-16-le without a mark": ("utf-16-le", "UTF-16 LE without a byte order mark (a guess)"),
    "cp1252": ("cp1252", "cp1252 (a guess)"),
}
DELIMITERS = [",", ";", "\t", "|"]
LINE_ENDS = ["\n", "\r\n", "\r"]
CELLS = [
    ["prompt", "completion", "price"],
    ["Größe prüfen", "zwei\nZeilen; und, noch|eine\tdritte", "3,5"],
    ["Où est l'œuvre ?", 'sagt "ja"', "10,25"],
    ["schlicht", "für 10 € zu haben", "7"],
]


def written(cells, delimiter, end):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(cells)
    return text.getvalue()


def table(path, text, encoding="utf-8"):
    codec = ENCODINGS.get(encoding, (encoding,))[0]
    mark = "\ufeff" if encoding == "utf-16-be with a mark" else ""
    path.write_bytes((mark + text).encode(codec))
    return path


def rows_of(path, **settings):
    """The rows as they stand in the file, and how it was read."""
    spec = DataConfig(path=str(path), **settings)
    (part,) = open_source(spec, spec.all_sources[0]).parts
    rows = [row for _, row in raw_records(part)]
    return rows, part.layout


def problem_of(path, **settings):
    """The one sentence with which the file is refused."""
    data_report = count_only(DataConfig(path=str(path), **settings), silent)
    (problem,) = data_report.fatal
    assert problem.startswith(str(path)) and "\n" not in problem and len(problem) < 600
    return problem.replace(str(path), path.name)


def dicts(cells):
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


@pytest.mark.parametrize(
    ("encoding", "delimiter", "end"), itertools.product(ENCODINGS, DELIMITERS, LINE_ENDS), ids=repr
)
@pytest.mark.parametrize("empty_columns", [0, 2])
def test_a_table_is_read_in_every_encoding_with_every_separator(tmp_path, encoding, delimiter, end, empty_columns):
    cells = [row + [""] * empty_columns for row in CELLS]
    rows, layout = rows_of(table(tmp_path / "rows.csv", written(cells, delimiter, end), encoding))
    assert rows == dicts(CELLS)
    assert (layout.encoding, layout.delimiter) == (ENCODINGS[encoding][1], delimiter)
    assert layout.unnamed_columns == empty_columns


@pytest.mark.parametrize(("encoding", "delimiter"), itertools.product(ENCODINGS, DELIMITERS), ids=repr)
def test_a_plan_reads_the_rows_that_a_training_reads(tmp_path, encoding, delimiter):
    path = table(tmp_path / "rows.csv", written(CELLS, delimiter, "\r\n"), encoding)
    spec = DataConfig(path=str(path))
    seen = sample_rows(spec, spec.all_sources[0])
    trained = [example for chunk in open_source(spec, spec.all_sources[0]).chunks() for row in chunk for example in row]
    assert [example for row in seen.drawn for example in row.examples] == trained
    assert len(trained) == 3 and seen.problems == ()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_setting_says_what_detection_would_have_found(tmp_path, encoding):
    path = table(tmp_path / "rows.csv", written(CELLS, ";", "\n"), encoding)
    rows, layout = rows_of(path, delimiter="semicolon", encoding=ENCODINGS[encoding][0])
    assert rows == dicts(CELLS) and layout.delimiter == ";"


# Which separator


SEPARATED = {
    "decimal commas": ("name;price\nÄpfel;3,5\nBirnen;2,25\n", ";"),
    "commas in the names of columns": ("name;price, net\nÄpfel;3\nBirnen;2,5\n", ";"),
    "quotes that hold other separators": ('a,b\n"x;y;z","1|2"\n"p;q","3\t4"\n', ","),
    "names in quotes that hold other separators": ('"a;b",c\n1;2,3\n4;5,6\n', ","),
    "semicolons in every cell": ("a,b\nx;y,1;2\np;q,3;4\n", ","),
    "a bad row": ("a;b\n1;2\n3\n4;5\n", ";"),
    "a first line that names the separator": ("sep=;\na;b\n1,5;2\n", ";"),
}


@pytest.mark.parametrize("case", SEPARATED)
def test_the_separator_is_that_of_the_first_line(tmp_path, case):
    text, delimiter = SEPARATED[case]
    assert rows_of(table(tmp_path / "rows.csv", text))[1].delimiter == delimiter


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize(
    "lines", [["one", "two"], ["Hello, world", "plain"], ["a; b", "c", 'says "no"'], ["x\ty", "z, w", "a; b"]], ids=repr
)
def test_a_file_of_one_column_is_read_line_by_line(tmp_path, name, lines):
    rows, layout = rows_of(table(tmp_path / name, "\n".join(["text", *lines, ""])))
    assert rows == [{"text": line} for line in lines]
    assert layout.delimiter is None


def test_one_name_that_holds_a_separator_is_the_name_of_one_column(tmp_path):
    rows, layout = rows_of(table(tmp_path / "rows.csv", "yes|no\n3,5\nplain\n"))
    assert rows == [{"yes|no": "3,5"}, {"yes|no": "plain"}] and layout.delimiter is None


AMBIGUOUS = {
    "two separators that fit every row": ("a,b;c\n1,2;3\n4,5;6\n", ("commas", "semicolons", "'a'", "'c'")),
    "rows of two cells under one name": ("text\nHello, world\nso, so\n", ("one column", "commas", "2", "tab")),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_table_with_two_readings_is_refused_with_both(tmp_path, case):
    text, words = AMBIGUOUS[case]
    path = table(tmp_path / "rows.csv", text)
    problem = problem_of(path)
    assert [word for word in (*words, "data.delimiter") if word not in problem] == [], problem
    for delimiter in ("comma", "semicolon", "tab"):
        rows_of(path, delimiter=delimiter)


def test_a_tab_separated_file_with_stray_quotes_is_read_without_quoting(tmp_path):
    text = 'sentence\tlabel\nHe said "no\t1\n"So what\t0\n'
    for name in ("rows.tsv", "rows.csv"):
        rows, _ = rows_of(table(tmp_path / name, text))
        assert [row["sentence"] for row in rows] == ['He said "no', '"So what']


def test_a_column_without_a_name_that_holds_something_is_refused(tmp_path):
    path = table(tmp_path / "rows.csv", "prompt;completion;;\na;b;;\nc;d;;note\n")
    assert problem_of(path).startswith("rows.csv:3: the column 4 contains 'note' but has no name")


NAMELESS = [["", "Unnamed: 0", "prompt", "", "completion"], ["0", "5", "a", "", "b"], ["1", "6", "c", "", "d"]]


@pytest.mark.parametrize("delimiter", [*DELIMITERS, None])
def test_columns_without_a_name_before_named_ones_have_the_names_that_pandas_gives(tmp_path, delimiter):
    pandas = pytest.importorskip("pandas")
    if delimiter is None:
        path = workbook(tmp_path / "rows.xlsx", Sheet=NAMELESS)
        expected = list(pandas.read_excel(path).columns)
    else:
        path = table(tmp_path / "rows.csv", written(NAMELESS, delimiter, "\n"))
        expected = list(pandas.read_csv(path, sep=delimiter).columns)
    rows, _ = rows_of(path)
    assert [list(row) for row in rows] == [expected, expected]
    assert (rows[1][expected[0]], rows[1]["prompt"], rows[1]["completion"]) == ("1", "c", "d")


def test_the_index_that_pandas_writes_is_named_and_stops_nothing(tmp_path):
    path = table(tmp_path / "rows.csv", ",prompt,completion\n" + "".join(f"{n},ask {n},say {n}\n" for n in range(9)))
    data_report = count_only(DataConfig(path=str(path)), silent)
    assert [column.column for column in data_report.unused_columns] == ["Unnamed: 0"] and not data_report.fatal
    assert (data_report.used, data_report.format) == (9, "prompt")


def test_rows_without_anything_in_them_are_no_rows(tmp_path):
    path = table(tmp_path / "rows.csv", "prompt,completion,\na,b,\n,,\n , ,\nc,d,\n,,\n")
    rows, _ = rows_of(path)
    assert rows == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


# Which encoding

UNCERTAIN = {
    "Cyrillic": ("prompt;completion\nСколько стоит билет?;Пять рублей\n", "cp1251", "cp1251"),
    "Polish": (
        "prompt;completion\nCzy możesz mi powiedzieć, gdzie są książki?;Proszę, są na górze\n",
        "cp1250",
        "cp1250",
    ),
    "Japanese": ("prompt;completion\n切符はいくらですか;百円です\n", "cp932", "cp932"),
    "a binary file": ("prompt,completion\n\0\1\2\3\4\5\6\x80é\n", "latin-1", "data.encoding"),
}


@pytest.mark.parametrize("case", UNCERTAIN)
def test_text_that_is_no_cp1252_is_not_guessed_to_be(tmp_path, case):
    text, encoding, word = UNCERTAIN[case]
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    assert word in problem_of(path)
    if case != "a binary file":
        rows, layout = rows_of(path, encoding=encoding)
        assert rows[0]["prompt"] in text and layout.encoding == encoding


def test_one_damaged_character_of_a_utf8_file_costs_its_row_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,completion\né,ü\nà,ö\n".encode() + b"caf\xe9,x\n")
    rows, layout = rows_of(path)
    assert rows[:2] == [{"prompt": "é", "completion": "ü"}, {"prompt": "à", "completion": "ö"}]
    assert "rows.csv:4: is not UTF-8 text" in str(rows[2]) and layout.encoding == "UTF-8"


def test_a_file_between_two_encodings_is_refused_with_both(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,completion\né,x\n".encode() + b"caf\xe9,x\n")
    problem = problem_of(path)
    assert "cp1252" in problem and "utf-8" in problem and "data.encoding" in problem
    assert rows_of(path, encoding="cp1252")[0][1]["prompt"] == "café"


JSON = '{"prompt": "Größe", "completion": "b"}\n'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_in_another_encoding_says_which_and_what_to_do(tmp_path, encoding, name):
    path = tmp_path / name
    path.write_bytes((JSON if name == "rows.jsonl" else f"[{JSON}]").encode(encoding))
    problem = problem_of(path)
    assert problem.endswith("as UTF-8."), problem
    assert ("UTF-8 text" if encoding == "cp1252" else encoding[:6].upper()) in problem


IN_VAIN = {
    "a separator of JSON lines": ("rows.jsonl", JSON, {"delimiter": ";"}),
    "an encoding of JSON lines": ("rows.jsonl", JSON, {"encoding": "utf-8"}),
    "a sheet of JSON lines": ("rows.jsonl", JSON, {"sheet": "a"}),
    "a sheet of CSV": ("rows.csv", "text\na\n", {"sheet": "a"}),
}


@pytest.mark.parametrize("case", IN_VAIN)
def test_a_setting_without_effect_is_refused(tmp_path, case):
    name, text, settings = IN_VAIN[case]
    with pytest.raises(DataError, match=rf"data\.{next(iter(settings))}"):
        rows_of(table(tmp_path / name, text), **settings)
    spec = DataConfig(path=str(tmp_path / name), **settings)
    with pytest.raises(DataError, match=rf"data\.{next(iter(settings))}"):
        sample_rows(spec, spec.all_sources[0])


@pytest.mark.parametrize(
    ("setting", "value"), [("delimiter", "ab"), ("delimiter", '"'), ("encoding", "klingon"), ("encoding", "hex")]
)
def test_a_setting_that_means_nothing_is_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        DataConfig(path="rows.csv", **{setting: value})


# Robust


BROKEN = {
    "an empty file": (b"", "has no rows"),
    "a mark alone": (b"\xff\xfe", "has no rows"),
    "a line of names alone": (b"prompt;completion\r\n", "has no rows"),
    "half a character of UTF-16": ("prompt,completion\na,b\n".encode("utf-16") + b"a", "UTF-16"),
    "one line without an end": (b"a" * 17_000_000, "more than 16,000,000 characters"),
    "NUL bytes": (b"\0" * 5000, "rows.csv:1: is not text: it contains NUL bytes"),
    "long names": (b"a" * 100_000 + b";" + b"a" * 100_000 + b"\n", "each once"),
    "a quote that is never closed": (b'prompt,completion\na,"b\nc,d\n', "a quote is never closed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_table_is_refused_in_one_sentence(tmp_path, case):
    content, words = BROKEN[case]
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert words in problem_of(path)


# Workbooks


def workbook(path, **sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def with_stored(path, **values):
    """As Excel saves it: beside each formula the value that it gave last."""
    content = {}
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for formula, value in values.items():
        kind = b"" if value.isdigit() else b' t="str"'
        name = "xl/worksheets/sheet1.xml"
        before = f"<f>{formula}</f><v></v>".encode(), f"<f>{formula}</f><v />".encode()
        for old in before:
            at = content[name].find(old)
            if at >= 0:
                cell = content[name].rindex(b"<c ", 0, at)
                head = content[name][cell:at].replace(b">", kind + b">", 1)
                content[name] = (
                    content[name][:cell]
                    + head
                    + f"<f>{formula}</f><v>{value}</v>".encode()
                    + content[name][at + len(old) :]
                )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


WHEN = [datetime.datetime(2024, 3, 1), datetime.datetime(2024, 3, 1, 10, 30), datetime.time(9, 5)]


def test_cells_of_a_workbook_are_the_text_that_a_csv_would_hold(tmp_path):
    rows = [
        ["prompt", "completion", "a", "b", "c"],
        ["Größe\nzwei", 3, *WHEN],
        ["x", 3.5, True, None, None],
        [],
        ["y", 4.0],
    ]
    found, layout = rows_of(workbook(tmp_path / "rows.xlsx", Daten=rows, Leer=[]))
    assert layout.sheet == "Daten" and layout.describe() == 'sheet "Daten"'
    assert [list(row.values()) for row in found] == [
        ["Größe\nzwei", "3", "2024-03-01", "2024-03-01T10:30:00", "09:05:00"], ["x", "3.5", "TRUE", "", ""],
        ["y", "4", "", "", ""],
    ]  # fmt: skip


def test_of_two_sheets_with_rows_one_is_named(tmp_path):
    rows = [["prompt", "completion"], ["a", "b"]]
    path = workbook(tmp_path / "rows.xlsx", First=rows, Second=[*rows, ["c", "d"]], Empty=[])
    problem = problem_of(path)
    assert "'First', 'Second'" in problem and "data.sheet" in problem and "Empty" not in problem
    assert len(rows_of(path, sheet="Second")[0]) == 2
    assert "has no sheet 'Third'" in problem_of(path, sheet="Third")


def test_a_formula_gives_the_value_that_is_stored_and_without_one_its_row_is_bad(tmp_path):
    rows = [["prompt", "completion"], ["a", "=1+1"], ["b", '=UPPER("x")'], ["c", "=2+2"]]
    path = workbook(tmp_path / "rows.xlsx", Data=rows)
    assert all("value is not stored" in str(row) for row in rows_of(path)[0])
    with_stored(path, **{"1+1": "2", 'UPPER("x")': "X"})
    found, _ = rows_of(path)
    assert found[:2] == [{"prompt": "a", "completion": "2"}, {"prompt": "b", "completion": "X"}]
    assert "rows.xlsx:4: the column 'completion' contains a formula whose value is not stored" in str(found[2])


def test_an_error_of_excel_costs_its_row_alone(tmp_path):
    path = workbook(tmp_path / "rows.xlsx", Data=[["prompt", "completion"], ["a", "b"], ["c", "#N/A"], ["d", "e"]])
    found, _ = rows_of(path)
    assert "rows.xlsx:3" in str(found[1]) and "contains the error #N/A" in str(found[1])
    assert [row["prompt"] for row in (found[0], found[2])] == ["a", "d"]


def test_a_plan_of_a_workbook_reads_what_a_training_reads(tmp_path):
    path = workbook(tmp_path / "rows.xlsx", Data=[["prompt", "completion"], ["a", "b"], ["c", 4]])
    spec = DataConfig(path=str(path))
    assert sample_rows(spec, spec.all_sources[0]).rows_in_files == 2


def archive(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return content.getvalue()


OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
NO_WORKBOOK = {
    "a zip archive": ("x.xlsx", archive(**{"rows.csv": "a"}), "zip archive without an Excel workbook"),
    "a cut archive": ("x.xlsx", archive(**{"xl/workbook.xml": "a"})[:40], "damaged"),
    "a workbook of junk": ("x.xlsx", archive(**{"xl/workbook.xml": "<a"}), "damaged"),
    "an old workbook": ("x.xls", OLD, "Excel 97-2003"),
    "a workbook with a password": ("x.xlsx", OLD + "EncryptedPackage".encode("utf-16-le"), "password"),
    "text under its name": ("x.xlsx", b"prompt,completion\n", "damaged"),
    "OpenDocument": ("x.ods", archive(mimetype="application/vnd.oasis.opendocument.spreadsheet"), "OpenDocument"),
    "a bomb": (
        "x.xlsx",
        archive(**{"xl/workbook.xml": "a", "xl/a": bytes(10_000)}),
        "would unpack to 10,001 bytes",
    ),
}


@pytest.mark.parametrize("case", NO_WORKBOOK)
def test_what_is_no_workbook_is_refused_with_the_way_out(tmp_path, case, monkeypatch):
    monkeypatch.setattr(workbooks, "MOST_BYTES", 9_000)
    name, content, words = NO_WORKBOOK[case]
    path = tmp_path / name
    path.write_bytes(content)
    assert words in problem_of(path)


def test_a_small_workbook_may_unpack_to_many_times_its_size(tmp_path):
    path = tmp_path / "x.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("xl/workbook.xml", bytes(1_000_000))
    assert 100 * path.stat().st_size < 1_000_000 and "unpack" not in problem_of(path)


# Said


def test_the_data_report_holds_how_a_table_is_written(tmp_path):
    path = table(tmp_path / "rows.csv", written([[*row[:2], ""] for row in CELLS], ";", "\r\n"), "cp1252")
    (file,) = count_only(DataConfig(path=str(path)), silent).files
    assert file.layout.describe() == (
        "separated by semicolons, encoded as cp1252 (a guess), 1 empty column without a name left out"
    )
