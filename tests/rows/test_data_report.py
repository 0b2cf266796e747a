"""Every number of the data report is what one counts by hand in the rows and in the sequences; what is fatal stops.

By hand: ChatML written out here, encoded piece by piece, and the learned runs looked at id by id.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rankwise as package
from conftest import CHATML
from kit.command import rankwise
from kit.sampling import draws
from rankwise.commands.data import check, count_only
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.recipe import recipe_named
from rankwise.rows.preparing import prepare
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import silent

END, BEGIN = "<|im_end|>", "<|im_start|>"
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TWICE = "{{ bos_token }}" + CHATML
UNLIKE = MARKED.replace("assistant\n' }}{% endif %}", "assistant\nSurely: ' }}{% endif %}")
REFUSING = "{{ raise_exception('not this one') }}"
WORDS = st.lists(st.sampled_from(["fox", "dog", "lazy", "the quick", "Paris", "x", "é"]), min_size=1, max_size=8)
TEXTS = WORDS.map(" ".join)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of its own to work in, with a cache of its own."""
    folder = tmp_path_factory.mktemp("data_report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RANKWISE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def writing(hub_tokenizer):
    return writing_with(hub_tokenizer, CHATML)


def writing_with(hub_tokenizer, template):
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = template
    tokenizer = HubTokenizer(hub, [hub.eos_token_id])
    return TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)


def write(name, rows):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepared(writing, name="rows.jsonl", **settings_):
    return prepare(DataConfig(path=name, **settings_) if name else DataConfig(**settings_), writing, silent)


def pairs(count, begin=0):
    """Rows that are not alike."""
    return [
        {"prompt": f"{n} what {n * 7} is {n * 3} it {n}?", "completion": f"fox {n} dog"}
        for n in range(begin, begin + count)
    ]


def conversation(*turns, system=None):
    """(question, answer), or (question, answer, weight)."""
    said = [{"role": "system", "content": system}] if system is not None else []
    for asked, answered, *weight in turns:
        said.append({"role": "user", "content": asked})
        said.append({"role": "assistant", "content": answered} | ({"weight": weight[0]} if weight else {}))
    return {"messages": said}


# By hand


def by_hand(row, hub):
    """(ids, learned) of a row as ChatML."""
    turns = row.get("messages") or [
        {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]},
    ]  # fmt: skip
    found = []
    for turn in turns:
        learns = turn["role"] == "assistant" and turn.get("weight", 1) == 1
        for text, learned in ((f"{BEGIN}{turn['role']}\n", False), (turn["content"] + END, learns), ("\n", False)):
            found += [(token, learned) for token in hub(text, add_special_tokens=False)["input_ids"]]
    return found


def runs_of(sequence):
    """The stretches of learned ids."""
    runs = [[]]
    for token, learned in sequence:
        if learned:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def supervised(sequence):
    return sum(learned for _, learned in sequence[1:])


def all_ended(sequence, end):
    return all(run[-1] == end for run in runs_of(sequence))


def percentile(lengths, share):
    """The least length that is no shorter than this share of the way up."""
    return sorted(lengths)[math.ceil(share * (len(lengths) - 1))]


def documents_of(found):
    return [
        [(int(i), bool(one)) for i, one in zip(tokens.ids, tokens.loss_mask, strict=True)] for tokens in found.sequences
    ]


TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
SOME_WEIGHTLESS = TURNS.flatmap(
    lambda turns: st.lists(st.sampled_from([0, 1]), min_size=len(turns) - 1, max_size=len(turns) - 1).map(
        lambda weights: [(*turn, weight) for turn, weight in zip(turns, [*weights, 1], strict=True)]
    )
)
GOOD = st.builds(
    lambda turns, system: conversation(*turns, system=system),
    SOME_WEIGHTLESS,
    st.sampled_from([None, None, "Be kind."]),
)
BAD = st.sampled_from(["{", "[1]", {"messages": []}, {"messages": [{"role": "user", "content": "hm"}]}, {"text": "x"}])


