"""`rankwise data`: one data report as JSON, the same numbers as words, and exit 2 where nothing must be trained on.

What a recipe writes is then trained on and asked for in the same words.
"""

from __future__ import annotations

import json
import re
import shutil
from ast import literal_eval
from pathlib import Path

import pytest

from kit.command import done, printed, rankwise
from kit.light import outcomes
from rankwise.base.starters import STARTERS
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.runs.data_report import DataReport

KEYS = {
    "format", "rows", "used", "skipped", "tokens", "loss_tokens", "eos_in_loss", "truncated", "without_loss_tokens",
    "duplicates", "near_duplicates", "overlap", "template_parity", "fatal",
}  # fmt: skip
HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "gguf",
    "numpy",
    "datasets",
    "pyarrow",
}
LONG = {"prompt": "dog " * 120, "completion": "fox"}


def rows_of(count, begin=0):
    return [{"prompt": f"{n} what is it {n * 7}?", "completion": f"fox {n}"} for n in range(begin, begin + count)]


def alpaca_rows(count):
    return [
        {"instruction": f"What is {n}?", "input": f"the number {n}" if n % 2 else "", "output": f"It is {n}."}
        for n in range(count)
    ]


def write(name, rows):
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, tiny_folder):
    """A working folder with rows and a model in it, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    Path("model").symlink_to(tiny_folder)
    write("rows.jsonl", rows_of(8))
    write("more.jsonl", rows_of(4, 100))
    write("mixed.jsonl", [*rows_of(5), LONG, "{", rows_of(1)[0], {"prompt": "hm"}])
    write("folder/train.jsonl", rows_of(3))
    write("folder/valid.jsonl", rows_of(2, 50))
    write("alpaca.jsonl", alpaca_rows(6))
    return tmp_path


def told(*words, code=0):
    """What `data … --json` prints."""
    result = rankwise("data", *words, "--model", "model", "--json")
    assert result.exit_code == code, result.output
    assert result.stdout.count("\n") == 1 and result.stdout.endswith("}\n")
    return json.loads(result.stdout)


def refused(*words):
    """The sentence that a wrong command is answered with."""
    result = rankwise("data", *words, "--model", "model", "--json")
    assert isinstance(result.exception, SystemExit), f"a traceback: {result.exception!r}"
    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert result.stderr == f"rankwise: {facts['error']}\n"
    return facts["error"]


# check


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rows.jsonl",), 0),
        (("rows.jsonl", "--held-out", 2), 0),
        (("rows.jsonl", "--validation-data", "more.jsonl"), 0),
        (("alpaca.jsonl", "--recipe", "alpaca"), 0),
        (("mixed.jsonl", "--on-bad-row", "skip", "--max-length", 100), 0),
        (("mixed.jsonl",), 2),
        (("rows.jsonl", "--held-out", 8), 2),
        (("rows.jsonl", "--max-length", 3), 2),
        (("rows.jsonl", "--format", "alpaca"), 2),
    ],
    ids=str,
)
def test_check_prints_one_object_with_every_promised_key_and_exits_by_what_is_fatal(words, code):
    facts = told("check", *words, code=code)
    assert set(facts) >= KEYS
    assert set(facts) == set(DataReport.model_fields)
    assert DataReport(**facts).model_dump(mode="json") == facts
    assert bool(facts["fatal"]) == (code == 2)
    assert isinstance(facts["fatal"], list)
    assert (facts["overlap"] is None) == ("--held-out" not in words and "--validation-data" not in words)


@pytest.mark.parametrize(
    "words",
    [
        ("rows.jsonl",),
        ("rows.jsonl", "more.jsonl", "--held-out", 3),
        ("folder", "--validation-data", "rows.jsonl"),
        ("mixed.jsonl", "--on-bad-row", "skip", "--max-length", 100),
        ("rows.jsonl", "--max-length", 30, "--set", "data.too_long=truncate"),
        ("mixed.jsonl",),
        ("alpaca.jsonl", "--recipe", "dolly"),
    ],
    ids=str,
)
def test_the_words_hold_the_same_numbers_as_the_json(words):
    facts = told("check", *words, code=2 if words == ("mixed.jsonl",) else 0)
    result = rankwise("data", "check", *words, "--model", "model")
    assert result.exit_code == (2 if facts["fatal"] else 0)
    said = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in result.stdout.splitlines()}

    def numbers(text):
        return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]

    measured = [facts["validation_rows"]] if facts["validation_rows"] else []
    assert numbers(said["rows"]) == [facts["rows"], facts["used"], *measured, *facts["skipped_why"].values()]
    share = round(100 * facts["loss_tokens"] / max(1, facts["tokens"]))
    assert numbers(said["tokens"])[0::2] == [facts["tokens"], facts["loss_tokens"]]
    assert abs(numbers(said["tokens"])[1] - share) <= 1
    assert numbers(said["end token in the loss"]) == [facts["eos_in_loss"], facts["sequences"]]
    cut = [facts["truncated"], facts["without_loss_tokens"]]
    assert ("truncated" in said) == (any(cut) or not facts["fatal"]), "a refusal has no line of zeros"
    assert numbers(said.get("truncated", "0, 0")) == cut
    assert numbers(said["answers located"]) == list(facts["masks"].values())
    assert said["inference prompt"] == "the same as in training" and facts["template_parity"]
    lengths = facts["lengths"]
    found = numbers(said["length in tokens"].replace("90 %", "").replace("99 %", ""))
    assert found == [lengths[key] for key in ("median", "p90", "p99", "longest", "suggested_max_length")]
    assert numbers(said["duplicate rows"]) == [facts["duplicates"], facts["near_duplicates"]]
    if facts["overlap"]:
        assert numbers(said["overlap with training"]) == [facts["overlap"][key] for key in ("exact", "near", "of")]
    assert said["strictest licence"] == facts["licence"]
    for file in facts["files"]:
        assert f"{file['name']}: {file['rows']} rows, format {file['format']}" in result.stdout
    for key, word in (("warnings", "warning"), ("fatal", "error")):
        assert [f"{word}: {text}" for text in facts[key]] == [
            f"{word}: {text}" for text in facts[key] if f"{word}: {text}" in result.stdout
        ]
    last = f"No errors found. Warnings: {len(facts['warnings'])}." if facts["warnings"] else "No problems found."
    last = "Fix the errors above before training on these rows." if facts["fatal"] else last
    assert result.stdout.splitlines()[-1] == last


def test_a_refusal_comes_first_and_nothing_that_counts_zero_follows():
    Path("bad.jsonl").write_text('{"passage": "a"}\n')
    lines = rankwise("data", "check", "bad.jsonl", "--model", "model").stdout.splitlines()
    facts = told("check", "bad.jsonl", code=2)
    problems = facts["fatal"][0].splitlines()
    assert lines[: len(problems)] == [f"error: {problems[0]}", *problems[1:]]
    assert [line.split()[0] for line in lines[len(problems) :]] == ["bad.jsonl:", "rows", "Fix"]


def test_one_bad_row_of_many_says_how_to_go_on_without_it():
    write("rows.jsonl", [*rows_of(999), "{"])
    facts = told("check", "rows.jsonl", code=2)
    way_out = "1 of 1,000 rows cannot be used. To leave them out, use --on-bad-row skip."
    assert facts["advice"] == [way_out]
    lines = rankwise("data", "check", "rows.jsonl", "--model", "model").stdout.splitlines()
    assert lines[0].startswith("error: rows.jsonl:1000: is not JSON") and lines[1] == way_out
    stopped = rankwise("train", "--data", "rows.jsonl", "--model", "model", "--run", "run")
    assert (stopped.exit_code, stopped.stderr.splitlines()[-1]) == (2, way_out)
    assert told("check", "rows.jsonl", "--on-bad-row", "skip")["advice"] == []
    write("rows.jsonl", ["{", "{"])
    assert told("check", "rows.jsonl", code=2)["advice"] == [], "no other row is left"


def test_how_a_table_is_written_is_said_by_the_check_before_the_training_and_in_json():
    Path("rows.csv").write_bytes("prompt;completion;\r\nGröße;drei Fuß;\r\nfünf;sechs;\r\n".encode("cp1252"))
    layout = "separated by semicolons, encoded as cp1252 (a guess), 1 empty column without a name left out"
    checked = rankwise("data", "check", "rows.csv", "--model", "model").stdout
    assert f"rows.csv: 2 rows, format prompt, {layout}, licence unknown\n" in checked
    [file] = told("check", "rows.csv")["files"]
    written = {"encoding": "cp1252 (a guess)", "delimiter": ";", "sheet": None, "unnamed_columns": 1, "pixels": None,
               "empty_rows": 0, "empty_row": None, "nested": None}  # fmt: skip
    assert file["layout"] == written
    assert [told("check", "rows.jsonl")["files"][0]["layout"]] == [None]


def test_several_files_are_counted_together_and_a_folder_by_its_training_split():
    one, other, both = (
        told("check", *files) for files in (["rows.jsonl"], ["more.jsonl"], ["rows.jsonl", "more.jsonl"])
    )
    for key in ("rows", "used", "sequences", "tokens", "loss_tokens", "eos_in_loss"):
        assert both[key] == one[key] + other[key]
    assert [file["name"] for file in both["files"]] == ["rows.jsonl", "more.jsonl"]
    folder = told("check", "folder")
    assert (folder["rows"], folder["left_aside"]) == (3, ["valid.jsonl"])
    assert told("check", "folder", "--set", "data.split=valid")["rows"] == 2
    assert "valid.jsonl" in rankwise("data", "check", "folder", "--model", "model").stdout


def test_a_flag_is_the_setting_that_it_stands_for():
    for flag, setting in (
        (("--max-length", 20), "data.max_length=20"),
        (("--held-out", 3), "data.held_out=3"),
        (("--on-bad-row", "skip"), "data.on_bad_row=skip"),
        (("--format", "prompt"), "data.format=prompt"),
        (("--validation-data", "more.jsonl"), "data.validation=more.jsonl"),
        (("--recipe", "alpaca"), "data.recipe=alpaca"),
    ):
        code = 2 if "20" in setting else 0
        assert told("check", "rows.jsonl", *flag, code=code) == told("check", "rows.jsonl", "--set", setting, code=code)
    assert told("check", "alpaca.jsonl", "--recipe", "alpaca")["template"]["kind"] == "recipe alpaca"
    assert told("check", "rows.jsonl", "--validation-data", "more.jsonl")["validation_rows"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rows.jsonl", "--set", "training.epochs=3"), ("training", "data.")),
        (("rows.jsonl", "--set", "model.name=other"), ("model", "data.")),
        (("rows.jsonl", "--set", "model=other"), ("model", "data.")),
        (("rows.jsonl", "--set", "data=other.jsonl"), ("--set data",)),
        (("rows.jsonl", "--set", "data.rowz=3"), ("--set data.rowz", '"rows"')),
        (("rows.jsonl", "--set", "nonsense"), ("nonsense", "key=value")),
        (("rows.jsonl", "--recipe", "alpca"), ("--recipe", "alpca", "alpaca")),
        (("rows.jsonl", "--max-length", 0), ("--max-length", "0")),
        (("rows.jsonl", "--format", "chat"), ("--format", "chat", "messages")),
        (("rows.jsonl", "--on-bad-row", "ignore"), ("--on-bad-row", "ignore", "skip")),
        (("row.jsonl",), ("row.jsonl", "no such file", '"rows.jsonl"')),
        (("rows.jsonl", "--validation-data", "mor.jsonl"), ("mor.jsonl", "no such file", '"more.jsonl"')),
        (("rows.jsonl", "--set", "data.columns.promt=x"), ("promt", '"prompt"')),
        (("rows.jsonl", "--set", "data.split=train"), ("rows.jsonl", "split")),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_counted(words, said):
    sentence = refused("check", *words)
    assert [part for part in said if part not in sentence] == [], sentence
    assert not Path("cache").exists()


def test_a_check_trains_nothing_and_leaves_nothing_but_its_cache():
    before = set(Path().iterdir())
    assert rankwise("data", "check", "rows.jsonl", "--model", "model").exit_code == 0
    assert set(Path().iterdir()) - before == {Path("cache")}
    assert [path.name for path in Path("cache").iterdir()] == ["encoded"]


# A starter that is here already


@pytest.fixture
def starter(home):
    """The cache as if the starter had been fetched before; in its place a tiny model."""
    models = home / "cache" / "models"
    models.mkdir(parents=True)
    shutil.copytree(home / "model", models / "gguf-tiny")
    one = STARTERS["smollm2-135m"]
    (models / f"{one.name}-{one.member_sha256[:16]}.folder").write_text("gguf-tiny")
    return one


def guessed(*words):
    result = rankwise("data", "check", *words, "--json")
    return json.loads(result.stdout), result


TOOLS = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    "tools": [{"name": "look", "parameters": {"type": "object", "properties": {}}}],
}


def test_without_a_model_a_starter_that_is_here_counts_and_is_named(starter):
    facts, result = guessed("rows.jsonl")
    named = told("check", "rows.jsonl")
    assert facts["model"] == starter.hub_id and starter.name in result.stderr
    assert {key for key in facts if facts[key] != named[key]} == {"model"}


def test_what_only_a_guessed_starter_cannot_write_is_a_note(starter):
    write("tools.jsonl", [TOOLS, TOOLS])
    facts, result = guessed("tools.jsonl")
    assert facts["fatal"] == [] and result.exit_code == 0
    assert any(" 2" in note and "tools.jsonl:1" in note for note in facts["warnings"])
    assert told("check", "tools.jsonl", code=2)["fatal"], "a model that was named was asked for"


@pytest.mark.parametrize(
    "words",
    [
        ("tools.jsonl", "--validation-data", "mixed.jsonl"),
        ("tools.jsonl", "--validation-data", "empty.jsonl"),
        ("some.jsonl", "--on-bad-row", "skip", "--held-out", 9),
        ("tools.jsonl", "mixed.jsonl"),
    ],
    ids=str,
)
def test_what_is_fatal_with_any_model_stays_fatal_with_a_guessed_one(starter, words):
    write("tools.jsonl", [TOOLS, TOOLS])
    write("some.jsonl", [TOOLS, {"messages": TOOLS["messages"]}])
    write("empty.jsonl", [])
    facts, result = guessed(*words)
    assert facts["fatal"] and result.exit_code == 2


# preview


def shown(*words):
    return told("preview", *words)["rows"]


def learned(row):
    return "".join(part["text"] for part in row["segments"] if part["learned"])


def whole(row):
    return "".join(part["text"] for part in row["segments"])


def test_preview_shows_to_the_letter_what_is_given_and_what_is_learned():
    rows = shown("rows.jsonl")
    assert [row["where"] for row in rows] == [f"rows.jsonl:{line}" for line in (1, 2, 3)]
    for row, held in zip(rows, rows_of(3), strict=True):
        assert learned(row) == held["completion"] + "<|im_end|>"
        assert whole(row) == (
            f"<|im_start|>user\n{held['prompt']}<|im_end|>\n<|im_start|>assistant\n{held['completion']}<|im_end|>\n"
        )
        assert set(row) == {"where", "segments", "tokens", "loss_tokens", "left_out"}
        assert row["left_out"] is None
    counted = told("check", "rows.jsonl")
    every = shown("rows.jsonl", "--rows", 100)
    assert len(every) == counted["rows"]
    assert sum(row["tokens"] for row in every) == counted["tokens"]
    assert sum(row["loss_tokens"] for row in every) == counted["loss_tokens"]


@pytest.mark.parametrize(("rows", "first"), [(1, 1), (2, 4), (100, 7), (3, 8)])
def test_rows_and_first_choose_which_rows_are_shown(rows, first):
    found = shown("rows.jsonl", "--rows", rows, "--first", first)
    assert [row["where"] for row in found] == [f"rows.jsonl:{line}" for line in range(first, min(first + rows, 9))]
    two = shown("more.jsonl", "rows.jsonl", "--rows", 2, "--first", 4)
    assert [row["where"] for row in two] == ["more.jsonl:4", "rows.jsonl:1"]


def test_a_row_that_is_not_there_is_told():
    assert "no row 9" in refused("preview", "rows.jsonl", "--first", 9)


def test_elsewhere_than_on_a_terminal_every_line_says_whether_it_is_learned():
    result = rankwise("data", "preview", "rows.jsonl", "--model", "model", "--rows", 2)
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    found = {"prompt": "", "loss": ""}
    heads = []
    for line in result.stdout.splitlines():
        kind, bar, text = line.partition("| ")
        if bar and kind.strip() in found:
            found[kind.strip()] += literal_eval(text)
        else:
            heads.append(line)
    rows = shown("rows.jsonl", "--rows", 2)
    assert found["loss"] == "".join(map(learned, rows))
    assert len(found["prompt"]) + len(found["loss"]) == sum(len(whole(row)) for row in rows)
    assert heads == [f"{row['where']}: {row['tokens']} tokens, {row['loss_tokens']} loss tokens" for row in rows]


LEARNED_COLOUR, GIVEN_COLOUR = "\x1b[30;42m", "\x1b[2m"


def coloured(text, colour):
    """What stands in this colour."""
    return "".join(re.findall(re.escape(colour) + r"(.*?)\x1b\[0m", text, re.DOTALL))


def test_on_a_forced_terminal_what_is_learned_is_in_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = rankwise("data", "preview", "rows.jsonl", "--model", "model", "--rows", 1)
    assert coloured(result.stdout, LEARNED_COLOUR) == "fox 0<|im_end|>"
    assert "what is it 0?" in coloured(result.stdout, GIVEN_COLOUR)
    assert "fox 0" not in coloured(result.stdout, GIVEN_COLOUR)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = rankwise("data", "preview", "rows.jsonl", "--model", "model", "--rows", 1)
    assert LEARNED_COLOUR not in plain.stdout and "loss    | 'fox 0<|im_end|>'" in plain.stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    as_json = rankwise("data", "preview", "rows.jsonl", "--model", "model", "--rows", 1, "--json")
    assert "\x1b" not in as_json.stdout and json.loads(as_json.stdout)["rows"]


def test_a_row_cannot_send_commands_to_the_terminal(monkeypatch):
    """Such as a new title, a cleared screen, or what looks like the colour of what is learned."""
    write("hostile.jsonl", [{"prompt": "hi \x1b]0;owned\x07\x1b[2J\x9b31m\x1b[30;42mno", "completion": "\x1b[2mfox"}])
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    sent = rankwise("data", "preview", "hostile.jsonl", "--model", "model").stdout
    assert [
        command for command in ("\x1b]0", "\x1b[2J", "\x07", "\x9b", "\x1b[30;42mno", "\x1b[2mfox") if command in sent
    ] == []


def test_a_row_that_is_cut_is_shown_cut():
    write("long.jsonl", [{"prompt": "what?", "completion": "the quick brown fox " * 20}])
    [row] = shown("long.jsonl", "--max-length", 40, "--set", "data.too_long=truncate")
    assert row["tokens"] == 40
    assert learned(row) and ("the quick brown fox " * 20).startswith(learned(row))
    counted = told("check", "long.jsonl", "--max-length", 40, "--set", "data.too_long=truncate", code=2)
    assert (counted["tokens"], counted["loss_tokens"]) == (row["tokens"], row["loss_tokens"])


def test_a_conversation_that_is_split_is_shown_in_its_parts():
    turns = [{"role": role, "content": f"{role} {n} " * 5} for n in range(6) for role in ("user", "assistant")]
    write("talk.jsonl", [{"messages": turns}])
    words = ("talk.jsonl", "--max-length", 150, "--set", "data.too_long=split")
    rows = shown(*words)
    assert len(rows) > 1 and {row["where"] for row in rows} == {"talk.jsonl:1"}
    assert all(row["tokens"] <= 150 for row in rows)
    answers = "".join(f"{turn['content']}<|im_end|>" for turn in turns if turn["role"] == "assistant")
    assert "".join(map(learned, rows)) == answers
    counted = told("check", *words)
    assert (counted["sequences"], counted["tokens"]) == (len(rows), sum(row["tokens"] for row in rows))


def test_a_row_that_would_be_left_out_is_not_passed_over_in_silence():
    words = ("data", "preview", "mixed.jsonl", "--model", "model", "--first", 6, "--rows", 1, "--max-length", 100)
    result = rankwise(*words, "--on-bad-row", "skip")
    assert "mixed.jsonl:6" in result.output


def test_a_recipe_is_previewed_as_it_would_be_learned():
    rows = shown("alpaca.jsonl", "--recipe", "alpaca", "--rows", 2)
    assert learned(rows[0]) == "It is 0.<|im_end|>"
    assert whole(rows[1]).endswith("### Input:\nthe number 1\n\n### Response:It is 1.<|im_end|>")
    [everything] = shown("alpaca.jsonl", "--recipe", "alpaca-lora", "--rows", 1)
    assert learned(everything) == whole(everything)


# recipes


def test_recipes_are_listed_shown_whole_and_printed_as_json():
    listed = rankwise("data", "recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(RECIPES)
    for line, name in zip(listed.stdout.splitlines(), RECIPES, strict=True):
        assert recipe_named(name).title in line and recipe_named(name).rows.licence in line
    every = printed("data", "recipes")
    assert every == {"recipes": [recipe_named(name).model_dump(mode="json") for name in RECIPES]}
    for name in RECIPES:
        whole_recipe = recipe_named(name).model_dump(mode="json")
        assert json.loads(rankwise("data", "recipes", name).stdout) == whole_recipe
        result = rankwise("data", "recipes", name, "--json")
        assert result.stdout.count("\n") == 1 and json.loads(result.stdout) == {"recipes": [whole_recipe]}


def test_a_misspelt_recipe_is_told_with_the_nearest():
    result = rankwise("data", "recipes", "alpca", "--json")
    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert facts["kind"] == "ConfigError" and 'Did you mean "alpaca"?' in facts["error"]
    assert all(name in facts["error"] for name in RECIPES)


# From the recipe to the answer


@pytest.fixture
def run(home):
    """Two steps by Alpaca's recipe."""
    words = ("--recipe", "alpaca", "--steps", 2, "--batch-size", 2, "--set", "adapter.rank=2")
    assert printed("train", "--model", "model", "--data", "alpaca.jsonl", "--run", "first", *words)["steps"] == 2
    return home / "runs" / "first"


