"""What a browser uploads is stored by its content, and no name of a client or of an archive leads anywhere."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.report_runs import made_run
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.runs.queue import Queue
from rankwise.studio import uploads
from rankwise.studio.forecast import columns_of

ROW = b'{"prompt": "a", "completion": "b"}\n'


def sent(client, name, content=ROW):
    answer = client.post("/new/upload", params={"name": name}, content=content)
    return answer.status_code, answer.json()


def archive(*members, **contents):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name in members:
            opened.writestr(name, b"\x89PNG")
        for name, content in contents.items():
            opened.writestr(name, content)
    return packed.getvalue()


def damaged(compression):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as opened:
        opened.writestr("x.png", bytes(4000))
    content = bytearray(packed.getvalue())
    begin = content.index(b"x.png") + (5 if compression == zipfile.ZIP_DEFLATED else 14)
    content[begin : begin + 8] = b"\xff" * 8
    return bytes(content)


@pytest.mark.parametrize(("name", "plain"), [
    ("my rows.jsonl", "my rows.jsonl"), ("../../rows.jsonl", "rows.jsonl"), ("/etc/passwd.jsonl", "passwd.jsonl"),
    ("C:\\rows.jsonl", "rows.jsonl"), ("a\0b.jsonl", "a_b.jsonl"), ("<script>.jsonl", "_script_.jsonl"),
    (".jsonl", "rows.jsonl"), ("\u202e" * 500 + ".JSONL", "_.jsonl"), ("x.jsonl\n.jsonl", "x.jsonl_.jsonl"),
    ("...jsonl", "rows.jsonl"), ("größe.jsonl", "größe.jsonl"), ("a" * 300 + ".jsonl", "a" * 60 + ".jsonl"),
])  # fmt: skip
def test_the_path_is_the_content_and_a_plain_name(client, name, plain):
    status, answer = sent(client, name)
    digest = hashlib.sha256(ROW).hexdigest()[:32]
    assert status == 200 and answer == {"path": f"runs/.uploads/{digest}/{plain}", "name": plain}
    assert [str(file) for file in Path("runs").rglob("*") if file.is_file()] == [answer["path"]]
    assert Path(answer["path"]).read_bytes() == ROW
    assert uploads.name_of(answer["path"]) == plain and uploads.name_of("rows.jsonl") is None
    assert uploads.with_names(f"(/a/b/{answer['path']}:3: bad") == f"({plain}:3: bad"
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


@pytest.mark.parametrize("ending", [one for one in uploads.KNOWN if one != ".zip"])
def test_a_file_of_each_kind_is_stored_as_it_was_sent(client, ending):
    """What is noted of a file of JSON was written over it."""
    content = b'[{"prompt": "a", "completion": "b"}]'
    _, answer = sent(client, f"rows{ending}", content)
    assert Path(answer["path"]).read_bytes() == content and uploads.name_of(answer["path"]) == f"rows{ending}"


@pytest.mark.parametrize(("name", "content", "why"), [
    ("rows.exe", ROW, "is not a known kind"), ("rows", ROW, "is not a known kind"), ("", ROW, "is not a known kind"),
    ("rows.jsonl", b"", "is empty"), ("x.zip", b"PK\x03\x04 nothing", "cannot be read"),
    ("x.zip", archive("../a.png"), "names a file"), ("x.zip", archive("/a.png"), "names a file"),
    ("x.zip", archive("a/../../b.png"), "names a file"), ("x.zip", archive("c:\\a.png"), "names a file"),
    ("x.zip", archive("a.png "), "names a file"), ("x.zip", archive("cat/a.py"), "not an image"),
    ("x.zip", archive("a.png", "a.png"), "twice"), ("x.zip", archive("a.png", "a.png/b.png"), "and as a folder"),
    ("x.zip", archive(), "no images"), ("x.zip", archive("a/b/c/d/e/f/g/h/i.png"), "names a file"),
])  # fmt: skip
def test_what_is_refused_leaves_nothing(client, name, content, why):
    status, answer = sent(client, name, content)
    assert status == 400 and why in answer["error"]
    assert not [file for file in Path("runs").rglob("*") if file.is_file()]


def test_too_much_is_refused_before_and_while_it_comes(client, monkeypatch):
    monkeypatch.setattr(uploads, "LARGEST", 100)
    assert sent(client, "rows.jsonl", b"x" * 101)[0] == 400
    answer = client.post("/new/upload?name=rows.jsonl", content=iter([b"x" * 60] * 3))  # no length is told
    assert answer.status_code == 400 and "at most 100" in answer.json()["error"]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("cat/a.png", b"\0" * 5000)
    monkeypatch.setattr(uploads, "LARGEST", 1000)
    status, answer = sent(client, "x.zip", bomb.getvalue())
    assert status == 400 and "too large" in answer["error"]
    assert not [file for file in Path("runs").rglob("*") if file.is_file()]


def test_a_zip_is_a_folder_of_images_with_their_labels(client):
    status, answer = sent(
        client, "pets.zip", archive("cat/1.png", "dog/2.png", "__MACOSX/cat/._1.png", "cat/.DS_Store")
    )
    assert status == 200
    assert sorted(str(file.relative_to(answer["path"])) for file in Path(answer["path"]).rglob("*.*")) == [
        "cat/1.png", "dog/2.png",
    ]  # fmt: skip
    found = columns_of(DataConfig(path=answer["path"]))
    assert found.images and found.rows == 2 and found.format == "image"


@pytest.mark.parametrize("name", ["rows.jsonl", "x.zip"])
def test_equal_files_that_come_at_once_are_all_accepted(client, name):
    for number in range(4):
        names = [f"{n}.png" for n in range(200 + number)]
        content = ROW * (40_000 + number) if name == "rows.jsonl" else archive(*names)
        with client, ThreadPoolExecutor(6) as browsers:  # one loop for all requests, and a thread for each
            answers = list(browsers.map(lambda _: sent(client, name, content), range(6)))  # noqa: B023
        assert {status for status, _ in answers} == {200}, answers
        (path,) = {answer["path"] for _, answer in answers}
        found = Path(path)
        assert found.read_bytes() == content if found.is_file() else len(list(found.iterdir())) == len(names)
    assert not [one for one in Path("runs/.uploads").rglob("*") if one.name.startswith(".")]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_whose_content_is_damaged_is_refused(client, compression):
    status, answer = sent(client, "x.zip", damaged(compression))
    assert status == 400 and "the archive cannot be read" in answer["error"]
    assert not [file for file in Path("runs").rglob("*") if file.is_file()]


def test_uploads_that_no_run_and_no_entry_names_can_be_removed(client, monkeypatch):
    run, entry, free, young, restorable = (
        Path(sent(client, f"rows{ending}", f'{{"text": "{ending}"}}\n'.encode())[1]["path"])
        for ending in (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
    )
    folder = Path(sent(client, "x.zip", archive("a/1.png", "b/2.png"))[1]["path"])
    made_run("r", steps=3)
    config = Path("runs/r/config.json")
    config.write_text(config.read_text().replace('"path": "', f'"path": "{run}', 1))
    saved = Path("runs/r/checkpoints/step-3/config.json")
    saved.parent.mkdir(parents=True)
    saved.write_text(f'{{"path": "{restorable}"}}')
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    Queue().add("next", Experiment(model="tiny-llama", data=str(entry), run="next").explicit)
    assert "unused uploads" not in client.get("/").text, "all of them are young"
    earlier = Path("runs/.uploads") / ("0" * 32 + ".csv")  # as an earlier version stored it
    earlier.touch()
    for one in Path("runs/.uploads").iterdir():
        if one != young.parent:
            os.utime(one, (0, 0))
    assert "3 uploaded files" in client.get("/").text
    client.post("/uploads/remove")
    assert (
        run.exists()
        and entry.exists()
        and young.exists()
        and restorable.exists()
        and not free.exists()
        and not folder.exists()
    )
    assert len(list(Path("runs/.uploads").iterdir())) == 4 and not earlier.exists()
    assert "unused uploads" not in client.get("/").text


def test_people_read_the_names_of_their_files_and_not_where_these_lie(client, tiny_folder):
    """In the preview, in the data report, and where something is wrong with a row."""
    given = {"model.name": str(tiny_folder)}
    for content, said in (
        (ROW * 3, ("my rows.jsonl:1", "my rows.jsonl: 3 rows")),
        (ROW + b"{]\n", ("my rows.jsonl:2",)),
    ):
        given["data.path"] = sent(client, "my rows.jsonl", content)[1]["path"]
        shown = "".join(client.post(f"/new/{part}", data=given).text for part in ("preview", "report"))
        assert all(one in shown for one in said), shown
        assert ".uploads" not in shown


def test_a_path_below_the_own_folder_is_short(client, monkeypatch, tmp_path):
    assert str(Path("runs").absolute()) in client.get("/").text
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "~/runs" in client.get("/").text and str(tmp_path) not in client.get("/").text
