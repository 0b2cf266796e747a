"""A loss that stays far above its past ends a run, or sends it back with half the rate; nothing else does.

The watch is a function of the recorded losses, so laws about it need no training. Going back is tried on a tiny model
whose loss a test lifts while the learning rate is too high.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest

import rankwise
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.errors import TrainingError
from rankwise.objectives.objective import Score
from rankwise.runs.directory import RunDirectory
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import LossRecord, StepRecord
from rankwise.runs.row_facts import TargetFacts
from rankwise.training import trainer, validation
from rankwise.training.extras import tuning
from rankwise.training.hooks import LossWatch
from rankwise.training.state import Diverged

STEPS, RATE = 60, 0.01
ANSWERS, HEAD = Score().far_above, Score.of_classes(TargetFacts()).far_above


def step(number, loss):
    return StepRecord(
        step=number, steps=1000, epoch=0.1, loss=loss, learning_rate=0.1, gradient_norm=1.0, tokens=9, loss_tokens=9,
        seconds=1.0, resident_bytes=1,
    )  # fmt: skip


def stopped_at(losses, factor=ANSWERS, rows=16, before=None, tokens=None):
    """The step after which the watch ends a run with these losses, and where it began to diverge."""
    watch = LossWatch(factor, rows, 1e-3, tokens)
    if before is not None:
        watch.on_event(LossRecord(step=0, loss=before, loss_tokens=9, sequences=9))
    for number, loss in enumerate(losses, start=1):
        watch.on_event(step(number, loss))
        try:
            watch.after_step(None)
        except Diverged as error:
            return number, error.begun
    return None


def noisy(level, count, spread, seed=0):
    chance = random.Random(seed)
    return [level * chance.lognormvariate(0, spread) for _ in range(count)]


FALLING = [3.0 * 0.9**n + 0.5 for n in range(50)]
QUIET = {
    "falls quickly": FALLING,
    "a spike of seven steps": [*FALLING, *[30.0] * 7, *[0.5] * 40],
    "a spike every tenth step": [40.0 if n % 10 == 0 else 1.0 for n in range(1, 300)],
    "rows of one, from an easy one": [0.01, *noisy(2.0, 300, 0.8)],
    "close to zero": noisy(1e-3, 300, 2.0),
    "from near zero to a nat": [0.01] * 40 + [0.9] * 100,
    "rises back to where it began": [*FALLING, *[3.5] * 100],
}


@pytest.mark.parametrize("name", QUIET)
def test_what_comes_back_or_is_only_noisy_is_no_divergence(name):
    assert stopped_at(QUIET[name], rows=1 if "one" in name else 16) is None


def test_a_head_may_overshoot_for_long():
    """As that of DINOv2 did on CIFAR-10 at a rate of 0.05, which ended at 0.65."""
    # the first losses of MiniLM on SST-2 with LoRA at 0.41, a thousand times `auto`
    thousandfold = [0.69, 0.7, 0.84, 91.52, 84.82, 7.89, 78.36, 89.13, 89.78, 55.92, 10.66, 39.2, 20.89, 5.68, 35.88]
    assert stopped_at(thousandfold, HEAD, before=0.69) is not None
    overshooting = [2.8, 2.7, *noisy(14.0, 300, 0.4), *noisy(0.7, 100, 0.3)]
    assert stopped_at(overshooting, HEAD) is None


@pytest.mark.parametrize(("quiet", "rise"), [(0, 1), (1, 8), (5, 1), (30, 8), (200, 1)])
def test_a_loss_that_stays_far_above_its_past_is_seen_within_twenty_steps(quiet, rise):
    rising = [2.0 * (30 / 2.0) ** (n / rise) for n in range(1, rise + 1)]
    losses = [2.0, *[1.5] * quiet, *rising, *noisy(30.0, 40, 0.2)]
    crossed = next(number for number, loss in enumerate(losses, start=1) if loss > ANSWERS * 2.0 + 1)
    number, begun = stopped_at(losses)
    assert begun == crossed and number - crossed < 20


# the losses of SmolLM2-135M on E2E, all weights at 0.1, a thousand times `auto`, in steps of four rows
THOUSANDFOLD = [2.09, 33.7, 39.6, 33.5, 48.6, 83.1, 66.2, 101.9, 60.0, 55.3, 64.3, 44.5, 36.4, 33.0, 25.9, 28.9, 21.2]


def test_harm_done_by_the_first_steps_is_seen_by_what_knowing_nothing_costs():
    assert stopped_at(THOUSANDFOLD, rows=4) is None
    assert stopped_at(THOUSANDFOLD, rows=4, tokens=49_152) == (9, 2)
    assert stopped_at([2.1, *[12.0] * 20], rows=4, tokens=49_152) == (9, 2)


@pytest.mark.parametrize("name", QUIET)
def test_a_number_of_tokens_raises_no_false_alarm(name):
    assert stopped_at(QUIET[name], rows=1 if "one" in name else 16, tokens=49_152) is None


def test_a_base_that_is_worse_than_one_that_knows_nothing_may_stay_so_for_a_while():
    assert stopped_at([12.0, *noisy(12.0, 40, 0.2), *FALLING], rows=4, tokens=49_152) is None
    assert stopped_at(noisy(12.0, 40, 0.2), rows=4, before=12.0, tokens=300) is None


def test_few_rows_without_a_validation_tell_little():
    losses = [0.01, *noisy(2.0, 30, 0.1)]
    assert stopped_at(losses, rows=1) is None and stopped_at(losses, rows=1, before=2.0) is None
    assert stopped_at(losses, rows=16) is not None  # that sixteen rows have one loss and all others another is no noise


@pytest.fixture
def workplace(tmp_path, one_block_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("base").symlink_to(one_block_folder)


def experiment(on_divergence, method="lora", **more):
    adapter = LoraConfig(rank=2, targets=("q_proj",), dropout=0.2)
    if method == "adalora":
        adapter = AdaLoraConfig(budget=2, targets=("q_proj", "v_proj"))
    settings = {"checkpoint_steps": 4, "learning_rate": RATE, **more}
    training = TrainingConfig(steps=STEPS, batch_size=2, backend="eager", on_divergence=on_divergence, **settings)
    data = {"path": "rows.jsonl", "held_out": 2}
    return rankwise.Experiment(model="./base", data=data, run="r", adapter=adapter, training=training)


def lifted(monkeypatch, first, above=RATE / 2):
    """From step `first` on, losses are high while the highest rate of the schedule is more than `above`."""
    real = trainer.optimizer_step

    def optimizer_step(state, *rest):
        record, ranks = real(state, *rest)
        highest = max(state.rate(step) for step in range(STEPS))
        high = record.step >= first and highest > above * 1.01
        return dataclasses.replace(record, loss=record.loss + 1000.0 * high), ranks

    monkeypatch.setattr(trainer, "optimizer_step", optimizer_step)


def outcome():
    """The bytes of the adapter, and all records without what the clock and the memory say."""
    rows = read_metrics_log(RunDirectory.named("r").metrics)
    passing = ("seconds", "tokens_per_second", "resident_bytes")
    records = [{key: value for key, value in row.items() if key not in passing} for row in rows]
    return Path("runs/r/adapter/adapter_model.safetensors").read_bytes(), records


def test_a_run_stops_before_it_saves_what_diverged_and_says_what_to_do(workplace, monkeypatch):
    lifted(monkeypatch, first=41)
    with pytest.raises(TrainingError) as caught:
        rankwise.train(experiment("stop"))
    message = str(caught.value)
    assert "after step 48 of 60" in message and "Try --learning-rate" in message and "from step 20 with" not in message
    run = RunDirectory.named("r")
    assert run.steps_saved == [36, 40] and run.manifest().status == "failed" and caught.value.exit_code == 1
    rankwise.train(experiment("back-off"), resume=True)  # another value, as the message says
    assert [one.begun for one in run.manifest().back_offs] == [41]


def test_a_run_stops_where_its_first_steps_did_the_harm(workplace, monkeypatch):
    """Without a validation, eight steps of two rows say what is usual, and all but the first are harmed."""
    lifted(monkeypatch, first=2)
    alone = experiment("stop").model_copy(update={"data": DataConfig(path="rows.jsonl")})
    with pytest.raises(TrainingError, match="after step 9 of 60, training has diverged"):
        rankwise.train(alone)


@pytest.mark.parametrize(("method", "first", "kills"), [("lora", 3, [22]), ("adalora", 41, [46, 54, 90])])
def test_a_run_goes_back_and_a_killed_one_ends_with_the_same_bytes(workplace, monkeypatch, method, first, kills):
    """Killed while the loss is high, just after the run went back, and long after."""
    given = experiment("back-off", method)
    lifted(monkeypatch, first, above=RATE / 4)
    rankwise.train(given)
    manifest, whole = RunDirectory.named("r").manifest(), outcome()
    to = 16 if first == 41 else 0
    assert [(one.begun, one.to) for one in manifest.back_offs] == [(first, to)] * 2
    assert [one.learning_rate for one in manifest.back_offs] == [RATE / 2, RATE / 4]
    assert sum(row["kind"] == "back-off" for row in whole[1]) == 2 and all(
        "went back" in one for one in manifest.warnings
    )
    assert [row["step"] for row in whole[1] if row["kind"] == "step"] == list(range(1, STEPS + 1))
    for kill in kills:
        stopped_after(monkeypatch, given, kill)
        assert outcome() == whole, kill


def stopped_after(monkeypatch, given, count):
    """Train, stop after so many steps have been made, and go on."""
    shutil.rmtree("runs", ignore_errors=True)
    made = iter(range(count))

    def stop():
        if next(made, None) is None:
            monkeypatch.setattr(trainer, "raise_if_requested", lambda: None)
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "raise_if_requested", stop)
    with pytest.raises(KeyboardInterrupt):
        rankwise.train(given)
    saved = bool(RunDirectory.named("r").steps_saved)
    rankwise.train(given, resume=saved, restart=not saved)


def test_a_validation_loss_that_is_no_number_sends_a_run_back_too(workplace, monkeypatch):
    """Rows of validation may be longer than all others, so that only there the numbers overflow."""
    real, losses = validation.sum_loss, iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(validation, "sum_loss", lambda *given: (next(losses, 1.0), real(*given)[1]))
    rankwise.train(experiment("back-off").model_copy(update={"validation": ValidationConfig(steps=30)}))
    assert [(one.begun, one.to) for one in RunDirectory.named("r").manifest().back_offs] == [(60, 40)]


def test_a_run_that_goes_back_to_its_beginning_keeps_the_rate_that_trials_chose(workplace, monkeypatch):
    made, real = [], tuning.tune
    monkeypatch.setattr(tuning, "tune", lambda *given: made.append(real(*given)) or made[-1])
    lifted(monkeypatch, first=3, above=RATE * 1e-9)
    with pytest.raises(TrainingError, match="went back 3 times"):
        rankwise.train(experiment("back-off", learning_rate="tune"))
    assert len(made) == 1 and RunDirectory.named("r").manifest().tuning == made[0]


def test_a_run_gives_up_after_three_times(workplace, monkeypatch):
    lifted(monkeypatch, first=3, above=0.0)
    with pytest.raises(TrainingError, match=r"It went back 3 times, the last time with the learning rate 0\.0013"):
        rankwise.train(experiment("back-off"))
    warnings = [one for one in RunDirectory.named("r").manifest().warnings if "went back to" in one]
    assert len(warnings) == 3, "each is told with its own learning rate"


def test_without_divergence_the_setting_changes_no_byte(workplace):
    rankwise.train(experiment("stop"))
    whole = outcome()
    shutil.rmtree("runs", ignore_errors=True)
    rankwise.train(experiment("back-off"))
    assert outcome() == whole
