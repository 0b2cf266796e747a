"""Laws of holding out: N rows, of each label and source its share, whole groups, by the seed and nothing else."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.errors import ConfigError
from rankwise.rows.hold_out import Candidates, facts_of, hold_out, shares
from rankwise.rows.preparing import prepare
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.data_report import lines_of
from rankwise.runs.records import silent

NUMBERS = {}


def numbers(values):
    return np.array([-1 if one is None else NUMBERS.setdefault(one, len(NUMBERS)) for one in values], np.int64)


def rows(labels=(), prompts=(), groups=(), size=None):
    size = size or max(map(len, (labels, prompts, groups)))
    return Candidates(size, list(labels), numbers(prompts), numbers(groups))


def chosen(sources, held_out, **said):
    return hold_out(sources, DataConfig(path="rows.jsonl", held_out=held_out, **said))


def held(labels, one):
    return Counter(label for label, apart in zip(labels, one, strict=True) if apart)


def test_rows_sorted_by_label_are_held_out_of_every_label():
    """The last rows of such a file hold one class: nothing would be trained on it, and nothing else measured."""
    labels = ["billing"] * 47 + ["returns"] * 42 + ["trivia"] * 41
    source = rows(labels, prompts=range(130))
    (one,) = chosen([source], 25)
    assert held(labels, one) == {"billing": 9, "returns": 8, "trivia": 8}
    (last,) = chosen([source], 25, held_out_order="last")
    assert held(labels, last) == {"trivia": 25}
    said = facts_of([source], [one], DataConfig(path="r", held_out=25)).counts()
    assert said == "25 of 130 rows by seed 0, stratified by label: billing 9, returns 8, trivia 8"
    said = facts_of([source], [last], DataConfig(path="r", held_out=25, held_out_order="last")).counts()
    assert said == "25 of 130 rows, the last of each source by label: trivia 25"


@settings(max_examples=draws(100), deadline=None)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=2, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 9),
    sources=st.integers(1, 3),
)  # fmt: skip
def test_n_are_held_out_and_of_each_label_its_share(labels, share, seed, sources):
    every = [rows(labels, prompts=[(number, row) for row in range(len(labels))]) for number in range(sources)]
    total = len(labels) * sources
    count = int(share * total)
    apart = chosen(every, count, seed=seed)
    assert sum(one.sum() for one in apart) == count
    assert [one.tolist() for one in apart] == [one.tolist() for one in chosen(every, count, seed=seed)]
    if min(Counter(labels).values()) > 1:
        for one in apart:
            assert abs(one.sum() - count / sources) <= 1
            shares = {label: one.sum() * many / len(labels) for label, many in Counter(labels).items()}
            lifted = sum(value < 1 for value in shares.values())
            for label, value in shares.items():
                assert abs(held(labels, one)[label] - value) < 1 + lifted
                assert held(labels, one)[label] >= 1 or one.sum() < len(shares)


def test_every_label_with_two_rows_has_one_held_out():
    """Else scores tell nothing of it, and look perfect."""
    labels = ["ok"] * 300 + ["fault"] * 3 + ["attack", "odd", "odd"]
    for count, expected in ((30, {"ok": 28, "fault": 1, "odd": 1}), (2, {"ok": 1, "fault": 1}), (1, {"ok": 1})):
        (one,) = chosen([rows(labels, prompts=range(len(labels)))], count)
        assert held(labels, one) == expected


@settings(max_examples=draws(100), deadline=None)
@given(groups=st.lists(st.integers(0, 8), min_size=4, max_size=40), share=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_groups_stay_whole_across_sources_and_come_near_to_n(groups, share, seed):
    half = len(groups) // 2
    names = [f"user {group}" for group in groups]
    sources = [rows(groups=names[:half], size=half), rows(groups=names[half:], size=len(names) - half)]
    count = max(1, int(share * len(names)))
    apart = np.concatenate(chosen(sources, count, group="user", seed=seed)).tolist()
    sides = {name: {out for other, out in zip(names, apart, strict=True) if other == name} for name in names}
    assert all(len(side) == 1 for side in sides.values()), "no group on both sides"
    sizes = Counter(names)
    if len(sizes) > 1:
        assert 0 < sum(apart) < len(names)
        assert abs(sum(apart) - count) < max(sizes.values())


def test_one_more_group_is_taken_where_that_comes_nearer_to_n():
    groups = [group for group in "abcdef" for _ in range(3)]
    for count, expected in ((4, 3), (5, 6), (7, 6), (8, 9)):
        (one,) = chosen([rows(groups=groups)], count, group="user")
        assert one.sum() == expected


def test_rows_without_a_group_are_alone():
    (one,) = chosen([rows(groups=[None] * 20)], 5, group="user")
    assert one.sum() == 5


@given(seed=st.integers(0, 20))
def test_rows_that_ask_the_same_stay_on_one_side_where_n_allows_it(seed):
    prompts = [*range(10), *range(5)]
    (one,) = chosen([rows(prompts=prompts)], 5, seed=seed)
    assert one.sum() == 5
    apart = {prompt for prompt, out in zip(prompts, one, strict=True) if out}
    assert not apart & {prompt for prompt, out in zip(prompts, one, strict=True) if not out}
    (one,) = chosen([rows(prompts=["Write a poem."] * 10)], 3, seed=seed)
    assert one.sum() == 3, "one prompt for all is no reason to hold out none"


def test_another_seed_draws_others_and_a_label_that_occurs_once_is_trained_on():
    labels = ["a"] * 30 + ["b"] * 30 + ["once"]
    drawn = {tuple(np.flatnonzero(chosen([rows(labels, prompts=range(61))], 20, seed=seed)[0])) for seed in range(8)}
    assert len(drawn) == 8
    assert not any(60 in one for one in drawn)
    for count in range(1, 60):
        assert not chosen([rows(labels, prompts=range(61))], count)[0][60]
    (one,) = chosen([rows([str(n) for n in range(9)], prompts=["Write a poem."] * 9)], 3)
    assert one.sum() == 3, "labels that all occur once are no reason to hold out none"


@given(count=st.integers(0, 50), sizes=st.lists(st.integers(0, 20), max_size=6))
def test_shares_are_of_the_count_and_none_is_more_than_there_is(count, sizes):
    count = min(count, sum(sizes))
    found = shares(count, sizes)
    assert sum(found) == count and all(one <= size for one, size in zip(found, sizes, strict=True))


@pytest.mark.parametrize(
    ("said", "word"),
    [({"group": "user"}, "give held_out"), ({"held_out_order": "last"}, "give held_out"),
     ({"held_out": 3, "held_out_order": "last", "group": "user"}, "leave out")],
)  # fmt: skip
def test_a_setting_that_would_say_nothing_is_refused(said, word):
    with pytest.raises(ConfigError, match=word):
        DataConfig(path="rows.jsonl", **said)


# Of files


@pytest.fixture
def writing(hub_tokenizer):
    tokenizer = HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])
    return TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)


@pytest.fixture
def prepared(writing):
    return lambda path, **said: prepare(DataConfig(path=str(path), **said), writing, silent)


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sorted_rows(folder):
    """Rows sorted by label, each customer with two."""
    labels = ["billing"] * 20 + ["returns"] * 20 + ["trivia"] * 20
    as_lines(
        folder / "rows.jsonl",
        [{"prompt": f"q {n} of {label}", "completion": label, "customer": n % 30} for n, label in enumerate(labels)],
    )
    return folder / "rows.jsonl"


def texts(rows, writing):
    return [writing.tokenizer.decode(row.ids) for row in rows]


def test_the_data_report_says_which_rows_are_held_out_and_how_many_of_each_label(tmp_path, prepared, writing):
    made = prepared(sorted_rows(tmp_path), held_out=12)
    data_report = made.data_report
    assert data_report.labels == {"billing": 20, "returns": 20, "trivia": 20} and data_report.distinct_labels == 3
    assert data_report.hold_out.labels == {"billing": 4, "returns": 4, "trivia": 4}
    for label in data_report.labels:
        assert sum(f"of {label}<" in text for text in texts(made.measured_rows, writing)) == 4
    assert ("held out", "12 of 60 rows by seed 0, stratified by label: billing 4, returns 4, trivia 4", 12) in lines_of(
        data_report
    )
    assert not data_report.overlap.exact
    last = prepared(sorted_rows(tmp_path), held_out=20, held_out_order="last").data_report
    assert any("training never sees them: 'trivia'" in warning for warning in last.warnings)


def test_rows_of_one_customer_are_on_one_side(tmp_path, prepared, writing):
    made = prepared(sorted_rows(tmp_path), held_out=13, group="customer")
    numbers = [{int(text.split("q ")[1].split(" ")[0]) % 30 for text in texts(rows, writing)}
               for rows in (made.measured_rows, made.trained_rows)]  # fmt: skip
    assert not numbers[0] & numbers[1] and len(numbers[0]) == 6
    facts = made.data_report.hold_out
    assert (facts.rows, facts.requested, facts.groups, facts.groups_in_all) == (12, 13, 6, 30)
    assert "6 of 30 groups by customer (requested: 13)" in facts.counts()


@pytest.mark.parametrize("nothing", ["", None, float("nan")])
def test_rows_of_a_file_without_a_group_belong_to_none(tmp_path, prepared, nothing):
    rows = [{"prompt": f"q {n}", "completion": f"a {n}", "user": "one" if n < 10 else nothing} for n in range(20)]
    as_lines(tmp_path / "rows.jsonl", rows)
    facts = prepared(tmp_path / "rows.jsonl", held_out=5, group="user").data_report.hold_out
    assert (facts.rows, facts.groups, facts.groups_in_all) == (5, 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_file_with_one_prompt_are_on_one_side(tmp_path, prepared, writing, seed):
    # the law above held when no prompts reached it
    as_lines(tmp_path / "rows.jsonl", [{"prompt": f"q {n % 15}.", "completion": f"a {n}"} for n in range(30)])
    made = prepared(tmp_path / "rows.jsonl", held_out=10, seed=seed)
    prompts = [{text.split("q ")[1].split(".")[0] for text in texts(rows, writing)}
               for rows in (made.measured_rows, made.trained_rows)]  # fmt: skip
    assert not prompts[0] & prompts[1] and len(prompts[0]) == 5
    assert not made.data_report.overlap.exact


def test_a_column_of_groups_that_is_missing_or_of_one_value_is_refused(tmp_path, prepared):
    rows = [{"prompt": f"q {n}", "completion": f"a {n}", "user": "same"} for n in range(9)]
    as_lines(tmp_path / "rows.jsonl", rows)
    (problem,) = prepared(tmp_path / "rows.jsonl", held_out=3, group="user").data_report.fatal
    assert "all rows have the same user (data.group)" in problem
    (problem,) = prepared(tmp_path / "rows.jsonl", held_out=3, group="usr").data_report.fatal
    assert "rows.jsonl:1: has no column 'usr'" in problem and '"user"' in problem.replace("'", '"')
    as_lines(tmp_path / "rows.jsonl", [row | {"user": ["a"]} for row in rows])
    (problem,) = prepared(tmp_path / "rows.jsonl", held_out=3, group="user").data_report.fatal
    assert "the group (user) is ['a']; a text or a number is expected" in problem


def test_documents_of_a_row_stay_together_and_in_the_files_order(tmp_path, prepared):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    rows = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]} for n in range(10)]
    as_lines(tmp_path / "rows.jsonl", rows)
    made = prepared(tmp_path / "rows.jsonl", held_out=4, answers="apart")
    assert made.validation.tolist() == sorted(made.validation.tolist()) and len(made.validation) == 8
    assert all(number ^ 1 in made.validation for number in made.validation)
    assert sorted([*made.trained, *made.validation]) == list(range(20))
