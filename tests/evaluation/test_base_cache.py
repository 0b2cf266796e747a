"""What a base scored is asked once, and never taken for what another model, task or setting would have scored."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.evaluation import task as base_sides
from rankwise.evaluation.requests import requests_of
from rankwise.evaluation.task import OwnTask, base_scores
from rankwise.runs.records import ProgressUpdate, silent


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores"


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"))


def task_of(model, folder, together=4, rows=5, **settings):
    file = folder / f"{rows}.jsonl"
    made = [{"prompt": f"What is land {n}?", "completion": f"town {n}"} for n in range(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    spec = TaskConfig(**{"task": "t", "data": str(file), "score": ("loss", "exact"), "max_new_tokens": 4} | settings)
    return OwnTask(spec, requests_of(spec, model), together)


def asked(task, model, fingerprint="f00d"):
    """The side, and whether the model was asked for it."""
    heard = []
    side = base_scores(task, model, fingerprint, "base", heard.append)
    return side, any(isinstance(event, ProgressUpdate) for event in heard)


def test_a_base_is_asked_once_and_says_the_same_again(model, tmp_path, cache):
    first, was_asked = asked(task_of(model, tmp_path), model)
    again, asked_again = asked(task_of(model, tmp_path), model)
    assert (was_asked, asked_again) == (True, False) and again == first
    assert again == task_of(model, tmp_path).score(model, "base", silent).model_copy(update={"seconds": first.seconds})


def test_nothing_else_is_taken_for_it(model, tmp_path, cache, monkeypatch):
    asked(task_of(model, tmp_path), model)
    for settings in ({"together": 2}, {"rows": 6}, {"max_new_tokens": 5}, {"score": ("exact",)}, {"system": "quick"}):
        assert asked(task_of(model, tmp_path, **settings), model)[1], settings
    task = task_of(model, tmp_path)
    assert asked(task, model, "beef")[1]
    assert asked(task, replace(model, precision=replace(model.precision, dtype=torch.bfloat16)))[1]
    assert not asked(task_of(model, tmp_path), model)[1]
    for module, name in ((torch, "get_num_threads"), (base_sides, "installed_version")):
        monkeypatch.setattr(module, name, lambda *_: 7)
        assert asked(task, model)[1], name


def test_where_the_weights_are_not_known_nothing_is_kept(model, tmp_path, cache):
    for _ in range(2):
        assert asked(task_of(model, tmp_path), model, None)[1]
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["", "{}", "[]", "digit"])
def test_a_damaged_entry_is_made_anew(model, tmp_path, cache, damage):
    first, _ = asked(task_of(model, tmp_path), model)
    (entry,) = cache.iterdir()
    content = json.loads(entry.read_text())
    content["scores"]["scores"]["loss"]["sums"][0][0] += 1.0
    entry.write_text(json.dumps(content) if damage == "digit" else damage)
    again, was_asked = asked(task_of(model, tmp_path), model)
    assert was_asked and again.scores == first.scores
    assert not asked(task_of(model, tmp_path), model)[1]


def test_what_nobody_asked_for_in_a_month_goes(model, tmp_path, cache):
    asked(task_of(model, tmp_path), model)
    (entry,) = cache.iterdir()
    os.utime(entry, (0, 0))
    asked(task_of(model, tmp_path, rows=6), model)
    assert not entry.exists() and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(model, tmp_path, cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    assert asked(task_of(model, tmp_path), model)[1]
