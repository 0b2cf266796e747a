"""The data sets that people name are read as they are, without a flag and without a row lost; forms that say the same
in other words are the same examples.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rankwise.commands.data import count_only
from rankwise.config.data import DataConfig, SourceConfig
from rankwise.errors import ConfigError, DataError
from rankwise.rows.sources import open_source
from rankwise.runs.records import silent

FORMS = {
    "dolly/train.jsonl": "prompt",
    "dolly/train_alpaca.jsonl": "alpaca",
    "alpaca/train.json": "alpaca",
    "alpaca/stanford_alpaca_100.json": "alpaca",
    "self_instruct/seed_tasks.jsonl": "self-instruct",
    "sharegpt/vicuna_dummy_conversation.json": "sharegpt",
    "sharegpt/glaive_toolcall_train.json": "sharegpt",
    "sharegpt/identity.json": "alpaca",
    "oasst/trees.jsonl": "oasst-trees",
    "oasst/messages.jsonl": "messages",
    "lima/train.json": "alpaca",
    "gsm8k/train.jsonl": "prompt",
    "gsm8k/test.jsonl": "prompt",
    "superbowl_facts/train.jsonl": "prompt",
    "superbowl_facts/valid.jsonl": "prompt",
}


def rows_by_readme(folder: Path) -> dict[str, int]:
    """File names and row counts of the table in the folder's README.md."""
    table = re.findall(r"^\| `([^`]+)` \| (\d+) \|", (folder / "README.md").read_text(), re.MULTILINE)
    return {name: int(count) for name, count in table}


def raw_rows(file: Path) -> list[dict]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def examples_of(path, **settings):
    """The examples of each row."""
    spec = DataConfig(path=str(path), **settings)
    reading = open_source(spec, spec.all_sources[0])
    rows = [row for chunk in reading.chunks() for row in chunk]
    assert reading.skipped == []
    return rows


def of_rows(tmp_path, *rows, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [example for row in examples_of(file, **settings) for example in row]


def same(examples, others):
    """Equal in all but where they stand."""
    return [(one.messages, one.tools, one.text) for one in examples] == [
        (one.messages, one.tools, one.text) for one in others
    ]


def turns(example):
    return [(message.role, message.content) for message in example.messages]


# The files


def test_every_file_of_these_folders_is_known_here(shared_data):
    folders = sorted({name.partition("/")[0] for name in FORMS})
    assert {f"{folder}/{name}" for folder in folders for name in rows_by_readme(shared_data / folder)} == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_read_in_its_form_with_every_row(name, shared_data):
    file = shared_data / name
    data_report = count_only(DataConfig(path=str(file)), silent)
    assert data_report.format == FORMS[name]
    assert data_report.rows == data_report.used == rows_by_readme(file.parent)[file.name] == len(raw_rows(file))
    assert (data_report.skipped, data_report.skipped_rows, data_report.fatal) == (0, (), ())


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form in ("prompt", "alpaca")])
def test_question_and_answer_are_what_the_file_holds_to_the_letter(name, shared_data):
    raw = raw_rows(shared_data / name)
    rows = examples_of(shared_data / name)
    keys = ("instruction", "output") if FORMS[name] == "alpaca" else tuple(raw[0])[:2]
    for row, (example,) in zip(raw, rows, strict=True):
        asked, answered = example.messages[-2:]
        assert (asked.content, answered.content) == (row[keys[0]], row[keys[1]])
        assert asked.context == (row.get("input") or "")


def test_rows_that_a_template_wrote_already_are_told(shared_data):
    data_report = count_only(DataConfig(path=str(shared_data / "dolly" / "train.jsonl")), silent)
    assert any("chat template had already been applied" in one and ": 800 of" in one for one in data_report.warnings)


def test_self_instruct_tasks_give_an_example_for_each_of_their_instances(shared_data):
    file = shared_data / "self_instruct" / "seed_tasks.jsonl"
    for raw, row in zip(raw_rows(file), examples_of(file), strict=True):
        assert [(one.messages[0].content, one.messages[0].context, one.messages[1].content) for one in row] == [
            (raw["instruction"], instance["input"], instance["output"]) for instance in raw["instances"]
        ]


def test_a_tree_is_the_conversation_of_its_best_ranked_messages(shared_data):
    trees, messages = (
        [example for row in examples_of(shared_data / "oasst" / name) for example in row]
        for name in ("trees.jsonl", "messages.jsonl")
    )
    assert same(trees, messages)


