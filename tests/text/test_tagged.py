"""Words of texts, and the spans that tags stand for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rankwise.rows.text.example import Span, joined, spans_of, strays_in, words_of

TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b", "x"]), max_size=12)


def by_edges(tags: list[str]) -> list[Span]:
    """As conlleval defines it: a chunk starts and ends between two tags, by their prefixes and types alone."""

    def parts(tag: str) -> tuple[str, str]:
        return (tag[0], tag[2:]) if tag[:2] in ("B-", "I-") else ("O", "") if tag == "O" else ("I", tag)

    pairs = list(pairwise(map(parts, ["O", *tags, "O"])))
    starts = [at for at, (one, two) in enumerate(pairs) if two[0] == "B" or (two[0] == "I" and one[1] != two[1])]
    ends = [
        at for at, (one, two) in enumerate(pairs) if one[0] != "O" and (two[0] in "BO" or one[1] != two[1])
    ]  # fmt: skip
    return [Span(start, end, parts(tags[start])[1]) for start, end in zip(starts, ends, strict=True)]


@given(TAGS)
def test_spans_are_those_of_conlleval(tags):
    assert spans_of(tags) == by_edges(tags)


@given(TAGS)
def test_a_stray_tag_begins_a_span_that_no_b_begins(tags):
    begun = sum(tags[span.first].startswith("I-") for span in spans_of(tags))
    assert strays_in(tags) == begun


def test_words_are_runs_of_letters_and_single_signs():
    text = "Anna's 12kg in New-York, 東京で"
    assert [text[start:end] for start, end in words_of(text)] == [
        "Anna", "'", "s", "12kg", "in", "New", "-", "York", ",", "東", "京", "で"
    ]  # fmt: skip


def test_joined_words_lie_where_it_is_said():
    text, ranges = joined(["New York", "is", "."])
    assert text == "New York is ." and [text[slice(*one)] for one in ranges] == ["New York", "is", "."]
