"""A run is foreseen: what cannot fit is not begun, what was forecast is written down, and memory that runs out is told
with settings that are forecast to do.
"""

from __future__ import annotations

import json

import pytest
import torch

import rankwise
from rankwise.commands.report import report
from rankwise.commands.train import train
from rankwise.config.reading import with_settings
from rankwise.config.training import TrainingConfig
from rankwise.errors import ResourceError
from rankwise.planning.devices import this_processor
from rankwise.reporting.provenance import forecast_and_fact
from rankwise.runs.records import StatusMessage, WarningMessage
from rankwise.training import preflight as foresight
from rankwise.training import step


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rankwise.Experiment(
        model=str(tiny_folder), data="rows.jsonl", training=TrainingConfig(steps=3, batch_size=4), run="small"
    )


def with_room(monkeypatch, room: int):
    device = this_processor().with_memory(room)
    monkeypatch.setattr(foresight, "_device", lambda experiment: device)


def test_what_was_forecast_is_written_beside_what_it_took(small):
    trained = train(small.model_copy(update={"data": small.data.model_copy(update={"held_out": 3})}))
    forecast = trained.manifest.forecast
    assert forecast is not None and trained.summary()["forecast"] == forecast.model_dump()
    results = trained.manifest.results
    assert forecast.trainable_parameters == results.trainable_parameters
    assert forecast.adapter_bytes == results.adapter_bytes and forecast.steps == results.steps == 3
    found = forecast_and_fact(trained.manifest)
    assert found["peak_bytes"]["forecast"] == forecast.peak_bytes
    assert found["peak_bytes"]["off"] == pytest.approx(forecast.peak_bytes / results.peak_rss_bytes - 1)
    assert 0 < forecast.share_of_steps < 1 and results.validation_loss_after is not None  # validation takes the rest
    assert found["seconds"]["forecast"] == forecast.share_of_steps * forecast.seconds
    page = report("small")
    assert "Forecast and actual values" in page.page.read_text()
    cost = json.loads(page.data.read_text())["cost"]
    assert cost["forecast"]["seconds"]["fact"] == results.train_seconds


def test_what_cannot_fit_is_not_begun_unless_told_otherwise(small, monkeypatch):
    with_room(monkeypatch, 10_000)
    with pytest.raises(ResourceError, match=r"was not started.*smaller model[^$]*--force-memory") as caught:
        rankwise.train(small)
    assert caught.value.exit_code == 4
    heard: list[object] = []
    trained = rankwise.train(small, callback=heard.append, force_memory=True)
    assert trained.manifest.status == "finished"
    assert any(isinstance(one, WarningMessage) and "may run out of memory" in one.text for one in heard)


def test_what_may_fit_is_begun_with_a_word(small, monkeypatch):
    made = foresight.foresee(with_settings(small.explicit))
    assert made is not None
    with_room(monkeypatch, round(0.95 * made.least))
    heard: list[object] = []
    rankwise.train(small, callback=heard.append)
    assert any(isinstance(one, WarningMessage) and "may run out of memory" in one.text for one in heard)


def test_what_would_fit_is_offered_where_the_run_is_refused(small, monkeypatch):
    full = small.model_copy(update={
        "adapter": rankwise.FullConfig(), "training": TrainingConfig(steps=3, batch_size=4, activation_checkpointing=0)
    })  # fmt: skip
    made = foresight.foresee(with_settings(full.explicit))
    assert made is not None
    monkeypatch.setattr(foresight, "CERTAIN", 1.0)
    with_room(monkeypatch, made.least - 1000)
    with pytest.raises(ResourceError, match=r"forecast to fit:\n  --set "):
        rankwise.train(full)


def test_memory_that_runs_out_is_told_with_what_is_forecast_to_do(small, monkeypatch):
    def asks_for_too_much(*given):
        return torch.empty(2**58, dtype=torch.uint8)

    monkeypatch.setattr(step, "_backward", asks_for_too_much)
    monkeypatch.setattr(foresight, "SMALLER", 0.999)
    with pytest.raises(ResourceError, match=r"out of memory while training[^$]*--auto-batch") as caught:
        rankwise.train(small)
    assert caught.value.exit_code == 4


def test_a_model_that_plans_do_not_know_is_trained_without_a_forecast(small, monkeypatch):
    monkeypatch.setattr(foresight, "plan", _unknown)
    trained = rankwise.train(small)
    assert trained.manifest.forecast is None and forecast_and_fact(trained.manifest) is None


def _unknown(asked, on):
    raise rankwise.RankwiseError("an architecture of its own")


@pytest.mark.parametrize(
    "spec", [rankwise.LoraConfig(rank=3), rankwise.AdaLoraConfig(budget="4"), rankwise.FullConfig()]
)
def test_what_is_planned_is_what_was_asked_for_however_it_was_made(small, spec):
    asked = small.model_copy(update={"adapter": spec})
    made = foresight.foresee(with_settings(asked.explicit))
    assert made is not None and made.plan.config.adapter == spec
    assert rankwise.Experiment.model_validate({**small.model_dump(), "adapter": spec}).adapter == spec


def test_a_card_that_torch_does_not_use_decides_nothing(small, monkeypatch):
    from rankwise.planning import devices as planning

    monkeypatch.setattr(planning, "graphics_cards", lambda: pytest.fail("nobody asks for cards"))
    made = foresight.foresee(with_settings(small.explicit))
    assert made is not None and made.plan.device.kind == "processor"


def test_a_template_that_breaks_hinders_no_training_that_does_not_render_it(small, tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text("{{ 1/0 }}")
    (tmp_path / "texts.jsonl").write_text('{"text": "one two three four"}\n' * 8)
    model, texts = rankwise.ModelConfig(name=str(folder)), rankwise.DataConfig(path="texts.jsonl")
    assert (
        foresight.foresee(with_settings(small.model_copy(update={"model": model, "data": texts}).explicit)) is not None
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n' * 8)
    assert foresight.foresee(with_settings(small.model_copy(update={"model": model}).explicit)) is not None


def test_whatever_goes_wrong_in_a_plan_is_said_and_the_run_goes_on(small, monkeypatch):
    def broken(asked, **how):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(foresight, "plan", broken)
    heard: list[object] = []
    assert rankwise.train(small, callback=heard.append).manifest.status == "finished"
    assert any(isinstance(one, StatusMessage) and "no forecast: by nothing" in one.text for one in heard)


def test_a_run_that_takes_less_at_once_by_itself_needs_less(small):
    usual, helps_itself = (
        foresight.foresee(
            with_settings(
                small.model_copy(update={"training": TrainingConfig(steps=3, batch_size=12, auto_batch=auto)}).explicit
            )
        )
        for auto in (False, True)
    )
    assert usual is not None and helps_itself is not None and helps_itself.least < usual.least


def test_what_the_process_holds_already_counts_as_room(small):
    made = foresight.foresee(with_settings(small.explicit))
    assert made is not None and made.plan.device.usable > this_processor().usable + 100_000_000