@settings(max_examples=draws(40), deadline=None)
@example(  # cut where an answer would begin: the one before it has its end
    first=conversation(("fox", "dog", 0), ("fox", "fox fox fox"), ("fox", "fox")),
    rows=[],
    limit=46,
    too_long="truncate",
)
@given(
    first=GOOD, rows=st.lists(GOOD | BAD, max_size=12), limit=st.integers(5, 120),
    too_long=st.sampled_from(["drop", "truncate"]),
)  # fmt: skip
def test_rows_documents_tokens_and_ends_are_those_counted_by_hand(place, writing, first, rows, limit, too_long):
    rows = [first, *rows]
    write("rows.jsonl", rows)
    found = prepared(writing, max_length=limit, too_long=too_long, on_bad_row="skip")
    data_report = found.data_report
    end = writing.tokenizer.hub.eos_token_id

    readable = [row for row in rows if isinstance(row, dict) and len(row.get("messages", ())) > 1]
    whole = [by_hand(row, writing.tokenizer.hub) for row in readable]
    cut = [sequence[:limit] for sequence in whole] if too_long == "truncate" else whole
    kept = [sequence for sequence in cut if len(sequence) <= limit and supervised(sequence)]

    assert documents_of(found) == kept
    assert data_report.rows == len(rows) == data_report.used + data_report.skipped
    assert data_report.used == data_report.sequences == len(kept)
    assert data_report.tokens == sum(map(len, kept))
    assert data_report.loss_tokens == sum(map(supervised, kept))
    assert data_report.eos_in_loss == sum(all_ended(sequence, end) for sequence in kept)
    assert data_report.masks == ({"prefix": len(kept)} if kept else {})
    over = sum(len(sequence) > limit for sequence in whole)
    lost = sum(not supervised(sequence) for sequence in cut)
    assert data_report.truncated == (over if too_long == "truncate" else 0)
    assert data_report.without_loss_tokens == (lost if too_long == "truncate" else 0)
    bad = len(rows) - len(readable)
    why = {"cannot be read": bad, "too long": over} if too_long == "drop" else {}
    why = why or {"cannot be read": bad, "nothing left to train on": lost}
    assert data_report.skipped_why == {reason: count for reason, count in why.items() if count}
    assert data_report.skipped == len(data_report.skipped_rows) == sum(data_report.skipped_why.values())
    lengths = [len(sequence) for sequence in whole]
    assert data_report.lengths.longest == max(lengths)
    assert data_report.lengths.median == percentile(lengths, 0.5)
    assert data_report.lengths.p90 == percentile(lengths, 0.9)
    assert data_report.lengths.p99 == percentile(lengths, 0.99)
    assert data_report.lengths.suggested_max_length == math.ceil(data_report.lengths.p99 / 64) * 64
    assert data_report.template_parity is (True if kept else None) and data_report.template_parity_broken == 0
    assert sorted(found.trained.tolist()) == list(range(len(kept))) and not len(found.validation)
    assert bool(data_report.fatal) == (not kept or data_report.eos_in_loss == 0)


def test_a_template_that_refuses_a_row_costs_that_row(place, hub_tokenizer):
    picky = "{% if 'dog' in messages[0]['content'] %}" + REFUSING + "{% endif %}" + CHATML
    write("rows.jsonl", [{"prompt": asked, "completion": "fox"} for asked in ("a", "dog", "b", "dogs", "c")])
    data_report = prepared(writing_with(hub_tokenizer, picky), on_bad_row="skip").data_report
    assert (data_report.rows, data_report.used, data_report.sequences) == (5, 3, 3)
    assert data_report.skipped_why == {"cannot be written for this model": 2}
    assert [skipped.where for skipped in data_report.skipped_rows] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert not data_report.fatal


