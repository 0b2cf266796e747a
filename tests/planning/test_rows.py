"""Rows of a plan: what is estimated holds what a training would count."""

from __future__ import annotations

import json
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.families import COMBINATIONS, NAMES, written_by
from kit.planned_shapes import adapted, llama
from rankwise.config.data import DataConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import DataError, ModelError
from rankwise.planning.batches import average_step
from rankwise.planning.operations import Operations
from rankwise.planning.rows import (
    Conversations,
    Counted,
    Drawn,
    conversations_of,
    counted,
    joined_rows,
    planned_rows,
    without_held_out,
)
from rankwise.planning.tokens import TokenCounter
from rankwise.rows.preparation import prepared_of
from rankwise.rows.reading import Encoding
from rankwise.rows.sample import DRAWN, sample_rows
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.outcome import EncodingFacts


class Words(TokenCounter):
    """Counts words, by a template that writes the texts and nothing else."""

    exact = True

    def count(self, texts):
        return [len(text.split()) for text in texts]


BARE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def in_words(sample, template=BARE):
    return counted(sample, Conversations(Words(), template), exact=True)


def document_of(tokens, supervised, size):
    return Drawn((tokens,), supervised, size)


def read(documents, *, rows=None, size=None, whole=None, exact=True):
    rows = len(documents) if rows is None else rows
    size = sum(document.size for document in documents) if size is None else size
    whole = rows == len(documents) if whole is None else whole
    return Counted(rows, size, len(documents), whole, tuple(documents), exact)


document = st.tuples(st.integers(1, 900), st.floats(0.01, 1), st.integers(1, 4000)).map(
    lambda parts: document_of(parts[0], max(1, int(parts[0] * parts[1])), parts[2])
)
documents = st.lists(document, min_size=2, max_size=40)


@given(documents)
def test_what_was_read_whole_is_exact(drawn):
    planned = planned_rows(read(drawn), limit=1000)
    assert planned.exact and planned.tokens.exact
    assert planned.tokens.likely == sum(document.tokens for document in drawn)
    assert planned.supervised.likely == sum(document.supervised for document in drawn)
    assert planned.documents.likely == len(drawn)
    assert planned.error == planned.too_long == 0


@given(documents, st.integers(1, 899))
def test_rows_over_the_limit_are_left_out_cut_or_split_as_in_a_training(drawn, limit):
    fitting = [document for document in drawn if document.tokens <= limit]
    dropped, truncated, cut, split = (
        planned_rows(read(drawn), limit=limit, too_long=how) for how in ("drop", "truncate", "cut-prompt", "split")
    )
    assert dropped.documents.likely == len(fitting)
    assert dropped.tokens.likely == sum(document.tokens for document in fitting)
    assert dropped.too_long == len(drawn) - len(fitting)
    assert cut.documents.likely == len(drawn)  # the answer stays
    assert dropped.tokens.likely <= truncated.tokens.likely <= cut.tokens.likely <= split.tokens.likely
    assert truncated.supervised.likely <= cut.supervised.likely <= split.supervised.likely
    assert max(dropped.lengths, default=0) <= limit and cut.longest <= limit and truncated.longest <= limit