def test_a_run_by_a_recipe_keeps_the_data_report_that_the_check_gave_beside_itself_and_its_adapter(run):
    data_report = json.loads((run / "data_report.json").read_text())
    assert data_report == json.loads((run / "adapter" / "data_report.json").read_text())
    assert data_report == told("check", "alpaca.jsonl", "--recipe", "alpaca")
    assert (data_report["recipe"], data_report["template"]["kind"]) == ("alpaca", "recipe alpaca")
    assert data_report["template"]["sources"]["default"] == recipe_named("alpaca").template
    spec = json.loads((run / "config.json").read_text())
    assert (spec["data"]["recipe"], spec["data"]["max_length"], spec["data"]["too_long"]) == ("alpaca", 512, "truncate")
    assert (spec["training"]["schedule"], spec["training"]["epochs"], spec["training"]["steps"]) == ("cosine", None, 2)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["tokens"] == data_report["tokens"]
    assert manifest["data"]["loss_tokens"] == data_report["loss_tokens"]


def asked_tokens(name, *words):
    """How many tokens the model would be asked with: the refusal of an answer that has no room tells it."""
    result = rankwise("generate", name, *words, "--max-new-tokens", 10_000)
    assert result.exit_code == 2
    return int(re.search(r"the prompt has (\d+) tokens", result.stderr)[1])


