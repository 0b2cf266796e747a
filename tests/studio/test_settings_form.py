"""The form says the same as the command and the file that it shows, and a run comes back as its form."""

from __future__ import annotations

import shlex

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.cli.main import app
from rankwise.cli.settings import TRAINING, GivenSettings
from rankwise.config.adapters import METHODS
from rankwise.config.experiment import Experiment
from rankwise.config.reading import read_experiment
from rankwise.config.settings import FLAGS
from rankwise.errors import ConfigError
from rankwise.studio.settings_form import CARDS, KNOBS, OTHER, SettingsForm, fields_of, problems_of, with_labels

TRAIN = typer.main.get_command(app).commands["train"]  # pyright: ignore[reportAttributeAccessIssue]
NEEDED = {"model.name": "gpt2", "data.path": "rows.jsonl", "run": "one"}
NUMBERS = {
    "adapter.rank": ["3", "64"], "adapter.alpha": ["8", "1.5"], "adapter.dropout": ["0.1"],
    "training.epochs": ["1", "0.5"],
    "training.batch_size": ["4"], "training.learning_rate": ["2e-3", "0.0005"], "training.seed": ["7"],
    "data.max_length": ["77"], "data.held_out": ["12"], "training.max_batch_tokens": ["512"],
    "preference.beta": ["0.2"],
    "training.anchor.weight": ["0.5"], "training.replay.share": ["0.3"], "images.size": ["64"],
}  # fmt: skip
TEXTS = {
    "adapter.budget": ["2MB", "6"], "adapter.targets": ["q_proj,v_proj", "(k|v)_proj"], "model.quantize": ["nf4"],
    "data.prompt": ["Say: {a b}\nand {c}", "-{x}"], "data.system": ["You're\n\"it\" $HOME `x`"],
    "data.ignore_columns": ["a,b"],
    "data.on_bad_row": ["skip"], "training.auto_batch": ["true"], "tune": ["true"], "preference.loss": ["orpo"],
    "other": ["training.clip=0.5", 'data.columns={"instruction": "q"}\n\ntraining.schedule=cosine'],
}  # fmt: skip
FORMS = st.builds(
    lambda card, given: NEEDED | {"card": card} | given,
    st.sampled_from([card.name for card in CARDS]),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in (NUMBERS | TEXTS).items()}),
)


def experiment_of(fields):
    try:
        return SettingsForm(fields).experiment()
    except ConfigError:
        return None


@given(FORMS)
@settings(max_examples=25)
def test_the_command_and_the_file_say_what_the_form_says(tmp_path_factory, fields):
    if "data.prompt" in fields:
        fields |= {"data.completion": "{y}"}
    form, own = SettingsForm(fields), experiment_of(fields)
    if "tune" in fields and "training.learning_rate" in fields:
        assert own is None
        return
    words = shlex.split(form.command())
    assert words[:2] == ["rankwise", "train"]
    given = TRAIN.make_context("train", words[2:], resilient_parsing=True).params
    flags = {name: given[name] for name in TRAINING}
    file = tmp_path_factory.mktemp("form") / "one.yaml"
    file.write_text(form.yaml(), encoding="utf-8")
    if own is None:
        with pytest.raises(ConfigError):
            read_experiment(None, GivenSettings(flags, given["set_"] or ()).read(given["tune"]))
        return
    assert read_experiment(None, GivenSettings(flags, given["set_"] or ()).read(given["tune"])) == own
    assert read_experiment(file) == own
    assert SettingsForm(fields_of(own.model_dump(mode="json")) | {"run": "one"}).experiment() == own


