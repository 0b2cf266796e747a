"""A model held against itself does not differ; scores are the model's own, in any order and company."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rankwise.base.loading import load
from rankwise.commands.evaluate import evaluate
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.errors import ConfigError, DataError, EvaluationError
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.requests import Request, Requests, requests_of, requests_of_sequences
from rankwise.evaluation.task import CUT, OwnTask, answers, is_wrong, score_task
from rankwise.runs.evaluations import read_evaluation
from rankwise.runs.records import StatusMessage, silent

WORDS = [
    "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "refund", "glass", "radio", "order", "capital", "France",
    "Paris", "land", "town",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"))


@pytest.fixture
def rows(tmp_path):
    """Conversations of many lengths."""
    draw = random.Random(0)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": text(), "completion": text()}) + "\n" for _ in range(20)))
    return file


@pytest.fixture
def chosen(tmp_path):
    draw = random.Random(1)
    file = tmp_path / "chosen.jsonl"
    made = [{"q": " ".join(draw.choices(WORDS, k=4)), "choices": draw.sample(WORDS, 3), "gold": draw.randrange(3)}
            for _ in range(15)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return made, TaskConfig(task="chosen", data=str(file), ask="{q}", score="accuracy", chat=False)


def test_a_model_held_against_itself_does_not_differ(tiny_folder, rows, tmp_path):
    task = TaskConfig(task="t", data=str(rows), score=("loss", "exact", "rouge_l", "bleu"), max_new_tokens=8)
    found = evaluate(str(tiny_folder), task, against=str(tiny_folder), out=tmp_path / "found.json")
    assert set(found.differences) == {"loss", "exact", "rouge_l", "bleu"}
    for one in found.differences.values():
        assert (one.difference, one.verdict) == (0, "cannot tell")
        assert one.low <= 0 <= one.high  # hits that are alike leave room for others that are not
    assert found.differences["loss"].low == found.differences["loss"].high == 0
    stored = read_evaluation(tmp_path / "found.json")
    assert stored.model_copy(update={"sha256": None}).model_dump() == found.model_dump()


@pytest.mark.parametrize("together", [0, -1])
def test_as_many_answers_at_once_as_none_is_refused(tiny_folder, rows, together):
    with pytest.raises(ConfigError, match=f"batch-size is {together}"):
        evaluate(str(tiny_folder), TaskConfig(task="t", data=str(rows), score="exact"), batch_size=together)


def test_loss_is_that_of_each_document_alone(model, rows):
    items = requests_of(TaskConfig(task="t", data=str(rows)), model).requests
    for item, found in zip(items, likelihoods(model.module, [one.documents[0] for one in items]), strict=True):
        ids, learned = torch.tensor([item.documents[0].ids]), torch.tensor(item.documents[0].loss_mask)
        with torch.no_grad():
            nats = F.cross_entropy(model.module(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        assert found.nats == pytest.approx(nats[learned[1:]].sum().item(), rel=1e-5)
        assert found.tokens == item.documents[0].loss_count


def test_neither_order_nor_company_changes_an_answer(model, rows):
    items = list(requests_of(TaskConfig(task="t", data=str(rows)), model).requests)
    alone = answers(items, model, 12, silent, 1, "")
    assert answers(items, model, 12, silent, 16, "") == alone
    assert len(set(alone)) > 5, "a model that says one thing would show nothing"
    order = list(range(len(items)))
    random.Random(2).shuffle(order)
    assert answers([items[at] for at in order], model, 12, silent, 7, "") == [alone[at] for at in order]


def test_for_exact_alone_an_answer_is_written_until_it_is_wrong(model, rows):
    """The same hits in fewer tokens: a base that talks on is not written to its end."""
    task = TaskConfig(task="t", data=str(rows), score="exact", max_new_tokens=40)
    items = list(requests_of(task, model).requests)
    whole = answers(items, model, 40, silent, 16, "")
    items[3], items[4] = replace(items[3], target=f" {whole[3]}\n"), replace(items[4], alternatives=(whole[4],))
    for together in (1, 16):
        found = score_task(task, items, model, silent, batch_size=together, who="")
        assert [hit for hit, _ in found.scores["exact"].sums] == [float(at in (3, 4)) for at in range(20)]
        assert (found.answers[3], found.answers[4]) == (whole[3], whole[4])
        cut = [at for at, text in enumerate(found.answers) if text.endswith(CUT)]
        assert len(cut) > 5 and all(whole[at].startswith(found.answers[at].removesuffix(CUT)) for at in cut)
        assert all(found.answers[at] == whole[at] for at in range(20) if at not in cut)
    both = task.model_copy(update={"score": ("exact", "rouge_l")})
    assert score_task(both, items, model, silent, batch_size=16, who="").answers == whole


@pytest.mark.parametrize(
    ("beginning", "wrong"),
    [("", False), ("Ro", False), (" Rome \n", False), ("Rome,", True), ("rome", True), ("Caf\ufffd", False),
     ("Cafe", True)],
)  # fmt: skip
def test_an_answer_is_wrong_once_no_reference_begins_like_it(beginning, wrong):
    item = Request("", "", "Rome", (), alternatives=("Caf\u00e9 noir",))
    assert is_wrong(beginning, item) is wrong


def test_the_likeliest_choice_for_its_length_is_taken(model, chosen):
    made, task = chosen
    items = requests_of(task, model).requests
    found = score_task(task, items, model, silent, batch_size=4, who="")
    for item, row, (hit, _), (bare, _) in zip(
        items, made, found.scores["accuracy"].sums, found.scores["accuracy_unnormalised"].sums, strict=True
    ):
        nats = []
        for choice in row["choices"]:
            before = model.tokenizer.encode(row["q"])
            ids = torch.tensor([before + model.tokenizer.encode(" " + choice)])
            with torch.no_grad():
                each = F.cross_entropy(model.module(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            nats.append(each[len(before) - 1 :].sum().item())
        normalised = [one / len(choice) for one, choice in zip(nats, row["choices"], strict=True)]
        assert hit == (normalised.index(min(normalised)) == row["gold"]), item.where
        assert bare == (nats.index(min(nats)) == row["gold"])


def test_rows_of_a_classification_choose_by_the_chat_template(model, tmp_path):
    file = tmp_path / "labelled.jsonl"
    texts = [(" ".join(WORDS[at : at + 3]), ("good", "bad")[at % 2]) for at in range(8)]
    file.write_text("".join(json.dumps({"prompt": text, "completion": label}) + "\n" for text, label in texts))
    task = TaskConfig(task="t", data=str(file), score=("accuracy", "f1", "matthews"))
    items = requests_of(task, model).requests
    assert [item.target for item in items] == [label for _, label in texts]
    assert all(len(item.documents) == 2 and item.sizes == (3, 4) for item in items)
    found = score_task(task, items, model, silent, batch_size=4, who="")
    assert list(found.scores) == ["accuracy", "f1", "matthews"]


def test_a_label_is_not_taken_for_its_length(model, tmp_path):
    """All rows choose between the same labels, of which the long one is the likelier by each character alone."""
    file = tmp_path / "labelled.jsonl"
    short, long = "fox", "the capital of France is Paris the capital of France is Paris"
    rows = [{"q": "brown " + WORDS[at], "label": (short, long)[at % 2]} for at in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(task="t", data=str(file), ask="{q}", chat=False, choices=(short, long), score=("f1", "accuracy"))
    items = requests_of(task, model).requests
    found = score_task(task, items, model, silent, batch_size=4, who="")
    assert list(found.scores) == ["f1", "accuracy"]
    each = likelihoods(model.module, [one for item in items for one in item.documents])
    by_length = [each[at].nats / len(short) > each[at + 1].nats / len(long) for at in range(0, 12, 2)]
    assert any(by_length), "labels between which length decides would show something"
    picks = [int(each[at].nats > each[at + 1].nats) for at in range(0, 12, 2)]
    assert [hit for hit, _ in found.scores["accuracy"].sums] == [pick == at % 2 for at, pick in enumerate(picks)]


def test_a_row_keeps_its_own_system_message_when_answers_are_chosen(model, tmp_path):
    file = tmp_path / "spoken.jsonl"
    rows = [{"system": f"quick {name}", "prompt": "brown fox", "completion": name} for name in ("dog", "land")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = requests_of(TaskConfig(task="t", data=str(file), score="accuracy"), model).requests
    for item, row in zip(items, rows, strict=True):
        assert all(f"system\nquick {row['completion']}" in model.tokenizer.readable(one.ids) for one in item.documents)


def test_other_choices_are_other_items(model, tmp_path):
    hashes = set()
    for wrong in ("ab", "cd"):
        file = tmp_path / f"{wrong}.jsonl"
        file.write_text(json.dumps({"q": "fox", "choices": ["xy", wrong], "gold": 0}) + "\n")
        hashes.add(requests_of(TaskConfig(task="t", data=str(file), ask="{q}", score="accuracy"), model).sha256)
    assert len(hashes) == 2


def test_a_damaged_model_is_named_and_not_scored(tiny_folder, rows):
    broken = load(ModelConfig(name=str(tiny_folder), dtype="float32"))
    with torch.no_grad():
        broken.module.lm_head.weight[:, 0] = torch.nan
    task = TaskConfig(task="t", data=str(rows))
    with pytest.raises(EvaluationError, match=r"rows.jsonl:1: .* nan, .*damaged"):
        score_task(task, requests_of(task, broken).requests, broken, silent, batch_size=4, who="")
    task = TaskConfig(task="t", data=str(rows), score="exact", max_new_tokens=3)
    with pytest.raises(EvaluationError, match=r"logit of an answer is nan.*damaged"):
        score_task(task, requests_of(task, broken).requests, broken, silent, batch_size=4, who="")


def test_a_question_written_from_columns_is_asked_by_the_template(model, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("first,second,same\na fox,a dog,0\na land,a town,1\n")
    task = TaskConfig(task="t", data=str(file), ask="Are {first} and {second} alike?", answer="{same}", score="exact")
    (item, _) = requests_of(task, model).requests
    assert model.tokenizer.decode(item.prompt_ids) == (
        "<|im_start|>user\nAre a fox and a dog alike?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert item.target == "0"


def test_rows_longer_than_the_context_are_left_out_and_counted(model, tmp_path):
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": "fox " * 300, "completion": "dog"}, {"prompt": "fox", "completion": "dog"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = requests_of(TaskConfig(task="t", data=str(file)), model)
    assert (len(found.requests), found.too_long) == (1, 1)


def test_prompts_without_room_for_their_answer_are_left_out_and_counted(tiny_folder, model, tmp_path):
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": "fox " * 60, "completion": "dog"}, {"prompt": "fox", "completion": "dog"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(task="t", data=str(file), score="exact", max_new_tokens=200)
    found = evaluate(str(tiny_folder), task)
    assert (found.n, found.left_out, found.summary()["left_out"]) == (1, 1, 1)
    with pytest.raises(DataError, match="Lower max_new_tokens"):
        requests_of(task.model_copy(update={"max_new_tokens": 5000}), model)


@pytest.mark.parametrize("score", ["loss", "exact", "accuracy"])
def test_a_text_to_be_continued_is_left_out_where_it_does_not_fit(model, tmp_path, score):
    """What stood first was cut away, and of a long answer nothing was left to be asked."""
    file = tmp_path / "long.jsonl"
    rows = [{"q": "fox " * 300, "a": "dog"}, {"q": "fox", "a": "dog " * 300}, {"q": "fox", "a": "dog"}]
    rows = [row | {"choices": [row["a"], "land"], "gold": 0} for row in rows]
    more = {} if score == "accuracy" else {"answer": "{a}"}
    for kept in (3, 2):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[:kept]))
        task = TaskConfig(task="t", data=str(file), ask="{q}", chat=False, score=score, **more)
        if kept == 2:
            with pytest.raises(DataError, match="none of its 2 rows fits into the model's context"):
                requests_of(task, model)
            return
        found = requests_of(task, model)
        assert (len(found.requests), found.too_long) == (1, 2)


@pytest.mark.parametrize("ask", [{}, {"ask": "", "answer": "{text}", "chat": False}])
def test_rows_that_ask_nothing_have_no_answer_that_could_be_compared(model, tmp_path, ask):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "the quick brown fox"}\n')
    with pytest.raises(DataError, match=r"texts.jsonl:1: there is no prompt before the answer"):
        requests_of(TaskConfig(task="t", data=str(file), score=("exact", "loss"), **ask), model)


def test_rows_of_a_running_text_are_drawn_by_the_seed(model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(WORDS * 200))
    wheres = [
        [item.where for item in requests_of(TaskConfig(task="t", data=str(file), rows=2, seed=seed), model).requests]
        for seed in range(6)
    ]
    assert all(len(one) == 2 for one in wheres)
    assert len({tuple(one) for one in wheres}) > 1


def test_a_running_text_is_scored_whole_and_once(model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(WORDS * 30))
    items = requests_of(TaskConfig(task="t", data=str(file)), model).requests
    ids = model.tokenizer.encode(file.read_text())
    assert [token for item in items for token in item.documents[0].ids[1:]] == ids
    assert sum(item.documents[0].loss_count for item in items) == len(ids)
    assert [item.documents[0].ids[0] for item in items[1:]] == [item.documents[0].ids[-1] for item in items[:-1]]
    assert all(len(item.documents[0].ids) <= model.context_length + 1 for item in items)


def test_documents_are_asked_as_they_were_learned(model, rows):
    items = requests_of(TaskConfig(task="t", data=str(rows)), model).requests
    again = requests_of_sequences([item.documents[0] for item in items], model).requests
    assert [(one.prompt_ids, one.target) for one in again] == [(one.prompt_ids, one.target) for one in items]


def test_of_what_follows_nothing_every_token_is_scored(model, tmp_path):
    """A choice of one token had a likelihood of 1, and so was always the likeliest."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"q": "", "choices": ["fox", "lazy dog"], "gold": 0}) + "\n")
    (item,) = requests_of(TaskConfig(task="t", data=str(file), ask="{q}", score="accuracy", chat=False), model).requests
    for choice, document in zip(item.choices, item.documents, strict=True):
        ids = model.tokenizer.encode(choice)
        assert list(document.ids[1:]) == ids and document.loss_count == len(ids)
    with pytest.raises(DataError, match="there is no prompt before the answer"):
        requests_of(TaskConfig(task="t", data=str(file), ask="{q}", answer="fox", score="exact", chat=False), model)


