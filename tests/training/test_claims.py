"""A cell of the claims is the training that `rankwise train` does; what is finished is kept; claims are answered."""

from __future__ import annotations

import json

import pytest

import rankwise
from rankwise.data.orders import TEST, TRAIN, order_examples
from rankwise.evaluation.text import text_for
from rankwise.models.loading import load
from rankwise.run.records import silent
from rankwise.verbs.claim_cells import Cell, Cells, ClaimTask, experiment_of
from rankwise.verbs.claims import Plan, claims
from rankwise.verbs.demo import write_rows

PLAN = Plan({"lora": (0.01,), "adalora": (0.02,), "full": (0.001, 0.004)}, (0, 1), {"orders": 12}, blocks=2)
LONGEST = 256


@pytest.fixture
def task(tmp_path):
    trained, measured = tmp_path / "trained.jsonl", tmp_path / "measured.jsonl"
    write_rows(trained, order_examples(16, TRAIN, 0))
    write_rows(measured, order_examples(6, TEST, 1))
    return ClaimTask("orders", trained, measured, outside=measured, batch=4, longest=LONGEST)


def cells(task, folder, model):
    text = text_for(load(str(model)), blocks=2, length=64)
    return Cells([task], load(str(model)), folder / "cells.jsonl", text, silent, None)


@pytest.mark.parametrize(("method", "rate"), [("lora", 0.01), ("full", 0.002)])
def test_a_cell_is_a_training(task, tmp_path, tiny_folder, monkeypatch, method, rate):
    monkeypatch.chdir(tmp_path)
    cell = Cell("orders", method, 12, rate, 0)
    found = cells(task, tmp_path, tiny_folder).result(cell)
    trained = rankwise.train(experiment_of(cell, task, str(tiny_folder)))
    results = trained.manifest.results
    nats, tokens = (sum(column) for column in zip(*found.rows, strict=True))
    assert nats / tokens == pytest.approx(found.points[-1].loss, rel=1e-3)
    both = (found.choosing + found.points[-1].loss) / 2  # of halves whose tokens are about as many
    assert both == pytest.approx(results.held_out_loss_after, rel=0.02)
    assert found.points[-1].loss < found.points[0].loss - 0.01
    assert found.trainable == results.trainable_parameters
    assert (found.points[0].kl, found.points[0].delta_nll) == (0, 0)
    assert found.points[-1].kl > 0


def test_what_is_finished_is_not_run_again(task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = Cell("orders", "adalora", 12, 0.02, 1)
    first = cells(task, tmp_path, tiny_folder).result(cell)
    again = cells(task, tmp_path, tiny_folder)
    monkeypatch.setattr(again, "_run", lambda cell: pytest.fail("it was run again"))
    assert again.result(cell) == first


def test_a_cell_of_other_conditions_is_not_taken_for_it(task, tmp_path, tiny_folder, monkeypatch):
    """What a number depends on is another model, another text, other rows: here other rows to measure with."""
    monkeypatch.chdir(tmp_path)
    cell = Cell("orders", "lora", 12, 0.01, 0)
    cells(task, tmp_path, tiny_folder).result(cell)
    assert cell.key in cells(task, tmp_path, tiny_folder).done
    write_rows(task.measured, order_examples(8, TEST, 2))
    assert cell.key not in cells(task, tmp_path, tiny_folder).done


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


def test_every_claim_is_answered_and_a_stopped_one_goes_on(task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Plan(PLAN.rates, PLAN.seeds, PLAN.rows, small=(("orders", 8),), blocks=2)
    begun = claims(tmp_path, str(tiny_folder), tasks=[task], plan=plan, mode="full", minutes=0)
    assert {claim.why for claim in begun.claims} == {"not measured yet; the same command goes on"}
    found = claims(tmp_path, str(tiny_folder), tasks=[task], plan=plan, mode="full")
    assert {claim.claim[:3] for claim in found.claims} == {f"({number})" for number in range(1, 8)}
    assert all(claim.answer in ("holds", "does not hold", "cannot tell") for claim in found.claims)
    assert not any("not measured" in (claim.why or "") for claim in found.claims)
    assert json.loads((tmp_path / "claims.json").read_text())["claims"] == [one.model_dump() for one in found.claims]
    lines = (tmp_path / "cells.jsonl").read_text()
    assert claims(tmp_path, str(tiny_folder), tasks=[task], plan=plan, mode="full").claims == found.claims
    assert (tmp_path / "cells.jsonl").read_text() == lines
    assert sorted(found.facts["rates"]) == [
        "orders 12 adalora", "orders 12 full", "orders 12 lora", "orders 8 full", "orders 8 lora",
    ]  # fmt: skip


def test_a_rate_at_the_end_of_its_list_is_not_the_best_yet(task, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claims(tmp_path, str(tiny_folder), tasks=[task], plan=PLAN)
    cells_done = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    tried = {row["cell"]["rate"]: row["result"]["choosing"] for row in cells_done
             if row["cell"]["method"] == "full" and row["cell"]["seed"] == 0}  # fmt: skip
    best = min(tried, key=lambda rate: tried[rate])
    assert len(tried) == 5 or min(tried) < best < max(tried)