def test_what_generate_asks_with_a_context_is_as_long_as_what_stood_before_the_answer_in_training(run):
    for number, row in enumerate(alpaca_rows(4), start=1):
        [trained] = shown("alpaca.jsonl", "--recipe", "alpaca", "--first", number, "--rows", 1)
        context = ("--context", row["input"]) if row["input"] else ()
        given_tokens = trained["tokens"] - trained["loss_tokens"]
        assert asked_tokens("first", "--prompt", row["instruction"], *context) == given_tokens


def test_generate_answers_with_a_context_and_without_by_the_recipe_and_by_the_models_own_template(run):
    write("plain.jsonl", alpaca_rows(4))
    words = ("--steps", 1, "--set", "adapter.rank=2")
    assert rankwise("train", "--model", "model", "--data", "plain.jsonl", "--run", "own", *words).exit_code == 0
    for name in ("first", "own"):
        question = ("--prompt", "What is 1?", "--context", "the number 1")
        assert printed("generate", name, *question, "--max-new-tokens", 5)["prompt"] == "What is 1?"
        assert asked_tokens(name, *question) > asked_tokens(name, *question[:2])
        assert asked_tokens(name, *question[:2], "--context", "") == asked_tokens(name, *question[:2])
    # the model's own template has no place for a context: it follows the question
    [trained] = shown("plain.jsonl", "--first", 2, "--rows", 1)
    assert "What is 1?\n\nthe number 1<|im_end|>" in whole(trained)
    below = asked_tokens("own", "--prompt", "What is 1?\n\nthe number 1")
    assert asked_tokens("own", "--prompt", "What is 1?", "--context", "the number 1") == below