def test_masks_are_counted_by_the_way_they_were_found(place, writing, hub_tokenizer):
    talks = [conversation(("a", "b"), ("c", "d")), conversation(("e", "f")), conversation(("g", "h", 0), ("i", "j"))]
    write("talks.jsonl", talks)
    write("texts.jsonl", [{"text": "the quick brown fox"}, {"text": "dog"}])
    marked = writing_with(hub_tokenizer, MARKED)
    assert prepared(writing, "talks.jsonl").data_report.masks == {"prefix": 3}
    assert prepared(marked, "talks.jsonl").data_report.masks == {"marks": 3}
    assert prepared(writing, "texts.jsonl").data_report.masks == {"text": 2}
    # of the first talk two sequences; of the last one, since what has no weight is not learned
    assert prepared(writing, "talks.jsonl", answers="apart").data_report.masks == {"apart": 2, "prefix": 2}
    both = prepared(marked, None, sources=["talks.jsonl", "texts.jsonl"])
    assert both.data_report.masks == {"marks": 3, "text": 2}
    assert both.data_report.format == "messages, text"
    assert sum(both.data_report.masks.values()) == both.data_report.sequences == len(both.sequences)


@pytest.mark.parametrize(
    "settings_",
    [{"answers": "apart"}, {"too_long": "split"}, {"too_long": "truncate"}, {"too_long": "cut-prompt"}, {}],
    ids=str,
)
def test_however_rows_are_cut_the_counts_are_those_of_the_documents_that_are_left(place, writing, settings_):
    talk = [(f"the quick {n}", f"brown fox {n}") for n in range(6)]
    rows = [conversation(*talk[:n], system="Be kind.") for n in (1, 2, 6, 3)]
    rows.append(conversation(("long " * 30, "fox")))
    write("rows.jsonl", rows)
    found = prepared(writing, max_length=90, **settings_)
    data_report, sequences = found.data_report, documents_of(found)
    assert max(map(len, sequences)) <= 90
    assert data_report.sequences == len(sequences) == sum(data_report.masks.values())
    assert data_report.tokens == sum(map(len, sequences))
    assert data_report.loss_tokens == sum(map(supervised, sequences)) > 0
    end = writing.tokenizer.hub.eos_token_id
    assert data_report.eos_in_loss == sum(all_ended(sequence, end) for sequence in sequences)
    assert data_report.rows == data_report.used + data_report.skipped == 5


def test_what_is_learned_whole_counts_every_token_but_the_first(place, writing):
    write("rows.jsonl", pairs(5))
    found = prepared(writing, learned="everything")
    assert found.data_report.loss_tokens == sum(len(sequence) - 1 for sequence in documents_of(found))
    assert found.data_report.tokens == prepared(writing).data_report.tokens


def test_documents_that_begin_with_two_start_tokens_are_counted(place, writing, hub_tokenizer):
    write("rows.jsonl", pairs(4))
    found = prepared(writing_with(hub_tokenizer, TWICE))
    start = hub_tokenizer.bos_token_id
    assert [sequence[:2] for sequence in documents_of(found)] == [[(start, False), (start, False)]] * 4
    assert found.data_report.double_start == 4
    assert any("two start tokens: 4" in warning for warning in found.data_report.warnings)
    once = prepared(writing).data_report
    assert once.double_start == 0 and not any("start tokens" in warning for warning in once.warnings)


SIGNS = {
    "own": ("so <|im_end|> it", "go <|im_start|>user on"),
    "foreign": ("say </s> now", "[INST] do [/INST] do [INST]", "<|eot_id|>"),
    "damaged": ("caf\ufffd", "\ufffd\ufffd"),
    "rendered": ("### Instruction: go", "[INST] go"),
}
SIGNED = st.lists(st.sampled_from([text for texts in SIGNS.values() for text in texts] + ["plain"]), max_size=3)