@pytest.mark.parametrize("name", ["vicuna_dummy_conversation.json", "glaive_toolcall_train.json"])
def test_every_turn_of_sharegpt_is_kept_in_its_order(name, shared_data):
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    file = shared_data / "sharegpt" / name
    for raw, (example,) in zip(raw_rows(file), examples_of(file), strict=True):
        assert [message.role for message in example.messages] == [roles[turn["from"]] for turn in raw["conversations"]]
        for turn, message in zip(raw["conversations"], example.messages, strict=True):
            assert message.content == ("" if turn["from"] == "function_call" else turn["value"])


def test_the_calls_and_tools_of_glaive_are_read(shared_data):
    file = shared_data / "sharegpt" / "glaive_toolcall_train.json"
    called = with_tools = 0
    for raw, (example,) in zip(raw_rows(file), examples_of(file), strict=True):
        wanted = [json.loads(turn["value"]) for turn in raw["conversations"] if turn["from"] == "function_call"]
        wanted = [call for one in wanted for call in (one if isinstance(one, list) else [one])]
        found = [call for message in example.messages for call in message.tool_calls]
        assert [(call.name, call.arguments) for call in found] == [(one["name"], one["arguments"]) for one in wanted]
        listed = json.loads(raw["tools"] or "[]")
        assert [tool["function"] for tool in example.tools] == listed
        assert {call.name for call in found} <= {tool["name"] for tool in listed}
        called += len(found)
        with_tools += bool(listed)
    assert (called, with_tools) == (162, 148)


def test_lima_s_history_is_earlier_turns(shared_data, tmp_path):
    file = shared_data / "lima" / "train.json"
    raw = raw_rows(file)
    for row, (example,) in zip(raw, examples_of(file), strict=True):
        earlier = [turn for pair in row["history"] for turn in zip(("user", "assistant"), pair, strict=True)]
        assert turns(example) == [*earlier, ("user", row["instruction"]), ("assistant", row["output"])]
    # and where there is one
    first, second, third = raw[:3]
    history = [[row["instruction"], row["output"]] for row in (first, second)]
    for written in (history, json.dumps(history)):
        (example,) = of_rows(tmp_path, third | {"history": written})
        assert turns(example) == [
            turn
            for row in (first, second, third)
            for turn in (("user", row["instruction"]), ("assistant", row["output"]))
        ]


# The same in other words

CITY = {"city": "Oslo", "days": [1, 2], "exact": True, "unit": None, "deep": {"a": 'é " \\'}}
TOOLS = [{"name": "weather", "description": "tells it", "parameters": {"type": "object"}}]
WRAPPED = [{"type": "function", "function": tool} for tool in TOOLS]


def weather(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "how is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "cold"},
            {"role": "assistant", "content": "It is cold."},
        ]
    }


@pytest.mark.parametrize("nothing", ["", "{}", {}])
def test_a_call_without_arguments_has_none(tmp_path, nothing):
    (example,) = of_rows(tmp_path, weather(nothing))
    assert example.messages[1].tool_calls[0].arguments == {}


def test_tools_are_the_same_bare_and_wrapped_as_a_list_and_as_text(tmp_path):
    rows = [weather({}) | {"tools": tools} for tools in (WRAPPED, TOOLS, json.dumps(WRAPPED), json.dumps(TOOLS))]
    first, *others = of_rows(tmp_path, *rows)
    assert first.tools == tuple(WRAPPED)
    assert all(same([first], [other]) for other in others)


@pytest.mark.parametrize("none", [None, [], "", "[]", " "])
def test_no_tools_are_none_however_they_are_written(tmp_path, none):
    (example,) = of_rows(tmp_path, weather({}) | {"tools": none})
    assert example.tools == ()


def test_a_call_is_the_same_in_openai_s_words_and_in_sharegpt_s(tmp_path):
    called = {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": CITY})}
    heard = [{"from": "human", "value": "how is it?"}, called, {"from": "observation", "value": "cold"},
             {"from": "gpt", "value": "It is cold."}]  # fmt: skip
    (sharegpt,) = of_rows(tmp_path, {"conversations": heard, "tools": json.dumps(TOOLS)})
    (openai,) = of_rows(tmp_path, weather(CITY) | {"tools": WRAPPED})
    assert turns(sharegpt) == turns(openai)
    assert sharegpt.tools == openai.tools
    assert [call.arguments for call in sharegpt.messages[1].tool_calls] == [CITY]


QUESTION, ANSWER = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "one."}
MORE = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "two."}]


def test_trl_s_conversational_pairs_are_the_conversation(tmp_path):
    (whole,) = of_rows(tmp_path, {"messages": [QUESTION, ANSWER]})
    for row in (
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "completion": "one."},
        {"prompt": "one?", "completion": [ANSWER]},
        {"prompt": "one?", "completion": "one."},
        {"question": "one?", "answer": "one."},
        {"prompt": "one?", "response": "one."},
    ):
        assert same(of_rows(tmp_path, row), [whole])