def test_nine_in_ten_intervals_hold_the_truth():
    """They are of 95 %; thirty samples of three hundred rows out of five thousand."""
    random = Random(1)
    everything = []
    for _ in range(5000):
        tokens = max(2, int(random.lognormvariate(5, 0.8)))
        everything.append(document_of(tokens, max(1, tokens // 3), round(4 * tokens * random.uniform(0.6, 1.4))))
    size = sum(document.size for document in everything)
    truth = sum(document.tokens for document in everything)
    kept = sum(document.tokens for document in everything if document.tokens <= 400)
    held = held_of_kept = 0
    for seed in range(30):
        drawn = Random(seed).sample(everything, 300)
        counts = read(drawn, rows=5000, size=size)
        whole, short = planned_rows(counts, limit=10**6), planned_rows(counts, limit=400)
        held += whole.tokens.low <= truth <= whole.tokens.high
        held_of_kept += short.tokens.low <= kept <= short.tokens.high
        assert whole.tokens.likely == pytest.approx(truth, rel=0.05)
        assert 0 < whole.error < 0.1 and not whole.exact
    assert held >= 27 and held_of_kept >= 27


@given(documents, st.integers(2, 50))
def test_more_rows_of_the_same_kind_are_as_many_times_the_tokens(drawn, times):
    size = sum(document.size for document in drawn)
    planned = planned_rows(read(drawn, rows=times * len(drawn), size=times * size), limit=1000)
    assert planned.tokens.likely == pytest.approx(times * sum(document.tokens for document in drawn))
    assert planned.documents.likely == pytest.approx(times * len(drawn))


@given(documents)
def test_a_weight_is_how_often_each_row_is_seen(drawn):
    once, twice = (planned_rows(read(drawn), limit=500, weight=weight) for weight in (1.0, 2.0))
    assert twice.documents.likely == 2 * once.documents.likely
    assert twice.tokens.likely == 2 * once.tokens.likely
    assert twice.lengths == once.lengths


@given(documents, documents)
def test_two_sources_are_their_sum(one, other):
    apart = [planned_rows(read(drawn), limit=700) for drawn in (one, other)]
    both = planned_rows(read([*one, *other]), limit=700)
    joined = joined_rows(apart)
    for name in ("documents", "tokens", "supervised"):
        assert getattr(joined, name).likely == pytest.approx(getattr(both, name).likely)
    assert joined.longest == both.longest and joined.too_long == pytest.approx(both.too_long)


def test_a_guess_from_characters_says_how_wide_it_is():
    drawn = [document_of(100, 50, 400)] * 10
    guessed = planned_rows(read(drawn, exact=False), limit=1000)
    assert not guessed.exact
    assert (guessed.tokens.low, guessed.tokens.likely, guessed.tokens.high) == (900, 1000, 1600)


def test_held_out_rows_are_not_trained_on():
    planned = planned_rows(read([document_of(100, 50, 400)] * 10), limit=1000)
    left = without_held_out(planned, DataConfig(path="a", held_out=4))
    assert left.documents.likely == 6 and left.tokens.likely == 600
    assert without_held_out(planned, DataConfig(path="a", held_out=99)).documents.likely == 0


def test_steps_are_those_of_a_training():
    planned = planned_rows(read([document_of(100, 50, 400)] * 10, rows=95, size=38000), limit=1000)
    for training in (TrainingConfig(), TrainingConfig(epochs=3.0, batch_size=7), TrainingConfig(steps=11)):
        assert planned.steps(training) == training.total_steps(95)


def test_an_average_step_times_all_steps_is_all_that_is_computed():
    drawn = [document_of(tokens, tokens // 2, tokens) for tokens in (10, 200, 60, 128)]
    planned, shape, training = planned_rows(read(drawn), limit=1000), llama(), TrainingConfig(epochs=1.0, batch_size=2)
    made = Operations(shape, planned.load, adapted(shape, 4))
    step = average_step(made, planned, training, planned.load)
    assert 2 * step.operations == pytest.approx(made.total)
    assert 2 * step.tokens == 398
    assert average_step(
        made, planned, TrainingConfig(batch_size=4, max_batch_tokens=100), planned.load
    ).micro_batches == ceil(3.98)


def data_file(folder, rows, *, kind="jsonl"):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows)
    else:
        text = "prompt,completion\n" + "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def pairs(count, seed=0):
    random = Random(seed)
    return [
        {"prompt": "word " * random.randint(1, 40), "completion": "word " * random.randint(1, 30)} for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows = pairs(40)
    spec = DataConfig(path=str(data_file(tmp_path, rows, kind=kind)), held_out=0)
    seen = sample_rows(spec, spec.all_sources[0])
    assert seen.rows == seen.rows_in_files == 40 and not seen.problems
    planned = planned_rows(in_words(seen), limit=1000)
    said = [len(row["prompt"].split()) + len(row["completion"].split()) for row in rows]
    assert planned.tokens.likely == sum(said) and planned.longest == max(said) and planned.exact
    assert planned.supervised.likely == sum(len(row["completion"].split()) + 1 for row in rows)  # and its end


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_of_many_rows_some_are_drawn_and_the_longest_is_found(tmp_path, kind):
    rows = pairs(4000)
    rows[1234] = {"prompt": "word " * 900, "completion": "word"}
    spec = DataConfig(path=str(data_file(tmp_path, rows, kind=kind)), held_out=0)
    first, again = (sample_rows(spec, spec.all_sources[0]) for _ in range(2))
    assert first == again and len(first.drawn) == DRAWN and first.rows_in_files == 4000
    planned = planned_rows(in_words(first), limit=1000)
    said = sum(len(row["prompt"].split()) + len(row["completion"].split()) for row in rows)
    assert planned.longest == 901
    assert planned.tokens.low <= said <= planned.tokens.high and planned.error < 0.05


def test_of_a_source_that_draws_rows_as_many_are_planned(tmp_path):
    spec = DataConfig(path=str(data_file(tmp_path, pairs(500))), rows=50, held_out=0)
    planned = conversations_of(spec, TokenCounter(), 1024)
    assert planned.documents.likely == pytest.approx(50) and not planned.exact


def test_a_row_with_several_tasks_is_several_documents(tmp_path):
    task = {"instruction": "add", "instances": [{"input": "1 1", "output": "2"}, {"input": "2 2", "output": "4"}]}
    assert (
        conversations_of(DataConfig(path=str(data_file(tmp_path, [task] * 5))), TokenCounter(), 1024).documents.likely
        == 10
    )


def test_blank_lines_and_a_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n   \n{"text": "two"}')
    spec = DataConfig(path=str(path), held_out=0)
    assert sample_rows(spec, spec.all_sources[0]).rows == 2


def test_rows_that_cannot_be_read_are_told_and_no_part_of_the_tokens(tmp_path):
    path = data_file(tmp_path, pairs(10))
    path.write_text(path.read_text() + "{broken\n")
    spec = DataConfig(path=str(path), held_out=0)
    seen = sample_rows(spec, spec.all_sources[0])
    assert seen.unread == 1 and f"{path}:11" in seen.problems[0]
    assert planned_rows(in_words(seen), limit=1000).documents.likely == 10


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "has no rows"), (b'{"chosen": "a", "rejected": "b"}\n', "is a preference pair"),
        (b"{\n", "over several lines"), (b"\x1f\x8b\x08rest\n", "gzip"), (b'[{"text": "a"}, {"te', "not JSON"),
        (b"[]", "has no rows"),
    ],
)  # fmt: skip
def test_a_file_of_no_rows_is_refused_in_the_words_of_a_training(tmp_path, content, wanted):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=wanted):
        conversations_of(DataConfig(path=str(path)), TokenCounter(), 1024)


CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<s> system be kind </s> "
    "{% endif %}<s> {{ message['role'] }} {{ message['content'] }} </s> {% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, "{% if %}", "{{ raise_exception('no') }}"])
def test_what_a_template_adds_is_counted_or_guessed_where_it_cannot_be_rendered(tmp_path, template):
    spec = DataConfig(path=str(data_file(tmp_path, [{"prompt": "one two", "completion": "three"}])), held_out=0)
    (drawn,) = in_words(sample_rows(spec, spec.all_sources[0]), template).documents
    assert drawn.supervised == 2 and drawn.tokens == 3 + (5 + 2 * 3 if template == CHATML else 2 * 5)


@pytest.mark.parametrize("name", NAMES[::3])
def test_a_plan_counts_what_a_training_encodes(tmp_path, name):
    """To the few tokens that depend on what stands beside them."""
    family, kind = COMBINATIONS[NAMES.index(name)]
    template = written_by(family, kind)
    template.tokenizer.hub.save_pretrained(tmp_path)
    spec = DataConfig(path=str(data_file(tmp_path, pairs(60))), max_length=4096, held_out=0)
    planned = conversations_of(spec, TokenCounter(tmp_path), 4096)
    encoder = Encoder(template, template.tokenizer, spec, 4096)
    work = Encoding(spec, encoder, EncodingFacts())
    data_report = prepared_of(work, work.read(None)).data_report
    assert planned.exact and planned.documents.likely == data_report.sequences == 60
    assert planned.tokens.likely == pytest.approx(data_report.tokens, rel=0.05)
    assert planned.supervised.likely == pytest.approx(data_report.loss_tokens, rel=0.12)


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TokenCounter(tmp_path).count(["a"])