@settings(max_examples=draws(25), deadline=None)
@given(asked=st.lists(SIGNED, min_size=1, max_size=8), answered=st.lists(SIGNED, min_size=8, max_size=8))
def test_signs_of_damaged_or_foreign_rows_are_counted_by_row(place, writing, asked, answered):
    rows = [
        {"prompt": " ".join([f"q{n}", *one]), "completion": " ".join([f"a{n}", *other])}
        for n, (one, other) in enumerate(zip(asked, answered, strict=False))
    ]
    write("rows.jsonl", rows)
    found = prepared(writing)
    data_report = found.data_report
    said = [f"{row['prompt']} {row['completion']}" for row in rows]
    assert data_report.control_tokens_as_text == sum(BEGIN in text or END in text for text in said)
    assert data_report.replacement_characters == sum("\ufffd" in text for text in said)
    foreign = ("</s>", "[INST]", "[/INST]", "<|eot_id|>")
    counts = {token: sum(token in text for text in said) for token in foreign}
    assert data_report.unknown_special_tokens == {token: count for token, count in counts.items() if count}
    signs = ("### Instruction:", "[INST]", BEGIN)
    rendered = sum(any(sign in row["prompt"] for sign in signs) for row in rows)
    warned = [warning for warning in data_report.warnings if "a chat template had already been applied" in warning]
    counted = [int(warning.partition(" applied: ")[2].split()[0]) for warning in warned]
    assert counted == [rendered] * bool(rendered)
    # what was typed has become no control token
    end, begin = writing.tokenizer.hub.eos_token_id, writing.tokenizer.hub.bos_token_id
    for sequence in documents_of(found):
        assert Counter(token for token, _ in sequence if token in (end, begin)) == {end: 2, begin: 2}


LONG = [" ".join(f"w{n * 100 + place}" for place in range(100)) for n in range(4)]


def nearly(text):
    """One word of a hundred changed."""
    return text.replace(text.split()[50], "otherwise")


def test_duplicates_are_rows_that_say_what_an_earlier_row_says(place, writing):
    texts = [LONG[0], LONG[1], LONG[0], nearly(LONG[1]), LONG[2], LONG[0].upper(), nearly(LONG[0])]
    write("rows.jsonl", [{"prompt": text, "completion": "fox"} for text in texts])
    data_report = prepared(writing, max_length=10_000).data_report
    assert (data_report.duplicates, data_report.near_duplicates) == (2, 2)
    assert any(warning.endswith("repeat an earlier row: 2") for warning in data_report.warnings)
    # the same question with another answer says something else
    write("rows.jsonl", [{"prompt": "a b c d e", "completion": word} for word in ("one two three", "four five six")])
    assert prepared(writing).data_report.duplicates == 0
    # over the border of two files, and never with the rows to measure with
    for name, texts in (("a", LONG[:2]), ("b", [LONG[1], nearly(LONG[0])]), ("c", LONG)):
        write(f"{name}.jsonl", [{"prompt": text, "completion": "fox"} for text in texts])
    data_report = prepared(
        writing, None, sources=["a.jsonl", "b.jsonl"], validation="c.jsonl", max_length=10_000
    ).data_report
    assert (data_report.duplicates, data_report.near_duplicates) == (1, 1)


def test_overlap_is_of_questions_measured_that_are_also_trained_on(place, writing):
    def row(text, answer):
        return {"prompt": text, "completion": answer}

    trained = [row(LONG[0], "fox"), row(LONG[1], "dog"), row(LONG[2], "fox")]
    measured = [row(LONG[0], "another answer"), row(nearly(LONG[1]), "dog"), row(LONG[3], "x"), row(LONG[3], "y")]
    write("both.jsonl", [*trained, *measured])
    write("trained.jsonl", trained)
    write("measured.jsonl", measured)
    held = prepared(writing, "both.jsonl", held_out=4, held_out_order="last", max_length=10_000).data_report
    apart = prepared(writing, "trained.jsonl", validation="measured.jsonl", max_length=10_000).data_report
    for data_report in (held, apart):
        assert (data_report.overlap.exact, data_report.overlap.near, data_report.overlap.of) == (1, 1, 4)
        assert data_report.validation_rows == 4
        assert any("1 exactly and 1 nearly, of 4" in warning for warning in data_report.warnings)
    assert (held.rows, held.used, apart.rows, apart.used) == (7, 7, 3, 3)
    assert prepared(writing, "both.jsonl").data_report.overlap is None
    clean = prepared(writing, "trained.jsonl", held_out=1, max_length=10_000).data_report
    assert (clean.overlap.exact, clean.overlap.near, clean.overlap.of) == (0, 0, 1)


