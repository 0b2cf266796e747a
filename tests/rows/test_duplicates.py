"""Duplicates: exact ones by what is said, near ones by shingles shared, the same however the stream was cut."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.rows.report import duplicates
from rankwise.rows.report.duplicates import (
    MOST_COMPARED,
    TextIndex,
    near_of,
)

VOCABULARY = [f"word{number}" for number in range(1000)]
CHINESE = (
    "春天来了公园里的花都开了孩子们在草地上跑来跑去老人坐在长椅上晒太阳远处传来小鸟的歌声空气中带着泥土和青草的味道"
    "一只小狗追着蝴蝶跳过了小溪水面上漂着几片粉色的花瓣风轻轻吹过柳树的枝条像绿色的帘子一样摇动着每个人的脸上都有笑容"
)
THAI = "วันนี้อากาศดีมากเราจึงไปเดินเล่นที่สวนสาธารณะใกล้บ้านเด็กๆวิ่งเล่นกันอย่างสนุกสนานส่วนผู้ใหญ่นั่งคุยกันใต้ต้นไม้ใหญ่และดื่มน้ำชาเย็น"
SHORT = st.lists(
    st.sampled_from(["a", "b", "B", "ｂ", "½", "1\u20442", "ﬁ", "fi", "é", "e\u0301", "花", " ", "\n", "?"]), max_size=5
).map("".join)
STREAM = st.lists(SHORT | st.sampled_from(["one two three four", "One two  three four", CHINESE]), max_size=25)
SEEDS = st.integers(0, 2**32)


@dataclass
class Duplicates:
    exact: dict
    near: dict

    @classmethod
    def of(cls, found):
        return cls(*(dict(zip(*map(np.ndarray.tolist, pairs), strict=True)) for pairs in (found.exact, found.near)))


class Texts(TextIndex):
    def duplicates(self):
        return Duplicates.of(self.repeats())

    def shared(self, other):
        return Duplicates.of(self.overlap(np.arange(len(self)), other, np.arange(len(other))))


def index_of(texts, size=None):
    index = Texts()
    for start in range(0, len(texts), size or len(texts) or 1):
        index.add(texts[start : start + (size or len(texts))])
    return index


def words(rng, count):
    return rng.sample(VOCABULARY, count)


def said(text):
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())).strip()


def jaccard(one, other):
    first, second = ({*zip(text.split(), text.split()[1:], text.split()[2:], strict=False)} for text in (one, other))
    return len(first & second) / len(first | second)


def family(rng, size):
    """Texts of 100 words, some of them another with a word changed, or a dozen."""
    texts = [" ".join(words(rng, 100)) for _ in range(3)]
    while len(texts) < size:
        changed = rng.choice(texts).split()
        for _ in range(rng.choice([0, 1, 1, 12])):
            changed[rng.randrange(100)] = rng.choice(VOCABULARY)
        texts.append(" ".join(changed))
    return texts


def agrees(found, similar):
    """With the Jaccard similarity of each text to those it may be near, where that is far from 0.8: five standard
    deviations of an estimate from 128 components, and more."""
    decided = 0
    assert not found.exact.keys() & found.near.keys(), "an exact duplicate is never a near one"
    for index, row in enumerate(similar):
        assert (index in found.exact) == (1.0 in row)
        if 1.0 in row:
            assert found.exact[index] == row.index(1.0)
        elif max(row, default=0) > 0.92:
            assert index in found.near
            decided += 1
        elif max(row, default=0) < 0.62:
            assert index not in found.near
            decided += 1
    assert all(similar[index][earlier] > 0.62 for index, earlier in found.near.items())
    return decided > 0


@settings(max_examples=draws(30), deadline=None)
@given(STREAM, SEEDS, st.integers(1, 7))
def test_it_does_not_matter_how_the_stream_was_cut(texts, seed, size):
    texts = texts + family(random.Random(seed), 12)
    whole, parts = index_of(texts), index_of(texts, size)
    assert len(whole) == len(parts) == len(texts)
    assert whole.duplicates() == parts.duplicates()
    assert whole.shared(index_of(texts[::2])) == parts.shared(index_of(texts[::2], size + 1))


@given(STREAM)
def test_exact_are_those_that_say_the_same_as_an_earlier_one(texts):
    expected = {}
    for index, text in enumerate(texts):
        first = [said(other) for other in texts].index(said(text))
        if first < index:
            expected[index] = first
    assert index_of(texts).duplicates().exact == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("One  two\n", " one\ttwo"), ("ﬁne", "FINE"), ("ｂ２", "b2"), ("½ off", "1\u20442 off"), ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"), ("a\u00a0b", "a b"), ("全角　空白", "全角 空白"),
    ],
)  # fmt: skip
def test_forms_that_say_the_same(one, other):
    assert index_of([one, "else", other]).duplicates() == Duplicates(exact={2: 0}, near={})


@settings(max_examples=draws(100), deadline=None)
@given(SEEDS, st.integers(0, 60))
def test_a_word_put_in_makes_a_near_duplicate(seed, place):
    rng = random.Random(seed)
    text = words(rng, 60)
    longer = " ".join([*text[:place], "unheard-of", *text[place:]])
    found = index_of([" ".join(words(rng, 60)), " ".join(text), longer.upper() + "\n"]).duplicates()
    assert found == Duplicates(exact={}, near={2: 1})


@settings(max_examples=draws(50), deadline=None)
@given(SEEDS)
def test_near_duplicates_are_those_of_brute_force(seed):
    texts = family(random.Random(seed), 20)
    similar = [[jaccard(text, earlier) for earlier in texts[:index]] for index, text in enumerate(texts)]
    assert agrees(index_of(texts).duplicates(), similar)


@settings(max_examples=draws(50), deadline=None)
@given(SEEDS)
def test_overlap_is_that_of_brute_force(seed):
    rng = random.Random(seed)
    texts = family(rng, 24)
    rng.shuffle(texts)
    mine, others = texts[:14], texts[14:]
    found = index_of(mine).shared(index_of(others))
    assert agrees(found, [[jaccard(text, other) for other in others] for text in mine])
    assert list(found.near) == sorted(found.near) and list(found.exact) == sorted(found.exact)


class Signed(TextIndex):
    signatures = None

    def __init__(self, signatures):
        self.signatures = signatures


def near_rows(mine, theirs):
    """Of whole matrices of signatures."""
    others = None if theirs is None else np.arange(len(theirs))
    pairs = near_of(Signed(mine), np.arange(len(mine)), Signed(mine if theirs is None else theirs), others)
    return dict(zip(*map(np.ndarray.tolist, pairs), strict=True))


@given(st.sets(st.integers(0, 127), min_size=25, max_size=25), SEEDS, st.booleans())
def test_no_pair_of_signatures_is_missed_that_differs_in_25_of_128(places, seed, evenly):
    rng = np.random.default_rng(seed)
    signatures = rng.integers(0, 2**32, (4, 128), dtype=np.uint32)
    signatures[3] = signatures[1]
    signatures[3, range(2, 127, 5) if evenly else sorted(places)] ^= 1
    assert near_rows(signatures, None) == {3: 1}
    assert near_rows(signatures[2:], signatures[:2]) == {1: 1}
    signatures[3, rng.choice(np.flatnonzero(signatures[3] == signatures[1]))] ^= 1  # 102 are less than 0.8
    assert near_rows(signatures, None) == {}


def test_the_first_of_many_near_ones_is_named():
    signatures = np.zeros((500, 128), dtype=np.uint32)
    signatures[:, 127] = np.arange(500)
    assert near_rows(signatures, None) == dict.fromkeys(range(1, 500), 0)
    assert near_rows(signatures[:9], signatures[9:]) == dict.fromkeys(range(9), 0)


def test_unrelated_texts_are_not_near_even_with_a_long_beginning_in_common():
    rng = random.Random(1)
    instruction = " ".join(words(rng, 60))
    texts = [f"{instruction} {' '.join(words(rng, 60))}" for _ in range(300)]
    index = index_of(texts)
    assert index.duplicates() == index.shared(index_of(["nothing", *words(rng, 50)])) == Duplicates({}, {})


def test_near_texts_are_found_among_many_that_begin_alike():
    rng = random.Random(2)
    instruction = " ".join(words(rng, 100))
    texts = [f"{instruction} {' '.join(words(rng, 40))}" for _ in range(20 * MOST_COMPARED)]
    texts += [f"{text} indeed" for text in texts[::50]]
    expected = {20 * MOST_COMPARED + number: 50 * number for number in range(len(texts[::50]) - 1)}
    found = index_of(texts).duplicates()
    assert found.exact == {}
    assert {index: found.near.get(index) for index in expected} == expected


@pytest.mark.parametrize("text", [CHINESE, THAI, f"Translate this into English: {CHINESE}", f"{CHINESE} {THAI}"])
def test_scripts_without_spaces(text):
    place = len(text) - 20
    changed, other = text[:place] + "犬" + text[place + 1 :], text[:9] + "".join(reversed(text[9:]))
    assert index_of([text, other, changed, text + "\n"]).duplicates() == Duplicates(exact={3: 0}, near={2: 0})


def test_most_repeated_text_is_looked_at_once(monkeypatch):
    signed = []
    signature = duplicates.signature_of
    monkeypatch.setattr(duplicates, "signature_of", lambda text: signed.append(text) or signature(text))
    found = index_of(["The same again, and again."] * 10_000 + ["another"], 999).duplicates()
    assert found == Duplicates(exact=dict.fromkeys(range(1, 10_000), 0), near={})
    assert len(signed) == 2


def test_texts_of_any_length():
    long = " ".join(random.Random(4).choices(VOCABULARY, k=200_000))
    assert len(long) > 1_000_000
    unspaced = "".join(random.Random(5).choices(CHINESE, k=400_000))
    texts = [
        "",
        long,
        " \n\t",
        f"{long} more",
        "x" * 1_000_000,
        "x",
        "x y",
        "X  Y",
        unspaced,
        unspaced + "犬",
        "犬",
        "?",
    ]
    assert index_of(texts, 2).duplicates() == Duplicates(exact={2: 0, 7: 6}, near={3: 1, 9: 8})
    assert index_of([""]).shared(index_of(texts)) == Duplicates({0: 0}, {})


def test_half_a_character_and_other_strange_ones():
    texts = ["half \ud83d of it", "half \ude00 of it", "half \ud83d  OF it", "\x00", "\u200b", "\ufeff"]
    assert index_of(texts).duplicates() == Duplicates(exact={2: 0}, near={})


def test_nothing_overlaps_with_nothing():
    none, one = Texts(), index_of(["one"])
    for index in (none.duplicates(), none.shared(one), one.shared(none), none.shared(none), one.duplicates()):
        assert index == Duplicates({}, {})
    assert len(none) == 0


def test_asking_in_between_changes_nothing():
    texts = family(random.Random(6), 30)
    index, other = Texts(), index_of(texts[:5])
    for start in range(0, 30, 4):
        index.add(texts[start : start + 4])
        assert index.duplicates() == index_of(texts[: start + 4]).duplicates()
        assert index.shared(index).exact == {i: index.duplicates().exact.get(i, i) for i in range(len(index))}
        assert index.shared(other).exact.keys() >= set(range(min(5, len(index))))
    assert index.duplicates().near and index.duplicates().exact


def test_an_answer_is_the_same_in_every_process():
    program = (
        "import sys, json; from rankwise.rows.report.duplicates import TextIndex\n"
        "index = TextIndex(); index.add(json.load(sys.stdin)); print(index.repeats(), index.signatures[:2])"
    )
    texts = json.dumps(family(random.Random(7), 30))
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=texts,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }
    assert len(answers) == 1 and "near=(array([" in answers.pop()


def real_texts(folder, name):
    path = folder / name
    match name:
        case "sharegpt/vicuna_dummy_conversation.json":
            rows = json.loads(path.read_text())
            return ["\n".join(turn["value"] for turn in row["conversations"]) for row in rows]
        case "gsm8k/train.jsonl":
            return [json.loads(line)["question"] for line in path.read_text().splitlines()[:1500]]
        case _:
            rows = path.read_text().splitlines() if name.endswith("l") else json.loads(path.read_text())
            rows = [json.loads(row) if isinstance(row, str) else row for row in rows]
            return [" ".join(value for value in row.values() if isinstance(value, str)) for row in rows]


def test_a_real_row_edited_by_hand_is_found_in_the_rows_it_came_from(shared_data):
    rows = real_texts(shared_data, "dolly/train.jsonl")
    long = [number for number, row in enumerate(rows) if len(row.split()) > 120][:100]
    edited = [rows[number].replace(".", ". Well,", 1) for number in long]
    found = index_of(edited).shared(index_of(rows))
    assert found == Duplicates({}, dict(enumerate(long)))
