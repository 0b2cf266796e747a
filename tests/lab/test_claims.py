"""A cell of the claims is the training that `rankwise train` does; what is finished is kept; claims are answered."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from functools import cache

import claims_runs
import pytest
from claims_cells import Cells
from claims_peaks import Peaks
from claims_runs import Cell, ClaimTask, experiment_of
from claims_study import Plan, claims

import rankwise
from rankwise.base.loading import load
from rankwise.commands.demo import demo_rows, write_rows
from rankwise.errors import RunError, TrainingError
from rankwise.evaluation.text import text_for
from rankwise.runs.records import silent

PLAN = Plan(
    {"lora": (0.01,), "adalora": (0.02,), "full": (0.001, 0.004)}, (0, 1), {"orders": 12}, blocks=2, most_rates=3
)
WHOLE = replace(PLAN, small=(("orders", 8),))
LONGEST = 256


def task_in(folder):
    trained, measured = folder / "trained.jsonl", folder / "measured.jsonl"
    training, testing = demo_rows()
    write_rows(trained, training[:16])
    write_rows(measured, testing[:6])
    return ClaimTask("orders", trained, measured, outside=measured, batch=4, longest=LONGEST)


@pytest.fixture
def task(tmp_path):
    return task_in(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def no_peak_is_measured():
    """Each costs a process that trains."""
    facts = {"trainable_parameters": 1e5, "peak_rss_bytes": 1e9, "adapter_bytes": 4e5}
    found = {"lora": facts, "full": {name: 3 * value for name, value in facts.items()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peaks, "_measured", lambda peaks, method: found[method])
        yield


@pytest.fixture(scope="module")
def study(no_peak_is_measured, tmp_path_factory, tiny_folder):
    """The folder of a study that has measured everything, and what it found."""
    folder = tmp_path_factory.mktemp("study")
    with contextlib.chdir(folder):
        yield folder, claims(folder, str(tiny_folder), tasks=[task_in(folder)], plan=WHOLE, mode="full")


@cache
def opened(model):
    """The model, which cells do not train, and a text for it."""
    loaded = load(str(model))
    return loaded, text_for(loaded, blocks=2, length=64)


def cells(task, folder, model):
    loaded, text = opened(model)
    return Cells([task], loaded, folder / "cells.jsonl", text, silent, None)


@pytest.mark.parametrize(("method", "rate"), [("lora", 0.01), ("full", 0.002)])
def test_a_cell_is_a_training(task, tmp_path, tiny_folder, monkeypatch, method, rate):
    monkeypatch.chdir(tmp_path)
    cell = Cell("orders", method, 12, rate, 0)
    found = cells(task, tmp_path, tiny_folder).result(cell)
    trained = rankwise.train(experiment_of(cell, task, str(tiny_folder)))
    results = trained.manifest.results
    nats, tokens = (sum(column) for column in zip(*found.choosing, *found.rows, strict=True))
    assert nats / tokens == pytest.approx(results.validation_loss_after, rel=1e-4)
    base, *_, last = found.points
    assert last.loss < base.loss - 0.01
    assert base.kl == 0 and all(kl == 0 for kl, _ in base.blocks), "before training it is its base"
    assert last.kl > 0 and [point.step for point in found.points] == [0, 1, 2, 3]


def test_adalora_counts_once_its_ranks_are_decided(task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cells(task, tmp_path, tiny_folder).result(Cell("orders", "adalora", 16, 0.02, 0))
    assert [point.whole for point in found.points] == [True, False, False, True, True]


def test_a_rate_that_is_too_high_is_a_result_and_not_the_end(study, task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(study[0] / "cells.jsonl", tmp_path)
    plan = replace(PLAN, rates={**PLAN.rates, "full": (0.001, 10.0)}, seeds=(0,), most_rates=2)

    class Failing(claims_runs.Trainer):
        def run(self):
            if self.state.rate(0) > 1:
                raise TrainingError("step 1 of 3: the loss is nan")
            return super().run()

    monkeypatch.setattr(claims_runs, "Trainer", Failing)
    found = claims(tmp_path, str(tiny_folder), tasks=[task], plan=plan)
    failed = [row["cell"]["rate"] for row in rows_in(tmp_path) if row["result"]["failed"]]
    assert failed == [10.0]
    assert found.facts["rates"]["orders 12 full"] == "0.001 of 0.001, 10, at the end of which it is"


def rows_in(folder):
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def test_a_cell_of_other_conditions_is_not_taken_for_it(task, tmp_path, tiny_folder, monkeypatch):
    """What a number depends on is another model, another text, other rows: here other rows to measure with."""
    monkeypatch.chdir(tmp_path)
    cell = Cell("orders", "lora", 12, 0.01, 0)
    cells(task, tmp_path, tiny_folder).result(cell)
    assert cell.key in cells(task, tmp_path, tiny_folder).done
    other = cells(replace(task, batch=2), tmp_path, tiny_folder)
    assert cell.key not in other.done, "another batch size is another training"
    write_rows(task.measured, demo_rows()[1][6:14])
    assert cell.key not in cells(task, tmp_path, tiny_folder).done


def test_a_peak_of_another_number_format_is_not_taken_for_it(task, tmp_path, tiny_folder, monkeypatch):
    """Processors of one name differ in whether they compute bfloat16, and so in what LoRA's base takes."""
    facts = load(str(tiny_folder)).facts
    one, other = (
        Peaks(tmp_path / "peaks.json", task, str(tiny_folder), facts.model_copy(update={"dtype": dtype}), silent)
        for dtype in ("float32", "bfloat16")
    )
    measured: list[str] = []
    monkeypatch.setattr(Peaks, "_measured", lambda peaks, method: measured.append(peaks.base.dtype) or {"bytes": 1.0})
    for peaks in (one, one, other):
        peaks.found(None)
    assert measured == ["float32", "float32", "bfloat16", "bfloat16"]