def test_the_rows_to_measure_with_are_counted_nowhere_else(place, writing):
    write("rows.jsonl", pairs(5))
    write("other.jsonl", [*pairs(3, 100), {"prompt": "dog " * 200, "completion": "fox"}])
    alone = prepared(writing, max_length=200).data_report.model_dump()
    both = prepared(writing, max_length=200, validation="other.jsonl")
    differ = {key for key, value in both.data_report.model_dump().items() if value != alone[key]}
    assert differ <= {"files", "validation_rows", "overlap", "validation", "warnings"}
    apart = both.data_report.validation
    assert (apart.rows, apart.used, apart.skipped, apart.skipped_why) == (4, 3, 1, {"too long": 1})
    assert [row.where for row in apart.skipped_rows] == ["other.jsonl:4"]
    assert both.data_report.validation_rows == len(both.validation) == 3
    assert len(both.trained) == 5 and not set(both.trained) & set(both.validation)
    assert [file.name for file in both.data_report.files] == ["rows.jsonl", "other.jsonl"]


def test_a_system_message_that_all_rows_share_is_told_and_no_other(place, writing):
    shared = [conversation((f"q {n}", f"a {n}"), system="Be kind.") for n in range(3)]
    for rows, wanted in (
        (shared, "Be kind."),
        ([*shared, conversation(("q", "a"), system="Be rude.")], None),
        ([*shared, conversation(("q", "a"))], None),
        ([conversation(("q", "a"))], None),
        ([*shared, "{"], "Be kind."),
    ):
        write("rows.jsonl", rows)
        assert prepared(writing, on_bad_row="skip").data_report.system == wanted
    assert prepared(writing, system="Be brief.", on_bad_row="skip").data_report.system == "Be kind."
    write("rows.jsonl", pairs(3))
    assert prepared(writing, system="Be brief.").data_report.system == "Be brief."


def test_a_row_that_is_left_out_has_no_say_in_the_system_message(place, writing):
    # answers would be asked for without the system message that every row trained on had
    rows = [conversation((f"q {n}", f"a {n}"), system="Be kind.") for n in range(3)]
    write("rows.jsonl", [*rows, conversation(("dog " * 200, "fox"))])
    data_report = prepared(writing, max_length=100).data_report
    assert data_report.skipped_why == {"too long": 1}
    assert data_report.system == "Be kind."