def test_a_running_text_is_read_as_the_kept_one_is(model, tmp_path):
    file = tmp_path / "text.txt"
    plain = "the quick brown fox"
    file.write_bytes(b"\xef\xbb\xbf" + plain.encode())
    (item,) = requests_of(TaskConfig(task="t", data=str(file)), model).requests
    assert list(item.documents[0].ids[1:]) == model.tokenizer.encode(plain), "a byte-order mark is no text"
    file.write_text("fox \ufdd0 dog")
    with pytest.raises(DataError, match="noncharacter"):
        requests_of(TaskConfig(task="t", data=str(file)), model)
    with pytest.raises(DataError, match="more than"):
        requests_of(TaskConfig(task="t", data=str(big(tmp_path))), model)


def big(folder):
    """A file of more than what is read, without its bytes."""
    file = folder / "big.txt"
    with file.open("wb") as made:
        made.truncate(60_000_000_000)
    return file


def test_what_is_wanted_must_be_what_is_compared(model, rows):
    task = TaskConfig(task="t", data=str(rows), score="json")
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*is not JSON"):
        OwnTask(task, requests_of(task, model), 4)
    for score in ("number", "pearson"):
        task = task.model_copy(update={"score": (score,)})
        with pytest.raises(DataError, match=r"rows.jsonl:1: .*contains no number"):
            OwnTask(task, requests_of(task, model), 4)