@pytest.mark.parametrize("damage", ["garbage", '{"conditions": 1}'])
def test_a_damaged_file_of_peaks_is_measured_again(task, tmp_path, tiny_folder, monkeypatch, damage):
    peaks = Peaks(tmp_path / "peaks.json", task, str(tiny_folder), load(str(tiny_folder)).facts, silent)
    peaks.file.write_text(damage)
    monkeypatch.setattr(Peaks, "_measured", lambda *_: {"bytes": 1.0})
    assert peaks.found(None) == {"lora": {"bytes": 1.0}, "full": {"bytes": 1.0}}


@pytest.mark.parametrize("damage", ["5", "{}", '{"cell": {"task": "orders", "new": 1}}'])
def test_a_line_that_is_no_cell_is_told_with_its_number(task, tmp_path, tiny_folder, damage):
    (tmp_path / "cells.jsonl").write_text(damage + "\n")
    with pytest.raises(RunError, match=r"cells.jsonl:1: is no finished cell"):
        cells(task, tmp_path, tiny_folder)


def test_a_line_that_was_torn_is_no_cell(task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Cell("orders", "lora", 12, 0.01, 0), Cell("orders", "lora", 12, 0.02, 0)
    for cell in (first, second):
        cells(task, tmp_path, tiny_folder).result(cell)
    file = tmp_path / "cells.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    again = cells(task, tmp_path, tiny_folder)
    assert set(again.done) == {first.key}
    again.result(second)
    assert set(cells(task, tmp_path, tiny_folder).done) == {first.key, second.key}


def test_every_claim_is_answered_and_a_stopped_one_goes_on(study, task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured, found = study
    begun = claims(tmp_path, str(tiny_folder), tasks=[task], plan=WHOLE, mode="full", minutes=0)
    assert {claim.why for claim in begun.claims} == {"not measured yet; the same command goes on"}
    assert {claim.claim[:3] for claim in found.claims} == {f"({number})" for number in range(1, 8)}
    assert all(claim.answer in ("holds", "does not hold", "cannot tell") for claim in found.claims)
    assert not any("not measured" in (claim.why or "") for claim in found.claims)
    assert json.loads((measured / "claims.json").read_text())["claims"] == [one.model_dump() for one in found.claims]
    shutil.copy(measured / "cells.jsonl", tmp_path)
    assert claims(tmp_path, str(tiny_folder), tasks=[task], plan=WHOLE, mode="full").claims == found.claims
    assert rows_in(tmp_path) == rows_in(measured), "nothing was trained again"
    assert sorted(found.facts["rates"]) == [
        "orders 12 adalora", "orders 12 full", "orders 12 lora", "orders 8 full", "orders 8 lora",
    ]  # fmt: skip


def test_a_rate_at_the_end_of_its_list_is_not_the_best_yet(study):
    asked = {"task": "orders", "method": "full", "rows": 12, "seed": 0}
    tried = {row["cell"]["rate"]: sum(nats for nats, _ in row["result"]["choosing"]) for row in rows_in(study[0])
             if asked.items() <= row["cell"].items()}  # fmt: skip
    best = min(tried, key=lambda rate: tried[rate])
    assert len(tried) == PLAN.most_rates or min(tried) < best < max(tried)
