"""Rows are encoded in one pass, a chunk at a time: chunks, kills and a full disk change nothing but memory and time.

Chunks are of 15 rows here. What is compared are all files of the cache's entry, the report among them.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kit.counted_tokenizer import Counted
from rankwise.config.data import DataConfig
from rankwise.objectives.preference.encode import PairEncoder
from rankwise.rows import sources
from rankwise.rows.encoded.sequences import Growing
from rankwise.rows.preparing import prepare
from rankwise.rows.report import duplicates
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent
from rankwise.runs.row_facts import PairFacts

WORDS = [f"w{number}" for number in range(200)]
ROWS = 220
SPECS = {
    "held out": {"path": "rows.jsonl", "held_out": 40, "on_bad_row": "skip", "ignore_columns": ["note"]},
    "unused columns": {"path": "rows.jsonl", "on_bad_row": "skip"},
    "groups": {"path": "rows.jsonl", "held_out": 40, "group": "who", "on_bad_row": "skip"},
    "labels": {"path": "labels.jsonl", "held_out": 25},
    "sources": {"sources": [{"path": "labels.jsonl", "weight": 1.5}, "folder"], "validation": "rows.jsonl",
                "on_bad_row": "skip"},
    "drawn": {"sources": [{"path": "rows.jsonl", "rows": 120}, "labels.jsonl"], "held_out": 9, "on_bad_row": "skip"},
    "bad rows": {"path": "rows.jsonl"},
    "cut": {"path": "rows.jsonl", "max_length": 60, "too_long": "truncate", "on_bad_row": "skip"},
    "pairs": {"path": "pairs.jsonl", "held_out": 20},
}  # fmt: skip


class Killed(BaseException):
    """As SIGKILL: nothing tidies up behind it."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "CHUNK", 15)
    write_rows(tmp_path)
    return tmp_path


def write_rows(folder, count=ROWS):
    rng = random.Random(1)

    def text(least, most):
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    rows = [
        {"prompt": f"{n} {text(3, 9)}", "completion": text(2, 9), "note": text(4, 30), "who": rng.choice("abcdefgh")}
        for n in range(count)
    ]
    for _ in range(count // 8):
        rows[rng.randrange(count)] = dict(rows[rng.randrange(count)])
    rows[77]["prompt"] += " [INST] <|im_start|> \ufffd"
    for bad in range(9, count, 45):
        rows[bad] = {"prompt": "", "completion": "x", "note": "y", "who": None}
    labels = [{"text": text(3, 9), "label": rng.choice(["yes", "no", "Yes"])} for _ in range(140)]
    pairs = [{"prompt": text(1, 2), "chosen": text(1, 4), "rejected": text(1, 4)} for _ in range(110)]
    pairs += [{**pairs[3]}, {**pairs[4], "chosen": pairs[4]["rejected"], "rejected": pairs[4]["chosen"]}]
    files = {"rows": rows, "labels": labels, "pairs": pairs, "folder/train-1": rows[:160], "folder/train-2": rows[160:]}
    for name, part in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))


@pytest.fixture
def writing(hub_tokenizer):
    """A function that makes what rows are encoded with."""

    def made(spec=None):
        hub = copy.deepcopy(hub_tokenizer)
        tokenizer = Counted(hub, [hub.eos_token_id])
        given = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)
        if spec is not None and spec.path == "pairs.jsonl":
            pairs = PairFacts(loss="dpo", beta=0.1, rows=0, duplicates=0, contradictions=0, ties=0)
            given = TextWriting(tokenizer, given.template, "tiny", None, PairEncoder, learned=pairs)
        return given

    return made


@pytest.fixture
def cache(home, monkeypatch):
    """A function that begins with an empty cache."""

    def empty(name="cache"):
        monkeypatch.setenv("RANKWISE_CACHE", str(home / name))
        shutil.rmtree(home / name, ignore_errors=True)

    empty()
    return empty


def content():
    """All files of the only entry; nothing else is left beside it."""
    (entry,) = (Path(os.environ["RANKWISE_CACHE"]) / "encoded").iterdir()
    assert not entry.name.startswith("."), "only part of it is there"
    return {file.name: file.read_bytes() for file in sorted(entry.iterdir())}


def left():
    """What lies in the cache, but for whole entries."""
    folder = Path(os.environ["RANKWISE_CACHE"])
    return [path for path in folder.rglob("*") if path.is_file()]


def in_one(spec, writing, monkeypatch, cache):
    """The entry of rows that are one chunk."""
    with monkeypatch.context() as patch:
        patch.setattr(sources, "CHUNK", 10_000)
        cache("one")
        prepare(spec, writing(spec), silent)
        whole = content()
    cache()
    return whole


@pytest.mark.parametrize("name", SPECS)
def test_rows_in_chunks_are_what_is_encoded_at_once(name, writing, monkeypatch, cache):
    spec = DataConfig(**SPECS[name])
    whole = in_one(spec, writing, monkeypatch, cache)
    prepare(spec, writing(spec), silent)
    assert content() == whole


def test_a_process_that_is_to_end_ends_between_chunks(writing, cache):
    """As one whose launcher was killed, which no signal reaches."""
    chunks = iter(range(3))

    def check_stop():
        if next(chunks, None) is None:
            raise Killed

    with pytest.raises(Killed):
        prepare(DataConfig(**SPECS["held out"]), writing(), silent, check_stop)


@pytest.mark.parametrize("count", [1, 9])
def test_an_encoding_that_was_killed_leaves_nothing_and_begins_again(count, writing, monkeypatch, cache):
    spec, chunks = DataConfig(**SPECS["held out"]), iter(range(count))
    whole = in_one(spec, writing, monkeypatch, cache)

    def killed():
        if next(chunks, None) is None:
            raise Killed

    with pytest.raises(Killed):
        prepare(spec, writing(), silent, killed)
    assert left() == [], "its rows can be read out of their tokens"
    prepare(spec, writing(), silent)
    assert content() == whole


def test_what_one_process_encoded_another_only_opens(writing, cache):
    spec, other = DataConfig(**SPECS["held out"]), writing()
    first = prepare(spec, writing(), silent)
    before = other.tokenizer.texts
    second = prepare(spec, other, silent)
    assert other.tokenizer.texts == before
    assert all(isinstance(one.sequences.ids, np.memmap) for one in (first, second)), "also where they were written"
    assert second.data_report == first.data_report


def test_rows_stay_in_memory_where_the_disk_is_full(writing, monkeypatch, cache):
    spec = DataConfig(**SPECS["held out"])
    whole = in_one(spec, writing, monkeypatch, cache)
    real = Growing.extend

    def extend(self, values):
        if self._file is not None and len(self) > 300:
            raise OSError(28, "No space left on device")
        real(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Growing, "extend", extend)
        prepare(spec, writing(), silent)
    assert content() == whole


def peak_of(count, writing, cache, home):
    write_rows(home, count)
    cache()
    spec, made = DataConfig(path="rows.jsonl", held_out=9, on_bad_row="skip", ignore_columns=["note"]), writing()
    tracemalloc.start()
    prepare(spec, made, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_row_takes_little_memory(writing, monkeypatch, cache, home):
    """Signatures alone would take 1,024 bytes a row, if these were in memory."""
    monkeypatch.setattr(duplicates, "MOST_KNOWN", 20)
    few, many = (peak_of(count, writing, cache, home) for count in (250, 650))
    assert (many - few) / 400 < 600
