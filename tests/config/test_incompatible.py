"""Each row of the table refuses its setting at its moment, and the same experiment without the setting is accepted."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, get_args

import pytest

from rankwise.config.adapters import METHODS
from rankwise.config.experiment import Experiment
from rankwise.config.incompatible import INCOMPATIBLE, LATER, Refusal, Term, excludes, problems
from rankwise.config.models import BOTH, DECODER, ENCODER, IMAGES
from rankwise.config.objectives import Suited
from rankwise.config.validation import METRICS_BY
from rankwise.errors import ConfigError

Settings = dict[str, Any]
PLAIN: Settings = {"model.name": "m", "data.path": "d", "data.held_out": 4, "run": "r"}
VALUES: Settings = {
    "data.path": "d", "data.prompt": "{q}", "data.completion": "{a}", "data.columns": {"prompt": "q"},
    "data.labels": ["a"], "data.format": "text", "data.encoding": "utf-8", "data.delimiter": ";",
    "data.ignore_columns": ["q"], "data.answer_choices": ["a"], "data.reasoning": "learn", "data.recipe": "alpaca",
    "data.learned": "everything", "data.answers": "apart", "data.packing": True, "data.max_length": 9,
    "data.too_long": "truncate", "model.trust_code": "a" * 40, "model.memory": "6GB", "model.new_tokens": ["<a>"],
    "model.sharded": True, "adapter.eva_rho": 3, "adapter.eva_batches": 2, "adapter.orthogonality": 0.1,
    "adapter.penalty": "reference", "adapter.dora": True, "training.epochs": 1, "training.steps": 3,
    "training.checkpoint_steps": 3, "training.checkpoint_minutes": 2, "training.replay": {}, "training.anchor": {},
    "training.anchor.tasks": ["arc_easy"], "training.anchor.task_rows": 100, "training.anchor.code": True,
    "training.anchor.forget_at_most": 0.1, "training.auto_batch": True, "validation.scores": ["bleu"],
    "validation.answers": 2, "validation.max_new_tokens": 3, "validation.prompts": ["Hi"],
}  # fmt: skip
"""A value of each setting that is no text."""
WORLDS: dict[str, Settings] = {
    "data.needed_columns": {"data.columns": {"prompt": "q"}}, "data.on_hub": {"data.path": "hub:o/d"},
    "data.run": {"training.replay.data.path": "run:x"}, "data.beside_run": {"training.replay.data.format": "text"},
    "data.of_one_source": {"data.format": "text"}, "data.sources": {"data.sources": ["a", "b"], "data.path": None},
    "!data.path": {"data.path": None},
    "data.not_of_pairs": {"data.format": "alpaca"}, "!model.device=auto,cpu,cuda": {"model.device": "mps"},
    "!adapter.prunes": {"adapter.warmup": 0.5, "adapter.final": 0.5}, "validation.by": {},
    "adapter.start=zero": {"adapter.method": "adalora"},
    "training.anchor.most_points": {"training.anchor.forget_at_most": "5%"},
    "validation.metrics": {"validation.scores": ["bleu"]}, "validation.needing_rows": {"validation.steps": 3},
    "validation.by_kind=text": {"validation.by": "exact", "validation.answers": 2},
    "classification": {"classification.targets": "classes"}, "images": {"images.size": 64},
    "preference": {"preference.loss": "orpo"}, "processes": {}, "advise": {},
}  # fmt: skip
"""Settings with which a term holds that is not a setting of its own."""
NEEDED: dict[str, Settings] = {
    "validation.scores": {"validation.answers": 2}, "validation.answers": {"validation.scores": ["bleu"]},
    "data.prompt": {"data.completion": "{a}"}, "data.completion": {"data.prompt": "{q}"},
}  # fmt: skip
"""Settings without which another is refused when its section is read."""
CHOICES = {
    "objective": get_args(Experiment.model_fields["objective"].annotation), "adapter.method": tuple(METHODS),
    "nature": (IMAGES, ENCODER, BOTH, DECODER),
}  # fmt: skip
CASES = [(row, setting) for row in INCOMPATIBLE if row.moment != "task" for setting in row.settings]
"""Those of evaluation tasks are in tests/evaluation/test_task_documents.py."""


def worlds(term: Term) -> list[Settings]:
    """Settings with which the term holds, for each value that it names or leaves."""
    if term.text in WORLDS:
        return [WORLDS[term.text]]
    if term.key == "validation.by_kind":
        return [{"validation.by": get_args(METRICS_BY[kind])[0]} for kind in term.values]
    if term.text.startswith("!"):
        return [{term.key: value} for value in CHOICES.get(term.key, ()) if value not in term.values] or [{}]
    return [{term.key: value} for value in sorted(term.values) or [VALUES.get(term.key, "x")]]


def made(settings: Settings) -> Experiment:
    values: Settings = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inside = values
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = value
    return Experiment(**values)


def refused(settings: Settings, moment: str) -> list[str]:
    if moment == "nature":
        chosen = {"objective": "auto", "nature": "", "model": "m"} | settings
        return problems(Suited(**{name: chosen[name] for name in Suited.model_fields}), moment)
    try:
        experiment = made(settings)
    except ConfigError as error:
        return error.problems if moment not in LATER else [f"too early: {error}"]
    of = experiment.model if moment == "processes" else experiment
    return problems(of, moment) if moment in LATER else []


@pytest.mark.parametrize(("row", "setting"), CASES, ids=lambda one: one.text if isinstance(one, Term) else one.moment)
def test_a_row_refuses_its_setting_and_nothing_else(row: Refusal, setting: Term) -> None:
    is_later = row.moment in LATER
    section = setting.key.rpartition(".")[0]
    sentence = re.compile(re.sub(r"\\\{(term|key)\\\}", re.escape(setting.key) + r"( \\S+)?", re.sub(
        r"\\\{(?!term|key\\)[^}]*\\\}", ".*", re.escape(row.why))), re.IGNORECASE)  # fmt: skip
    for own, *others in product(worlds(setting), *map(worlds, row.partners)):
        needed = NEEDED.get(setting.key, {}) if is_later else {}
        beside = [one for term, one in zip(row.partners, others, strict=True)
                  if not (is_later and section and term.key.startswith(f"{section}."))]  # fmt: skip
        everything = {key: value for one in (PLAIN, needed, *others, own) for key, value in one.items()}
        assert any(map(sentence.search, refused(everything, row.moment))), everything
        without = {key: value for one in (PLAIN, *beside) for key, value in one.items()}
        assert refused(without, row.moment) == []


def test_rows_that_are_held_out_by_default_take_neither_groups_nor_an_order() -> None:
    for setting in ({"group": "g"}, {"held_out_order": "last"}):
        with pytest.raises(ConfigError, match="has no effect without held_out"):
            made(PLAIN | {"data.held_out": "auto"} | {f"data.{key}": value for key, value in setting.items()})


def test_a_setting_is_excluded_where_a_row_says_so_whatever_else_is_given() -> None:
    assert excludes("training.anchor", "adapter.method", "full")
    assert not excludes("training.anchor", "adapter.method", "lora")
    assert excludes("training.replay", "objective", "preference")
    assert not excludes("training.replay", "objective", "causal-lm")
    assert not excludes("data.learned=everything", "objective", "preference"), "it depends on the loss"


@pytest.mark.parametrize(("objective", "idle"), [
    ("auto", ""),
    ("causal-lm", "classification images preference adapter.method=head"),
    ("sequence-to-sequence", "classification images preference adapter.method=head adapter.start=eva training.anchor "
     "training.replay training.learning_rate=tune model.new_tokens data.recipe data.packing model.sharded"),
    ("preference", "classification images adapter.method=head adapter.start=eva training.anchor training.replay "
     "training.learning_rate=tune validation.scores validation.answers data.packing data.answers=apart model.sharded"),
    ("multiple-choice", "classification images preference adapter.method=head training.anchor training.replay "
     "validation.scores validation.answers validation.prompts data.recipe data.packing model.sharded"),
    ("sequence-classification", "images preference adapter.start=eva training.anchor training.replay validation.scores "
     "validation.answers validation.prompts data.recipe data.packing model.sharded"),
    ("token-classification", "images preference adapter.start=eva training.anchor training.replay validation.scores "
     "validation.answers validation.prompts data.recipe data.packing model.sharded"),
    ("image-classification", "preference adapter.start=eva training.anchor training.replay validation.scores "
     "validation.answers validation.prompts data.recipe data.packing data.max_length model.sharded"),
])  # fmt: skip
def test_an_objective_refuses_these_and_no_others_of_them(objective: str, idle: str) -> None:
    settings = {
        "classification", "images", "preference", "adapter.method=head", "adapter.start=eva", "training.anchor",
        "training.replay", "training.learning_rate=tune", "model.new_tokens", "validation.scores", "validation.answers",
        "validation.prompts", "data.recipe", "data.packing", "data.answers=apart", "data.max_length", "model.sharded",
    }  # fmt: skip
    assert {setting for setting in settings if excludes(setting, "objective", objective)} == set(idle.split())