def test_a_run_of_several_sources_can_be_asked(home):
    Path("two.yaml").write_text(
        "model: model\nrun: two\ndata: {sources: [rows.jsonl, {path: more.jsonl, weight: 2}], held_out: 3}\n"
        "training: {steps: 1}\nadapter: {rank: 2}\n"
    )
    done("train", "two.yaml")
    done("generate", "two", "--prompt", "what is it?", "--max-new-tokens", 3)
    manifest = json.loads((home / "runs" / "two" / "manifest.json").read_text())
    assert manifest["data"]["validation_sequences"] == 3
    assert manifest["data"]["training_sequences"] == 8 - 2 + 2 * (4 - 1)


# Help


HELP = (("data",), ("data", "check"), ("data", "preview"), ("data", "recipes"), ("train",), ("generate",))
SHOWN = (("data", "recipes"), ("data", "recipes", "vicuna", "--json"))


@pytest.fixture(scope="module")
def outcome_of():
    """What came of each of these commands in an interpreter of their own."""
    commands = [*((*words, "--help") for words in HELP), *SHOWN]
    return dict(zip(commands, outcomes(commands), strict=True))


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_brings_nothing_large_and_names_every_flag(outcome_of, words):
    outcome = outcome_of[*words, "--help"]
    assert outcome.code == 0 and not outcome.loaded & HEAVY
    flags = {
        "check": ("--model", "--recipe", "--format", "--max-length", "--on-bad-row", "--held-out", "--validation-data"),
        "preview": ("--model", "--rows", "--first", "--recipe", "--format", "--max-length", "--on-bad-row"),
        "train": ("--recipe", "--format", "--on-bad-row", "--validation-data"),
        "generate": ("--context",),
        "data": ("check", "preview", "recipes"),
    }  # fmt: skip
    everywhere = ("--set", "--json", "--quiet") if words[-1] in ("check", "preview", "train") else ()
    assert [flag for flag in (*flags.get(words[-1], ()), *everywhere) if flag not in outcome.printed] == []


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_recipes_are_shown_without_anything_large(outcome_of, words):
    outcome = outcome_of[words]
    assert outcome.code == 0 and not outcome.loaded & HEAVY and "vicuna" in outcome.printed