def test_rouge_is_refused_where_it_reads_nothing(model, tmp_path):
    """It gave 0 to an answer that is right to the letter."""
    file = tmp_path / "rows.jsonl"
    task = TaskConfig(task="t", data=str(file), score="rouge_l")
    for target, refused in (("привет мир", True), ("你好世界", True), ("größer", False), ("👍", False)):
        file.write_text(json.dumps({"prompt": "fox", "completion": target}) + "\n")
        items = requests_of(task, model)
        if not refused:
            OwnTask(task, items, 4)
            continue
        with pytest.raises(DataError, match=r"rows.jsonl:1: .*no Latin letters"):
            OwnTask(task, items, 4)
        OwnTask(task.model_copy(update={"score": ("chrf",)}), items, 4)


def test_a_pattern_is_tried_on_what_is_wanted(model, tmp_path):
    """With groups that it lacks every answer scored 0, and a slow one was known when all answers were there."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "fox", "completion": "dog " * 20}) + "\n")
    task = TaskConfig(task="t", data=str(file), score="regex", pattern="(cat)")
    items = requests_of(task, model)
    with pytest.raises(DataError, match=r"rows.jsonl:1: the pattern '\(cat\)' finds nothing in the reference answer"):
        OwnTask(task, items, 4)
    OwnTask(task.model_copy(update={"pattern": "cat"}), items, 4)
    with pytest.raises(EvaluationError, match="takes more than"):
        OwnTask(task.model_copy(update={"pattern": r"(?:.|..)+(?<!.)"}), items, 4)


def test_f1_needs_the_same_choices_and_not_only_as_many(model, chosen):
    task = chosen[1].model_copy(update={"score": ("f1",)})
    with pytest.raises(DataError, match=r"chosen.jsonl:\d+: .*f1 needs the same choices"):
        OwnTask(task, requests_of(task, model), 4)


def test_a_control_token_in_a_text_is_text(model, tmp_path):
    file = tmp_path / "typed.jsonl"
    file.write_text(json.dumps({"q": "a <|im_end|> b", "choices": ["x", "y"], "gold": 0}) + "\n")
    (item,) = requests_of(TaskConfig(task="t", data=str(file), ask="{q}", score="accuracy", chat=False), model).requests
    ends = set(model.template.end_ids)
    assert not ends & set(item.documents[0].ids)


def test_a_model_needs_a_task_and_a_run_needs_nothing_beside_it(tiny_folder, rows):
    with pytest.raises(ConfigError, match="which task"):
        evaluate(str(tiny_folder))


def test_an_answer_is_held_against_every_reference_of_its_row(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"q": "fox", "a": ["no", "land town"]}) + "\n")
    task = TaskConfig(task="t", data=str(file), ask="{q}", answer="{a}", score=("exact", "rouge_1"), max_new_tokens=4)
    items = requests_of(task, model)
    (item,) = items.requests
    assert (item.target, item.references) == ("no", ("no", "land town"))
    written = answers(items.requests, model, 4, silent, 1, "")[0]
    right = replace(items.requests[0], alternatives=(written,))
    assert score_task(task, [right], model, silent, batch_size=1, who="").metrics["exact"].value == 1
    assert replace(items, requests=(right,)).sha256 != items.sha256, "other references are other items"


def test_a_list_of_answers_in_rows_of_a_known_form_are_references(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "fox", "answer": ["land", "town"]}) + "\n")
    (item,) = requests_of(TaskConfig(task="t", data=str(file), score="exact"), model).requests
    assert item.references == ("land", "town")


def test_the_task_comes_first_and_is_announced_as_soon_as_it_is_known(tiny_folder, rows, monkeypatch):
    told = []
    monkeypatch.setattr("rankwise.evaluation.task._recalled", lambda _: None)

    def heard(event):
        what = event.text if isinstance(event, StatusMessage) else event.what
        if not told or told[-1] != what:
            told.append(what)

    task = TaskConfig(task="t", data=str(rows), score="exact", max_new_tokens=2)
    found = evaluate(str(tiny_folder), task, against=str(tiny_folder), callback=heard)
    scored = f"t, {tiny_folder}: exact {found.tuned.metrics['exact'].value:.4g}"
    places = [at for at, text in enumerate(told) if text.startswith(scored)]
    answering, forgetting = ([at for at, text in enumerate(told) if text.startswith(what)]
                             for what in ("Answering t", "Measuring forgetting"))  # fmt: skip
    assert len(places) == 2 and len(answering) == 2
    assert answering[0] < places[0] < answering[1] < places[1] < forgetting[0]
    assert "cannot tell with n = 20" in told[places[1]]


CALLED = [
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "content": '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'},
]
TABLES = "CREATE TABLE land (name TEXT); INSERT INTO land VALUES ('Peru');"


@pytest.mark.parametrize(
    ("rows", "taken", "why"),
    [
        ([{"prompt": "fox", "completion": {"age": 3, "at": {"town": "Oslo"}}}], ["json", "json_exact", "json_valid"],
         "all reference answers are JSON objects"),
        ([{"prompt": "fox", "completion": '{"a": 1}'}, {"prompt": "dog", "completion": "no"}], [], ""),
        ([{"messages": CALLED}, {"prompt": "dog", "messages": [*CALLED[:1], {"role": "assistant", "content": "no"}]}],
         ["tool_call", "tool_function", "tool_arguments", "tool_missing", "tool_needless"],
         "reference answers call tools"),
        ([{"prompt": "fox", "completion": "SELECT name FROM land", "tables": TABLES}], ["sql"],
         "every row has a database"),
        ([{"prompt": "fox", "completion": "SELECT name FROM land", "tables": "land and town"}], [], ""),
    ],
)  # fmt: skip
def test_scores_that_fit_the_answers_are_taken_with_the_reason(tiny_folder, tmp_path, rows, taken, why):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = []
    found = evaluate(str(tiny_folder), str(tmp_path / "rows.jsonl"),
                     callback=lambda event: told.append(getattr(event, "text", "")))  # fmt: skip
    assert list(found.tuned.metrics) == ["loss", *taken] and (found.tuned.answers is not None) == bool(taken)
    said = [text for text in told if "is also scored by" in text]
    assert len(said) == bool(taken) and all(f"because {why}" in text for text in said)
    fields = found.summary()["fields"]
    assert [one.field for one in fields or ()] == (["age", "at.town"] if "json" in taken else [])
    named = TaskConfig(task="t", data=str(tmp_path / "rows.jsonl"), score="loss")
    assert list(evaluate(str(tiny_folder), named).tuned.metrics) == ["loss"]


def test_sql_runs_on_the_database_of_its_row(model, tmp_path):
    with sqlite3.connect(tmp_path / "lands.db") as made:
        made.executescript(TABLES)
    made.close()
    rows = [{"q": "fox", "a": "SELECT 'Peru'", "database": "lands.db"}, {"q": "dog", "a": "SELECT 1", "tables": TABLES}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for how in ({"ask": "{q}", "answer": "{a}"}, {"prompt": "{q}", "completion": "{a}"}):
        task = TaskConfig(task="t", data=str(tmp_path / "rows.jsonl"), score="sql", **how)
        items = requests_of(task, model).requests
        assert [one.database for one in items] == [("database", str(tmp_path / "lands.db")), ("tables", TABLES)]
        assert OwnTask(task, Requests(items), 1).identity != OwnTask(task, Requests(items[::-1]), 1).identity
        wrong = replace(items[0], target="SELECT price FROM land")
        with pytest.raises(DataError, match=r"rows.jsonl:1: the reference query has no result \(no such column"):
            OwnTask(task, Requests((wrong, items[1])), 1)


def test_choices_that_the_task_does_not_name_are_told(tiny_folder, tmp_path):
    file = tmp_path / "labelled.jsonl"
    made = [{"prompt": f"{WORDS[at]} fox", "completion": ("dog", "land", "dog")[at % 3]} for at in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    told = []
    found = evaluate(str(tiny_folder), TaskConfig(task="t", data=str(file), score="accuracy"),
                     callback=lambda event: told.append(getattr(event, "text", "")))  # fmt: skip
    assert any("chooses among the 2 different answers" in text and "dog (6), land (3)" in text for text in told)
    assert found.summary()["labels"] == {"dog": 6, "land": 3}
    assert "accuracy" in found.summary()["metric_meanings"]


def test_equal_documents_are_computed_once_and_told_twice(model, rows):
    items = requests_of(TaskConfig(task="t", data=str(rows)), model).requests
    document = items[0].documents[0]
    twice = likelihoods(model.module, [document, items[1].documents[0], replace(document)], silent, "")
    assert twice[0] == twice[2] != twice[1]
