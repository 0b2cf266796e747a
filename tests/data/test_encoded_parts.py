"""Parts of the data change nothing but memory and time: whoever encodes them, and when, the bytes are the same.

Parts are of 50 rows here. What is compared are all files of the cache's entry, the report among them.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import threading
import tracemalloc
from pathlib import Path

import pytest

from counted_tokenizer import Counted
from rankwise.config.data import DataConfig
from rankwise.data import part_store, preparing, sources
from rankwise.data.part_store import Encoders, PartMissing, PartStore
from rankwise.data.preparing import TextWriting, prepare
from rankwise.data.row_part import RowPart
from rankwise.errors import DataError
from rankwise.runs.records import StatusMessage, silent
from rankwise.runs.row_facts import PairFacts
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.encode_pairs import PairEncoder

WORDS = [f"w{number}" for number in range(200)]
ROWS = 430
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
    monkeypatch.setattr(sources, "CHUNK", 25)
    monkeypatch.setattr(part_store, "CHUNKS_OF_PART", 2)
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
    labels = [{"text": text(3, 9), "label": rng.choice(["yes", "no", "Yes"])} for _ in range(260)]
    pairs = [{"prompt": text(1, 2), "chosen": text(1, 4), "rejected": text(1, 4)} for _ in range(200)]
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
            given = TextWriting(tokenizer, given.template, "tiny", None, PairEncoder, pairs=pairs)
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


def parts():
    return sorted(Path(os.environ["RANKWISE_CACHE"]).glob("encoded/.*.partial/*.part"))


def in_one(spec, writing, monkeypatch, cache):
    """The entry without any part."""
    with monkeypatch.context() as patch:
        patch.setattr(part_store, "CHUNKS_OF_PART", 10_000)
        cache("one")
        prepare(spec, writing(spec), silent)
        whole = content()
    cache()
    return whole


def together(spec, writing, count):
    """By several encoders, as threads."""
    barrier, problems = threading.Barrier(count, timeout=60), []

    def run(rank):
        try:
            prepare(spec, writing(spec), silent, Encoders(rank, count, barrier.wait))
        except BaseException as error:
            problems.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not problems, problems


@pytest.mark.parametrize("name", SPECS)
def test_parts_of_one_encoder_or_of_several_are_what_is_encoded_at_once(name, writing, monkeypatch, cache):
    spec = DataConfig(**SPECS[name])
    whole = in_one(spec, writing, monkeypatch, cache)
    prepare(spec, writing(spec), silent)
    assert content() == whole
    for count in (2,) if name != "held out" else (2, 3):
        cache()
        together(spec, writing, count)
        assert content() == whole


@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_left_of_rows_that_are_refused(missing, writing, monkeypatch, cache):
    """Whether it is seen as parts are joined, or as all rows are encoded again because a part is missing."""

    def refuse(*given):
        assert parts()
        raise PartMissing("a part is missing") if missing else DataError("these rows are refused")

    def refuse_again(work):
        raise DataError("these rows are refused")

    monkeypatch.setattr(preparing, "joined", refuse)
    monkeypatch.setattr(preparing, "joined_alone", refuse_again)
    spec = DataConfig(**SPECS["held out"])
    with pytest.raises(DataError, match="refused"):
        prepare(spec, writing(spec), silent)
    assert not parts()


def test_a_process_that_is_to_end_ends_between_chunks(writing, cache):
    """As one whose launcher was killed, which no signal reaches."""
    left = iter(range(3))

    def check_stop():
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        spec = DataConfig(**SPECS["held out"])
        prepare(spec, writing(spec), silent, Encoders(check_stop=check_stop))


def killed_after(count, spec, writing, monkeypatch):
    """Encode until so many parts are there."""
    real = PartStore.put

    def put(self, reading, part):
        if len(parts()) >= count:
            raise Killed
        real(self, reading, part)

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "put", put)
        with pytest.raises(Killed):
            prepare(spec, writing, silent)


def torn(part):
    part.write_bytes(part.read_bytes()[:-1000])


def flipped(part):
    part.write_bytes(part.read_bytes()[:-9] + b"?" + part.read_bytes()[-8:])


def lost(part):
    part.unlink()


def begun(part):
    part.rename(part.with_name(part.name + ".0123"))


@pytest.mark.parametrize(
    ("count", "damage"), [(2, None), (5, None), (8, None), (5, torn), (5, flipped), (5, lost), (5, begun)]
)
def test_an_encoding_that_was_killed_goes_on_with_what_is_missing(count, damage, writing, monkeypatch, cache):
    spec = DataConfig(**SPECS["held out"])
    whole = in_one(spec, writing, monkeypatch, cache)
    killed_after(count, spec, writing(), monkeypatch)
    assert len(parts()) == count
    if damage is not None:
        damage(parts()[1])
    again = writing()
    before = again.tokenizer.texts
    heard = []
    prepare(spec, again, heard.append)
    assert content() == whole and "earlier run had encoded" in str(heard)
    missing = -(-ROWS // 50) - count + (damage is not None)
    assert again.tokenizer.texts - before <= 55 * missing, "what was there is not encoded again"


def test_parts_of_a_file_that_was_changed_are_not_gone_on_with(writing, monkeypatch, cache, home):
    spec, file = DataConfig(**SPECS["held out"]), home / "rows.jsonl"
    old = file.read_bytes()
    file.write_bytes(old.replace(b"w1 ", b"w2 "))
    changed = in_one(spec, writing, monkeypatch, cache)
    file.write_bytes(old)
    killed_after(5, spec, writing(), monkeypatch)
    file.write_bytes(old.replace(b"w1 ", b"w2 "))
    prepare(spec, writing(), silent)
    assert len(parts()) == 5, "they are of other rows, and nobody looks at them"
    shutil.rmtree(parts()[0].parent)
    assert content() == changed


def test_a_part_is_not_written_of_rows_that_changed_while_it_was_made(writing, monkeypatch, cache, home):
    spec, file = DataConfig(**SPECS["held out"]), home / "rows.jsonl"
    fresh, old, status = in_one(spec, writing, monkeypatch, cache), file.read_bytes(), file.stat()

    class Meanwhile(Counted):
        def encode_all(self, texts):
            if self.texts > 120 and file.read_bytes() == old:
                with file.open("r+b") as opened:  # the reader sees it too
                    opened.write(old.replace(b"w1 ", b"w2 "))
            return super().encode_all(texts)

    made = writing()
    tokenizer = Meanwhile(made.tokenizer.hub, made.tokenizer.end_ids)
    changing = TextWriting(tokenizer, ChatTemplate.of_model(made.tokenizer), "tiny", None)
    real = PartStore.parts

    def stopped(self, source, empty):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "parts", stopped)
        with pytest.raises(Killed):
            prepare(spec, changing, silent)
    assert real is PartStore.parts and 0 < len(parts()) < 9
    file.write_bytes(old)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    prepare(spec, writing(), silent)
    assert content() == fresh


def test_parts_that_cannot_be_written_stay_in_memory(writing, monkeypatch, cache):
    spec = DataConfig(**SPECS["held out"])
    whole = in_one(spec, writing, monkeypatch, cache)
    real, written = RowPart.to_bytes, []

    def to_bytes(self):
        written.append(self)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return real(self)

    heard: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(RowPart, "to_bytes", to_bytes)
        prepare(spec, writing(), heard.append)
    assert content() == whole and len(written) == 4
    assert not [one for one in heard if isinstance(one, StatusMessage)]


def peak_of(count, writing, cache, home):
    write_rows(home, count)
    cache()
    spec, made = DataConfig(path="rows.jsonl", held_out=9, on_bad_row="skip", ignore_columns=["note"]), writing()
    tracemalloc.start()
    prepare(spec, made, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_row_takes_little_memory(writing, cache, home):
    """In parts of 50 rows. Signatures alone would take 1,024 bytes a row, if these were in memory."""
    few, many = (peak_of(count, writing, cache, home) for count in (250, 850))
    assert (many - few) / 600 < 600
