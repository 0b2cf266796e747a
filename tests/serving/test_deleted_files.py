"""What is uploaded for fine-tuning and deleted again is nowhere, since its rows can be read out of encoded ones."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from rankwise.objectives.registry import objective_named
from rankwise.rows.preparing import prepare
from rankwise.runs.records import silent
from rankwise.serving.bodies import BadRequest
from rankwise.serving.tuning.files import Files, check_rows, data_of


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def conversation(number):
    said = (("user", f"What is land {number}?"), ("assistant", f"It is town {number}."))
    return {"messages": [{"role": role, "content": text} for role, text in said]}


@pytest.fixture
def stored(serving, tmp_path, monkeypatch):
    """Files of a server whose cache is a folder of its own, and a function that uploads one."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    files = Files(tmp_path / "files")

    def upload(content):
        fill = lambda path: path.write_bytes(content)  # noqa: E731
        return files.add("x.jsonl", "fine-tune", fill, lambda folder: check_rows(folder, "x.jsonl", serving.model)).id

    return SimpleNamespace(files=files, upload=upload, encoded=tmp_path / "cache" / "encoded")


def test_the_check_of_an_upload_leaves_nothing_in_the_cache(stored):
    many = lines(map(conversation, range(2500)))  # in three chunks, which lie on the disk
    pair = {"preferred_output": "It is town 1.", "non_preferred_output": "No."}
    answers = {name: [{"role": "assistant", "content": text}] for name, text in pair.items()}
    pairs = lines([{"input": {"messages": conversation(1)["messages"][:1]}} | answers] * 3)
    names = [stored.upload(content) for content in (many, pairs)]
    assert [stored.files.get(name).content.rows for name in names] == [2500, 3]
    with pytest.raises(BadRequest, match=r"x\.jsonl:2501"):
        stored.upload(many + b"{}\n")
    assert not stored.encoded.exists()
    assert [sorted(path.name for path in (stored.files.folder / name).iterdir()) for name in names] == [
        ["content.jsonl", "file.json"], ["content.jsonl", "file.json", "pairs.jsonl"],
    ]  # fmt: skip


def test_what_trainings_encoded_of_a_file_goes_with_it(stored, serving):
    one, other = (stored.upload(lines(map(conversation, range(count)))) for count in (5, 6))
    data = {name: data_of(stored.files.content(name), stored.files.get(name).content) for name in (one, other)}
    for spec in (*data.values(), data[other].model_copy(update={"validation": data[one].all_sources[0]})):
        prepare(spec, objective_named("causal-lm").rows.encoding(serving.model), silent)
    assert len(list(stored.encoded.iterdir())) == 3
    stored.files.delete(one)
    (left,) = stored.encoded.iterdir()
    assert other in (left / "facts.json").read_text()
    stored.files.delete(other)
    assert not list(stored.encoded.iterdir())