@pytest.mark.parametrize("given", [
    {"data": {"sources": [{"path": "a", "weight": 2}, {"path": "b", "columns": {"prompt": "q, r"}}], "held_out": 3}},
    {"data": {"path": "x", "recipe": "alpaca"}, "adapter": {"rank": 4}},
    {"adapter": {"method": "lora", "dora": True, "start": "eva", "eva_rho": 1.5}},
    {"adapter": {"targets": ["a,b"], "layers": "0-3,7", "rank_pattern": {"x.y": 3}}},
    {"data": {"path": "x", "system": " with space ", "ignore_columns": ["a,b"]}, "objective": "causal-lm"},
    {"adapter": {"method": "adalora", "compat": "reference"}, "training": {"learning_rate": "tune"}},
    {"model": {"name": "gpt2", "new_tokens": ["<a>", "<b>"], "device": "cpu"}, "validation": {"prompts": ["a", "b"]}},
    {"data": {"path": "x", "validation": {"path": "y", "rows": 5}}, "validation": {"keep": "best", "patience": 2}},
])  # fmt: skip
def test_the_form_of_a_run_gives_the_same_run(given):
    own = Experiment.model_validate({"model": "gpt2", "data": "rows.jsonl", "run": "r"} | given)
    fields = fields_of(own.model_dump(mode="json"))
    assert "run" not in fields
    assert SettingsForm(fields | {"run": "r"}).experiment() == own


def test_each_field_is_a_setting_with_the_flag_of_the_terminal_and_its_help():
    flags = {one.key: one.flag.name for one in FLAGS.values()}
    aliases = {"data.validation.path": "data.validation"}
    for knob in KNOBS.values():
        help, hint, more = knob.declared.help, knob.declared.hint, knob.declared.more
        assert help and hint + (f" {more}" if more else "") == help, knob.setting
        assert knob.flag == flags.get(aliases.get(knob.setting, knob.setting)), knob.setting
    assert {card.settings["adapter.method"] for card in CARDS} == METHODS.keys()
    assert all(card.sentence.count(". ") == 0 and card.sentence.endswith(".") for card in CARDS)


def test_all_problems_are_told_at_once_each_with_its_field():
    fields = {
        "model.name": "gpt2", "data.path": "x", "run": "a b", "adapter.rank": "many", "training.epochs": "-1",
        "data.max_length": "1.5", OTHER: "training.nonsense=1",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        SettingsForm(fields).experiment()
    found = {one.field: one.text for one in problems_of(caught.value)}
    assert set(found) == {"run", "adapter.rank", "training.epochs", "data.max_length", OTHER}
    assert "'many'" in found["adapter.rank"] and found["adapter.rank"].startswith('Setting "adapter.rank"')
    with pytest.raises(ConfigError) as caught:
        SettingsForm(NEEDED | {"validation.keep": "best", "data.held_out": "0"}).experiment()
    assert [one.field for one in problems_of(caught.value)] == ["validation.keep"]
    with pytest.raises(ConfigError) as caught:
        SettingsForm({"card": "lora"}).experiment()
    assert {one.field for one in problems_of(caught.value)} == {"model.name", "data.path", "run"}


def test_a_field_of_another_method_has_no_effect():
    assert SettingsForm(NEEDED | {"card": "adalora", "adapter.rank": "x", "adapter.budget": "3"}).experiment().adapter
    assert "--rank" not in SettingsForm(NEEDED | {"card": "full", "adapter.rank": "8"}).command()


@pytest.mark.parametrize(("said", "shown"), [
    ('a guess is --prompt "{a}" --completion "{b}".', 'a guess is “Prompt” "{a}" “Answer” "{b}".'),
    ("Name yours with --text COLUMN and --label COLUMN.", "Name yours with “text” and “answer”."),
    ("Add --set data.format=prompt, or --ignore-columns a,b.",
     "Add “Any other setting” data.format=prompt, or “Columns to ignore” a,b."),
    ("rankwise models pull x --force, a--run", "rankwise models pull x --force, a--run"),
])  # fmt: skip
def test_a_message_says_the_label_of_a_field_for_a_flag(said, shown):
    assert with_labels(said) == shown


def test_a_default_that_depends_on_the_task_is_shown_as_such():
    shown = {name: KNOBS[name].default for name in ("training.epochs", "validation.keep", "training.batch_size")}
    assert shown == {"training.epochs": "by task and rows", "validation.keep": "by task and rows",
                     "training.batch_size": "16"}  # fmt: skip
