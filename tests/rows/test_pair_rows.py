"""Rows of pairs: every form of the field, what is refused with its place, and the masks of both answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise.base.loaded import LoadedModel
from rankwise.base.loading import load
from rankwise.config.classification import PreferenceConfig
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.config.objectives import as_pairs
from rankwise.errors import DataError
from rankwise.objectives.objective import Facts
from rankwise.objectives.registry import objective_named
from rankwise.rows.forms.formats import parse_row
from rankwise.rows.preparing import prepare, refuse_fatal
from rankwise.rows.text.tokenize import sides_of
from rankwise.runs.records import silent

DPO = objective_named("preference", Facts(preference=PreferenceConfig()))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PLAIN = {"prompt": "What is red?", "chosen": "A colour.", "rejected": "No idea."}
FORMS: dict[str, dict[str, Any]] = {
    "texts": PLAIN,
    "turns": {"prompt": [user("What is red?")], "chosen": [assistant("A colour.")],
              "rejected": [assistant("No idea.")]},
    "turns with answers as texts": {"prompt": [user("What is red?")], "chosen": "A colour.", "rejected": "No idea."},
    "an implicit prompt": {"chosen": [user("What is red?"), assistant("A colour.")],
                           "rejected": [user("What is red?"), assistant("No idea.")]},
    "a prompt beside whole conversations": {
        "prompt": "What is red?", "chosen": [user("What is red?"), assistant("A colour.")],
        "rejected": [user("What is red?"), assistant("No idea.")],
    },
    "dialogues in one text": {
        "chosen": "\n\nHuman: What is red?\n\nAssistant: A colour.",
        "rejected": "\n\nHuman: What is red?\n\nAssistant: No idea.",
    },
    "a prompt that is a dialogue": {
        "prompt": "\n\nHuman: What is red?\n\nAssistant:", "chosen": " A colour.", "rejected": " No idea.",
    },
    "cells of a table": {
        "prompt": json.dumps([user("What is red?")]), "chosen": json.dumps([assistant("A colour.")]),
        "rejected": json.dumps([assistant("No idea.")]),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_the_same_pair(form):
    (pair,) = parse_row(FORMS[form], "preference", "x:1")
    assert [turn.content.strip() for turn in pair.messages] == ["What is red?", "A colour."]
    assert [turn.content.strip() for turn in pair.rejected] == ["What is red?", "No idea."]


def test_a_dialogue_in_one_text_has_its_turns_and_a_text_that_speaks_of_one_is_a_text():
    begin = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Is it late?\n\nAssistant:"
    (pair,) = parse_row({"chosen": f"{begin} No.\n\nTea?", "rejected": f"{begin} Yes."}, "preference", "x:1")
    assert [turn.content for turn in pair.messages] == ["Hi", "Hello.", "Is it late?", "No.\n\nTea?"]
    assert [turn.learned for turn in pair.messages if turn.role == "assistant"] == [False, True]
    with pytest.raises(DataError, match="x:1: the last turn has the role user"):
        parse_row({"chosen": begin, "rejected": f"{begin} Yes."}, "preference", "x:1")
    (pair,) = parse_row(PLAIN | {"chosen": "Said\n\nHuman: no"}, "preference", "x:1")
    assert pair.messages[1].content == "Said\n\nHuman: no"


def test_earlier_answers_are_not_in_the_loss_and_a_system_message_goes_before_both():
    earlier = [user("Hello"), assistant("Hello."), user("What is red?")]
    for row in (
        {"prompt": earlier, "chosen": [assistant("A colour.")], "rejected": [assistant("No idea.")]},
        {"chosen": [*earlier, assistant("A colour.")], "rejected": [*earlier, assistant("No idea.")]},
    ):
        (pair,) = parse_row(row | {"system": "Be brief."}, "preference", "x:1")
        for turns in (pair.messages, pair.rejected):
            assert turns[0].role == "system" and turns[0].content == "Be brief."
            assert [turn.learned for turn in turns if turn.role == "assistant"] == [False, True]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "equal answers": ({**PLAIN, "rejected": "A colour. "}, "chosen and rejected are the same answer"),
    "equal turns": ({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("a")]}, "same answer"),
    "no rejected": ({"prompt": "q", "chosen": "a"}, "no 'rejected' in a row of the preference format"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "has no prompt"),
    "an empty prompt": ({**PLAIN, "prompt": " "}, "the prompt is empty"),
    "an empty answer": ({**PLAIN, "chosen": ""}, "the chosen is empty"),
    "no turns": ({**PLAIN, "rejected": []}, "the rejected is empty"),
    "a number": ({**PLAIN, "chosen": 3}, "the chosen is 3; a text or a list of turns is expected"),
    "nothing": ({**PLAIN, "rejected": None}, "the rejected is null"),
    "a text and turns": ({**PLAIN, "rejected": [assistant("b")]}, "a text and the other a list of turns"),
    "other prompts": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("other"), assistant("b")]},
        "the prompts of chosen and rejected differ: turn 1 is user: 'q' in one and user: 'other' in the other",
    ),
    "another prompt beside them": (
        {"prompt": "z", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        "the prompt is 'z', but chosen and rejected begin with another one",
    ),
    "an answer that goes on": (
        {"chosen": [user("q"), assistant("a")],
         "rejected": [user("q"), assistant("a"), user("more"), assistant("b")]},
        "the beginning of the other",
    ),
    "one whole conversation": (
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [assistant("b")]},
        "begins with a question and the other with an answer",
    ),
    "a NUL": ({**PLAIN, "rejected": "n\0"}, "NUL character at 1"),
    "an unknown role": ({"chosen": [user("q"), assistant("a")],
                         "rejected": [user("q"), {"role": "robot", "content": "b"}]}, "'robot'"),
    "a user with the last word": ({"chosen": [user("q"), assistant("a")],
                                   "rejected": [user("q"), assistant("b"), user("c")]}, "last turn"),
    "no weight": ({"chosen": [user("q"), {**assistant("a"), "weight": 0}], "rejected": [user("q"), assistant("b")]},
                  "weight 0"),
    "a system message alone": ({**PLAIN, "prompt": [{"role": "system", "content": "s"}]},
                               "without a question before it"),
    "another format": ({"prompt": "q", "completion": "a"}, "is in the prompt format"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LoadedModel:
    return load(ModelConfig(name=str(tiny_folder)), silent)


def spec_of(path: Path, rows: list[dict[str, Any]], **settings: Any) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return as_pairs(DataConfig(path=str(path), **settings))


def test_all_bad_rows_are_named_at_once_with_file_and_line(model, tmp_path):
    rows = [PLAIN, *(row for row, _ in WRONG.values())]
    prepared = prepare(spec_of(tmp_path / "pairs.jsonl", rows), DPO.rows.encoding(model), silent)
    with pytest.raises(DataError) as refused:
        refuse_fatal(prepared.data_report)
    lines = str(refused.value).splitlines()
    for number, (_, sentence) in enumerate(WRONG.values(), start=2):
        assert any(f"pairs.jsonl:{number}: " in line and sentence in line for line in lines), sentence
    skipped = prepare(spec_of(tmp_path / "pairs.jsonl", rows, on_bad_row="skip"), DPO.rows.encoding(model), silent)
    assert len(skipped.trained) == 1 and skipped.data_report.skipped == len(WRONG)


def test_the_loss_mask_covers_both_answers_with_their_ends_and_nothing_else(model, tmp_path):
    prepared = prepare(spec_of(tmp_path / "pairs.jsonl", [PLAIN]), DPO.rows.encoding(model), silent)
    chosen, rejected = sides_of(prepared.trained_rows[0])
    for side, answer in ((chosen, "A colour."), (rejected, "No idea.")):
        mask = np.asarray(side.loss_mask)
        assert model.tokenizer.decode(np.asarray(side.ids)[mask].tolist()) == f"{answer}<|im_end|>"
        assert "What is red?" in model.tokenizer.decode(np.asarray(side.ids)[~mask].tolist())
    first = int(np.argmax(chosen.loss_mask))
    assert list(chosen.ids[:first]) == list(rejected.ids[:first])


def test_a_pair_that_is_too_long_is_left_out_or_cut_on_both_sides(model, tmp_path):
    long = {**PLAIN, "chosen": "A colour. " * 40}
    dropped = prepare(spec_of(tmp_path / "a.jsonl", [PLAIN, long], max_length=64), DPO.rows.encoding(model), silent)
    assert len(dropped.trained) == 1 and dropped.data_report.skipped_why == {"too long": 1}
    settings = {"max_length": 64, "too_long": "truncate"}
    cut = prepare(spec_of(tmp_path / "b.jsonl", [PLAIN, long], **settings), DPO.rows.encoding(model), silent)
    assert cut.data_report.truncated == 1 and cut.longest == 63
    assert len(sides_of(cut.trained_rows[1])[0].ids) == 64


def test_the_report_counts_lengths_repeated_pairs_contradictions_and_ties(model, tmp_path):
    turned = {**PLAIN, "chosen": PLAIN["rejected"], "rejected": PLAIN["chosen"]}
    alike = {"prompt": "p", "chosen": "word " * 60 + "a", "rejected": "word " * 60 + "b"}
    rows = [PLAIN, PLAIN, turned, {**PLAIN, "prompt": "What is blue?"}, alike]
    spec = spec_of(tmp_path / "pairs.jsonl", rows, max_length=64, too_long="truncate")
    report = prepare(spec, DPO.rows.encoding(model), silent).data_report
    pairs = report.pairs
    assert pairs is not None and (pairs.rows, pairs.duplicates, pairs.contradictions, pairs.ties) == (4, 1, 3, 1)
    assert pairs.chosen is not None and pairs.rejected is not None and pairs.chosen.longest > 1
    assert any("pairs that contradict another pair" in warning for warning in report.warnings)
    assert any("chosen and rejected are the same tokens: 1" in warning for warning in report.warnings)


def test_pairs_are_refused_where_another_objective_reads_them(model, tmp_path):
    from rankwise.objectives.registry import objective_named

    spec = spec_of(tmp_path / "pairs.jsonl", [PLAIN])
    with pytest.raises(DataError, match=r"holds preference pairs\. Add --objective preference"):
        prepare(spec, objective_named("causal-lm").rows.encoding(model), silent)