def test_the_licence_is_the_strictest_of_all_files(place, writing):
    for folder, licence in (("free", "mit"), ("noncommercial", "cc-by-nc-4.0"), ("silent", None)):
        write(f"{folder}/rows.jsonl", pairs(2))
        if licence:
            Path(folder, "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    free, noncommercial, unsaid = (f"{folder}/rows.jsonl" for folder in ("free", "noncommercial", "silent"))

    def licences(*sources, **settings_):
        data_report = prepare(DataConfig(sources=sources, **settings_), writing, silent).data_report
        return [file.licence for file in data_report.files], data_report.licence

    assert licences(free) == (["MIT"], "MIT")
    assert licences(free, noncommercial) == (["MIT", "CC-BY-NC-4.0"], "CC-BY-NC-4.0")
    assert licences(free, noncommercial, unsaid) == (["MIT", "CC-BY-NC-4.0", "unknown"], "unknown")
    assert licences(free, validation=noncommercial) == (["MIT", "CC-BY-NC-4.0"], "CC-BY-NC-4.0")
    assert licences(free, {"path": unsaid, "licence": "CC BY 4.0"}) == (["MIT", "CC-BY-4.0"], "CC-BY-4.0")
    assert licences({"path": noncommercial, "licence": "mit"}) == (["MIT"], "MIT"), "who knows better is believed"


def test_files_are_named_with_their_content_form_and_rows_and_those_of_other_splits_are_left_aside(place, writing):
    contents = {"train-0.jsonl": pairs(3), "train-1.jsonl": [conversation(("a", "b"))] * 2, "valid.jsonl": pairs(9)}
    for name, rows in contents.items():
        write(f"splits/{name}", rows)
    data_report = prepared(writing, "splits").data_report
    assert [(file.name, file.format, file.rows) for file in data_report.files] == [
        ("splits/train-0.jsonl", "prompt", 3), ("splits/train-1.jsonl", "messages", 2),
    ]  # fmt: skip
    for file in data_report.files:
        assert file.sha256 == hashlib.sha256(Path(file.name).read_bytes()).hexdigest()
    assert data_report.left_aside == ("valid.jsonl",)
    assert data_report.format == "prompt, messages"
    assert data_report.rows == 5


def test_the_template_is_told_to_the_letter_so_that_any_engine_can_render_with_it(place, writing, hub_tokenizer):
    write("rows.jsonl", pairs(2))
    data_report = prepared(writing).data_report
    assert data_report.template.sources == {"default": CHATML}
    assert (data_report.template.kind, data_report.template.ends, data_report.template.start) == ("model", (END,), "")
    assert data_report.recipe is None and data_report.model == "tiny"
    other = prepared(writing_with(hub_tokenizer, MARKED)).data_report.template
    assert other.sources == {"default": MARKED} and other.sha256 != data_report.template.sha256
    seeded = prepared(writing, recipe="alpaca").data_report
    assert seeded.recipe == "alpaca"
    assert seeded.template.sources == {"default": recipe_named("alpaca").template}
    assert (seeded.template.kind, seeded.template.ends) == ("recipe alpaca", (END,))
    # what is rendered again from the data report is what was learned
    again = ChatTemplate.of_data_report(writing.tokenizer, seeded.template)
    assert again.facts == seeded.template


def test_a_data_report_written_as_json_and_read_again_is_the_same(place, writing):
    write("rows.jsonl", [*pairs(3), "{", {"prompt": "</s>", "completion": "\ufffd"}])
    data_report = prepared(writing, on_bad_row="skip", held_out=1).data_report
    assert DataReport(**json.loads(json.dumps(data_report.model_dump(mode="json")))) == data_report


# Fatal

LONG_ANSWERS = [{"prompt": f"q{n}", "completion": "dog " * 60} for n in range(3)]
FATAL = {
    "no rows": ({"rows.jsonl": []}, {}, CHATML, ("rows.jsonl", "no rows")),
    "one bad row": ({"rows.jsonl": [*pairs(3), "{"]}, {}, CHATML, ("rows.jsonl:4", "not JSON")),
    "all rows bad": ({"rows.jsonl": ["{", "["]}, {"on_bad_row": "skip"}, CHATML, ("rows.jsonl:1", "rows.jsonl:2")),
    "no known form": ({"rows.jsonl": [{"a": 1}]}, {}, CHATML, ("rows.jsonl:1", "'a'")),
    "all too long": ({"rows.jsonl": pairs(3)}, {"max_length": 5}, CHATML, ("rows.jsonl", "5 tokens", "--max-length")),
    "beyond the context": ({"rows.jsonl": [{"prompt": "x" * 600, "completion": "y"}]}, {}, CHATML, ("256",)),
    "all held out": ({"rows.jsonl": pairs(3)}, {"held_out": 3}, CHATML, ("3 rows", "held_out is 3")),
    "more held out": ({"rows.jsonl": pairs(3)}, {"held_out": 50}, CHATML, ("3 rows", "held_out is 50")),
    "kept are held out": (
        {"rows.jsonl": [*pairs(2), {"prompt": "dog " * 300, "completion": "x"}]}, {"held_out": 2}, CHATML, ("2 rows",),
    ),
    "asked otherwise": ({"rows.jsonl": pairs(3)}, {}, UNLIKE, ("rows.jsonl", "prompt at inference")),
    "no end": ({"rows.jsonl": LONG_ANSWERS}, {"max_length": 40, "too_long": "truncate"}, CHATML, ("end", "stop")),
    "nothing left": ({"rows.jsonl": pairs(3)}, {"max_length": 8, "too_long": "truncate"}, CHATML, ("8 tokens",)),
    "refused by the template": ({"rows.jsonl": pairs(2)}, {}, REFUSING, ("rows.jsonl:1", "not this one")),
    "evaluation without rows": (
        {"rows.jsonl": pairs(3), "other.jsonl": []}, {"validation": "other.jsonl"}, CHATML, ("other.jsonl", "no rows"),
    ),
    "evaluation with a bad row": (
        {"rows.jsonl": pairs(3), "other.jsonl": [*pairs(3), "{"]}, {"validation": "other.jsonl"}, CHATML,
        ("other.jsonl:4",),
    ),
    "evaluation too long": (
        {"rows.jsonl": pairs(3), "other.jsonl": [{"prompt": "dog " * 99, "completion": "x"}]},
        {"validation": "other.jsonl", "max_length": 60}, CHATML, ("other.jsonl", "60 tokens"),
    ),
    "two sources all held out": (
        {"a.jsonl": pairs(3), "b.jsonl": pairs(4, 9)}, {"sources": ["a.jsonl", "b.jsonl"], "held_out": 10}, CHATML,
        ("7 rows", "held_out is 10"),
    ),
    "a weight that leaves no row": (
        {"a.jsonl": pairs(2)}, {"sources": [{"path": "a.jsonl", "weight": 0.1}]}, CHATML, ("a.jsonl", "no row"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
def test_what_is_fatal_is_told(tmp_path, monkeypatch, tiny_folder, name):
    data, model, said = laid_out(tmp_path, monkeypatch, tiny_folder, name)
    told = "\n".join(check(data, ModelConfig(name=model)).fatal)
    assert told and [part for part in said if part not in told] == [], told


@pytest.mark.parametrize("name", ["one bad row", "asked otherwise", "more held out", "evaluation without rows"])
def test_what_is_fatal_stops_the_training_with_the_words_of_the_check_and_leaves_no_run(
    tmp_path, monkeypatch, tiny_folder, name
):
    """Of each place that finds it: a row, all documents, the split, the rows to measure with."""
    data, model, _ = laid_out(tmp_path, monkeypatch, tiny_folder, name)
    experiment = Experiment(model=model, data=data, run="new", training={"steps": 1})
    data_report = check(data, experiment.model)
    Path("new.yaml").write_text(json.dumps(experiment.model_dump(mode="json", exclude_unset=True)))
    result = rankwise("train", "new.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("rankwise: ")
    for line in "\n".join([*data_report.fatal, *data_report.advice]).splitlines():
        assert line in result.stderr
    assert not Path("runs/new").exists()


def laid_out(folder, monkeypatch, tiny_folder, name):
    """The settings of the rows and the model of a fatal case, in a folder of its own; and what is to be said."""
    files, settings_, template, said = FATAL[name]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RANKWISE_CACHE", str(folder / "cache"))
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    for file, rows in files.items():
        write(file, rows)
    return DataConfig(**({} if "sources" in settings_ else {"path": "rows.jsonl"}) | settings_), "model", said


def test_what_is_fatal_names_the_rows_that_it_is_about_and_no_others(place, writing):
    write("none.jsonl", [])
    write("rows.jsonl", pairs(3))
    [told] = prepared(writing, "none.jsonl", validation="rows.jsonl").data_report.fatal
    assert "none.jsonl" in told and "rows.jsonl" not in told
    [told] = prepared(writing, "rows.jsonl", validation="none.jsonl").data_report.fatal
    assert "none.jsonl" in told and "rows.jsonl" not in told


@pytest.mark.parametrize("name", ["asked otherwise", "no end"])
def test_what_is_fatal_in_every_document_is_a_warning_in_some(place, hub_tokenizer, name):
    end = {"prompt": "q", "completion": "a"}
    if name == "no end":
        write("rows.jsonl", [*LONG_ANSWERS, end])
        data_report = prepared(writing_with(hub_tokenizer, CHATML), max_length=40, too_long="truncate").data_report
        assert (data_report.sequences, data_report.eos_in_loss) == (4, 1)
        assert any(
            "cut before the end of an answer" in warning and ": 3" in warning for warning in data_report.warnings
        )
    else:
        often = "{% if messages[0]['content'] == 'q' %}" + MARKED + "{% else %}" + UNLIKE + "{% endif %}"
        write("rows.jsonl", [*pairs(3), end])
        data_report = prepared(writing_with(hub_tokenizer, often)).data_report
        assert (data_report.template_parity, data_report.template_parity_broken) == (False, 3)
        assert any("from the prompt at inference: 3" in warning for warning in data_report.warnings)
    assert not data_report.fatal


# Without a model


UNCOUNTED = {
    "model", "sequences", "tokens", "loss_tokens", "eos_in_loss", "truncated", "without_loss_tokens", "lengths",
    "template_parity", "template_parity_broken", "double_start", "control_tokens_as_text", "template",
    "image_processing", "class_repeats", "new_tokens", "replay", "tags",
}  # fmt: skip


def test_without_a_model_what_needs_no_tokens_is_counted_and_the_rest_is_none(place, writing):
    rows = [*pairs(4), pairs(1)[0], "{", {"prompt": "</s> x", "completion": "\ufffd"}]
    write("unmodelled/rows.jsonl", rows)
    Path("unmodelled/README.md").write_text("---\nlicense: mit\n---\n")
    spec = DataConfig(path="unmodelled/rows.jsonl", held_out=2, on_bad_row="skip")
    without, with_one = count_only(spec, silent).model_dump(), prepare(spec, writing, silent).data_report.model_dump()
    assert {key for key, value in without.items() if value is None} == UNCOUNTED | {
        "system", "recipe", "validation", "labels", "distinct_labels", "targets", "pairs", "images", "image_processing",
        "constraint",
    }  # fmt: skip

    assert without["masks"] == {}
    for key in without.keys() - UNCOUNTED - {"masks"}:
        assert without[key] == with_one[key], key
    assert (without["rows"], without["used"], without["skipped"], without["duplicates"]) == (7, 6, 1, 1)


OFFLINE = """
import socket, sys
from rankwise.cli.main import app
asked = []
def refuse(*where):
    asked.append(where)
    raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
assert not asked, asked
"""


def test_a_check_without_a_model_and_without_a_starter_here_fetches_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(3)))
    empty = {"RANKWISE_CACHE": tmp_path / "cache", "HF_HOME": tmp_path / "hub", "XDG_CACHE_HOME": tmp_path / "xdg"}
    for folder in empty.values():
        folder.mkdir()
    environment = os.environ | {key: str(value) for key, value in empty.items()} | {"HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = str(Path(package.__file__).parents[1])
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "data", "check", "rows.jsonl", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data_report = json.loads(done.stdout)
    assert (data_report["rows"], data_report["used"], data_report["tokens"], data_report["model"]) == (3, 3, None, None)
    assert "no starter is cached" in done.stderr
    assert [path for folder in empty.values() for path in folder.rglob("*") if path.is_file()] == []


def test_a_weight_that_leaves_nothing_of_one_source_of_several_is_fatal(place, writing):
    write("few.jsonl", pairs(4))
    write("many.jsonl", pairs(6, 100))
    sources = [{"path": "few.jsonl", "weight": 0.1}, "many.jsonl"]
    [told] = prepare(DataConfig(sources=sources), writing, silent).data_report.fatal
    assert told == "few.jsonl: the weight 0.1 leaves none of its 4 rows for training."
    sources[0]["weight"] = 0.2
    assert prepare(DataConfig(sources=sources), writing, silent).data_report.fatal == ()


def test_what_the_context_forbids_no_setting_is_offered_for(place, writing):
    write("rows.jsonl", [{"prompt": "dog " * 300, "completion": "fox"}])
    narrow = TextWriting(writing.tokenizer, writing.template, "tiny", 100)
    [told] = prepare(DataConfig(path="rows.jsonl", max_length=5000), narrow, silent).data_report.fatal
    assert "100 tokens" in told and "context" in told and "--max-length" not in told
