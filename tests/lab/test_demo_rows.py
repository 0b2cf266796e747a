"""The demo's rows are the same everywhere and answered by what they say; its splits share nothing to remember."""

from __future__ import annotations

import json
import re

import pytest
from demo_rows import INTENTS, TEST, TRAIN, URGENCIES, lines, order_examples

from rankwise.commands.demo import demo_rows

COUNT = 3000


@pytest.fixture(scope="module", params=["train", "test"])
def rows(request):
    return order_examples(COUNT, TRAIN if request.param == "train" else TEST, 11)


def answer(example):
    return json.loads(example.messages[-1].content)


def words(text):
    return set(text.split())


def test_the_shipped_file_is_made_by_the_script():
    training, testing = demo_rows()
    assert (len(training), len(testing)) == (400, 100)
    assert [*training, *testing] == lines()


def test_the_splits_share_no_name_no_thing_and_no_order_number():
    assert not words(TRAIN.names) & words(TEST.names)
    assert not words(TRAIN.things) & words(TEST.things)
    assert not set(TRAIN.orders) & set(TEST.orders)


def test_no_word_of_one_split_is_met_in_the_rows_of_the_other():
    for own, other in ((TRAIN, TEST), (TEST, TRAIN)):
        text = "\n".join(example.messages[1].content for example in order_examples(COUNT, own, 0))
        met = set(re.findall(r"[A-Za-z]+", text))
        assert not met & (words(other.names) | words(other.things))
        assert words(own.names) | words(own.things) <= met
        assert all(int(number) in own.orders for number in re.findall(r"\d{4,}", text))


def test_every_answer_is_one_line_of_strict_json_with_four_keys(rows):
    for example in rows:
        said = example.messages[-1].content
        assert "\n" not in said
        assert list(json.loads(said)) == ["intent", "product", "order", "urgency"]
        assert json.dumps(answer(example)) == said
        assert answer(example)["intent"] in INTENTS
        assert answer(example)["urgency"] in URGENCIES


def test_product_and_order_can_be_read_from_the_message(rows):
    for example in rows:
        message, wanted = example.messages[1].content, answer(example)
        assert message.count(wanted["product"]) == 1
        # an order number is given exactly if one is expected, and it is the only long number
        assert re.findall(r"\d{4,}", message) == ([wanted["order"]] if wanted["order"] is not None else [])