@pytest.mark.parametrize("role", ["assistant", "gpt", "model", "chatgpt"])
@pytest.mark.parametrize(("key", "said"), [("role", "content"), ("from", "value")])
def test_answers_inside_what_is_given_are_not_learned(tmp_path, role, key, said):
    given = [{key: "user", said: "one?"}, {key: role, said: "one."}, {key: "user", said: "two?"}]
    (example,) = of_rows(tmp_path, {"prompt": given, "completion": [{key: role, said: "two."}]})
    answers = [message for message in example.messages if message.role == "assistant"]
    assert [(message.content, message.learned) for message in answers] == [("one.", False), ("two.", True)]


def test_weights_say_what_is_learned(tmp_path):
    weighed = [QUESTION, {**ANSWER, "weight": 0}, MORE[0], {**MORE[1], "weight": 1}]
    (example,) = of_rows(tmp_path, {"messages": weighed})
    assert [message.learned for message in example.messages] == [True, False, True, True]
    (without,) = of_rows(tmp_path, {"messages": [QUESTION, ANSWER, *MORE]})
    (null,) = of_rows(tmp_path, {"messages": [QUESTION, {**ANSWER, "weight": None}, *MORE]})
    assert same([without], [null])


@pytest.mark.parametrize("other", ["developer", "system"])
def test_roles_of_other_names_are_the_same_roles(tmp_path, other):
    (plain,) = of_rows(tmp_path, {"messages": [{"role": "system", "content": "s"}, QUESTION, ANSWER]})
    for user, assistant in (("user", "assistant"), ("human", "gpt"), ("user", "model"), ("human", "chatgpt")):
        row = [(other, "s"), (user, "one?"), (assistant, "one.")]
        for key, said in (("role", "content"), ("from", "value")):
            said_so = [{key: role, said: content} for role, content in row]
            assert same(of_rows(tmp_path, {"messages": said_so}), [plain])
            assert same(of_rows(tmp_path, {"conversations": said_so}), [plain])


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_system_message_beside_the_turns_is_the_first_turn(tmp_path, form):
    (inside,) = of_rows(tmp_path, {form: [{"role": "system", "content": "s"}, QUESTION, ANSWER]})
    assert same(of_rows(tmp_path, {form: [QUESTION, ANSWER], "system": "s"}), [inside])
    assert same(of_rows(tmp_path, {form: [QUESTION, ANSWER]}, system="s"), [inside])
    assert same(of_rows(tmp_path, {form: [QUESTION, ANSWER], "system": "s"}, system="another"), [inside])


def test_what_the_model_said_before_anybody_asked_is_left_out_of_sharegpt(tmp_path):
    (plain,) = of_rows(tmp_path, {"conversations": [QUESTION, ANSWER]})
    assert same(of_rows(tmp_path, {"conversations": [ANSWER, QUESTION, ANSWER]}), [plain])


def test_keys_that_mean_nothing_here_change_nothing(tmp_path):
    more = {"id": 7, "source": "x", "meta": {"a": [1, None]}, "lang": "en", "score": 0.5}
    for row in (
        {"messages": [QUESTION, ANSWER]}, {"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"},
        {"text": "a"}, {"text": "a", "label": 1},
    ):  # fmt: skip
        assert same(of_rows(tmp_path, row | more), of_rows(tmp_path, row))


def test_a_first_line_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": \n{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    reading = open_source(DataConfig(path=str(file)), SourceConfig(path=str(file)))
    assert [len(chunk) for chunk in reading.chunks()] == [1]
    assert [where.rpartition(":")[2] for where, _ in reading.skipped] == ["1", "3"]
    assert reading.rows == 3


def test_a_link_that_leads_nowhere_is_told_as_one(tmp_path):
    link = tmp_path / "rows.jsonl"
    link.symlink_to("nowhere.jsonl")
    with pytest.raises(DataError, match=r"is a link to a missing file \(nowhere\.jsonl\)"):
        open_source(DataConfig(path=str(link)), SourceConfig(path=str(link)))


def test_columns_the_wrong_way_round_are_told(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": "a", "a": "b"}\n')
    with pytest.raises(DataError, match=r'"q" is not a known field.*Known fields: messages'):
        open_source(
            DataConfig(path=str(file)), SourceConfig(path=str(file), columns={"q": "prompt", "a": "completion"})
        )


def test_one_column_for_two_fields_is_refused():
    with pytest.raises(ConfigError, match='the column "q" is named twice'):
        DataConfig(path="rows.jsonl", columns={"prompt": "q", "completion": "q"})
