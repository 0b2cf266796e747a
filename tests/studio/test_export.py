"""The page says how each engine reads an adapter, and an export from it is that of the command, with its hashes."""

from __future__ import annotations

import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.command import rankwise
from rankwise.exporting.engine_rules import RULES, verdicts
from rankwise.methods.artifact import open_artifact, stored_weights
from rankwise.runs.records import silent
from rankwise.studio import jobs
from rankwise.studio.export_choices import export_choices


@pytest.fixture(scope="module")
def home(library, tmp_path_factory):
    return library.lay_out(tmp_path_factory.mktemp("exporting") / "home", "adalora", "dora", "full")


@pytest.fixture(autouse=True)
def here(home, workplace, monkeypatch):
    monkeypatch.chdir(home)


def finished(client, address):
    deadline = time.monotonic() + 120
    while "chip running" in (text := client.get(f"{address}/state").text):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return text


def test_the_table_says_for_each_engine_what_its_rule_says(client):
    own = stored_weights(open_artifact("adalora"), silent)
    choices = export_choices("adalora")
    assert [one.engine for one in choices.engines] == list(RULES)
    assert {one.engine: one.peft for one in choices.engines} == verdicts(own)
    assert {one.engine: one.portable for one in choices.engines} == verdicts(own.portable(()))
    wrong = [one for one in choices.engines if one.peft is not None]
    assert wrong and any(one.peft is None for one in choices.engines)
    page = client.get("/export?run=adalora").text
    for one in choices.engines:
        assert one.engine in page and f'data-format="{one.format}"' in page
    assert page.count("✗") == sum(one.peft is not None for one in choices.engines) + sum(
        one.portable is not None for one in choices.engines
    )


def test_formats_that_a_run_cannot_have_are_told_with_why():
    dora, full = export_choices("dora"), export_choices("full")
    assert "DoRA" in dora.formats["portable"] and dora.formats["peft"] is None
    assert {one.format for one in dora.engines if one.peft is not None} <= {"merged", "gguf", "ollama"}
    assert full.engines == () and full.why_none and full.formats["peft"] and full.formats["merged"] is None


def test_only_formats_that_fit_are_offered(client, home):
    base, data = encoder_folder(home / "bert"), write_rows(home / "labelled.jsonl", labelled(8))
    words = ("--model", base, "--data", data, "--run", "classes", "--steps", "1", "--rank", "2")
    assert rankwise("train", *map(str, words)).exit_code == 0
    page = client.get("/export?run=classes").text
    assert re.findall(r'name="format" value="(\S+)"', page) == ["peft", "portable", "merged", "onnx"]
    assert "mlx-lm runs models that write text. Use “Format” peft or merged." in page and "--" not in page


@pytest.mark.parametrize(("given", "why"), [
    ({"to": "../out"}, "is not possible"), ({"to": "a/b"}, "is not possible"), ({"to": ""}, "is not possible"),
    ({"format": "exe"}, "Choose a format"), ({"strength": "-1"}, "not a number"), ({"verify": "--to"}, "how to verify"),
    ({"base_model": "a\0b"}, "is not possible"), ({"base_model": "a" * 200_000}, "is not possible"),
    ({"dtype": "--to"}, "number format"), ({"run": "--help"}, "no finished run"),
    ({"run": "none"}, "no finished run"),
])  # fmt: skip
def test_a_wrong_wish_starts_nothing(client, given, why):
    answer = client.post("/export/begin", data={"run": "adalora", "to": "out", "format": "peft"} | given)
    assert answer.status_code == 422 and why in answer.text and not Path("exports").exists()


def test_an_export_is_the_commands_and_its_files_come_with_their_hashes(client, monkeypatch):
    given = {"run": "adalora", "to": "mine", "format": "portable", "strength": "0.5", "verify": "no"}
    answer = client.post("/export/begin", data=given)
    assert answer.status_code == 303
    address = answer.headers["location"]
    assert "--no-verify" in jobs.state_of(address.rpartition("/")[2]).job.words
    assert "is being written" in client.post("/export/begin", data=given | {"to": "other"}).text
    page = finished(client, address)
    assert 'class="chip good"' in page, page
    words = "adalora --to theirs --format portable --strength 0.5 --no-verify --quiet"
    assert rankwise("export", *words.split()).exit_code == 0
    rows = re.findall(r'href="(/exports/[^"]*/files/([^"]*))".*?<code>([0-9a-f]{64})</code>', page, re.DOTALL)
    assert {name for _, name, _ in rows} == {file.name for file in Path("theirs").iterdir()}
    for link, name, digest in rows:
        sent = client.get(link)
        assert (
            hashlib.sha256(sent.content).hexdigest() == digest and "attachment" in sent.headers["content-disposition"]
        )
        assert sent.headers["content-type"] == "application/octet-stream"
        if name.endswith(".safetensors"):
            assert sent.content == Path("theirs", name).read_bytes()
    assert "No engine was run" in page and "Load it with vLLM" in page
    ruled = page.partition("By rule, not run")[2]
    assert ">Not verified<" in page and "<li>" in ruled and "should read it as it was trained" in ruled
    assert ">right<" not in page and "Run and compared" not in page, "nothing that was not run is called right"
    for name in ("../job.json", "..%2F..%2Frows.jsonl", "/etc/passwd", "nothing"):
        assert client.get(f"{address}/files/{name}").status_code in (400, 404)
    assert "already" in client.post("/export/begin", data=given).text


def test_of_exports_at_once_one_begins_and_one_that_fails_or_was_killed_says_why(client):
    given = {"run": "dora", "format": "portable"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.post("/export/begin", data=given | {"to": f"at-once-{n}"}), range(4)))
    (answer,) = [one for one in answers if one.status_code == 303]
    assert all("is being written" in one.text for one in answers if one is not answer)
    page = finished(client, answer.headers["location"])
    assert "chip bad" in page and "DoRA" in page
    number = answer.headers["location"].rpartition("/")[2]
    assert not [word for word in jobs.state_of(number).job.words if "verify" in word]
    (jobs.JOBS / number / "printed.json").write_text("")  # as a killed process leaves it
    assert "stopped before it was finished" in client.get(f"/exports/{number}").text
    for other in ("abc", "0" * 16):
        assert client.get(f"/exports/{other}").status_code in (400, 404)
