"""--tune: trials leave no trace but the rate that they chose, cost what they may, and choose well where it is plain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.library import rows
from kit.sampling import draws
from rankwise.base.loading import load
from rankwise.cli.main import app
from rankwise.commands.train import Trained, train
from rankwise.config.experiment import Experiment
from rankwise.errors import Interrupted
from rankwise.methods.method import Setup
from rankwise.methods.registry import method_of
from rankwise.objectives.registry import decided, objective_of
from rankwise.planning import tuning as planned_trials
from rankwise.planning.tuning import TOO_COSTLY, Stage, TrialPlan, most_cost
from rankwise.rows.preparing import prepare
from rankwise.runs.records import Callback, StepRecord, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.training.extras import tuning as tuning_of_rates
from rankwise.training.extras.tuning import WIDEST, Trials, ceiling_of, choose, set_aside
from rankwise.training.workload import Presentation

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 2}, "adalora": {"method": "adalora", "budget": "2"},
    "eva": {"method": "lora", "rank": 2, "start": "eva"}, "full": {"method": "full"},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, one_block_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "rows.jsonl").write_text(rows(40))
    (folder / "apart.jsonl").write_text(rows(12, 60))
    (folder / "tiny").symlink_to(one_block_folder, target_is_directory=True)
    encoder_folder(folder / "tiny-bert")
    write_rows(folder / "labels.jsonl", labelled(48))
    return folder


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 50 steps, which are too short for trials, have some here, so that the tests are short."""
    monkeypatch.chdir(home)
    for name, value in {"FIXED": 0.0, "LEAST_LAST": 2, "SHARE": 0.4}.items():
        monkeypatch.setattr(planned_trials, name, value)


def experiment(run: str, rate: float | str = "tune", **changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "model": {"name": "tiny", "dtype": "float32"}, "data": "rows.jsonl", "adapter": METHODS["lora"],
        "training": {"steps": 50, "batch_size": 8, "learning_rate": rate, "backend": "eager"},
    }  # fmt: skip
    return Experiment(run=run, **{**settings, **changes})


def bits(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}


LINES: list[str] = []
"""What the run of `tuned_by("lora")` said."""


@cache
def tuned_by(method: str) -> Trained:
    """Trained once for all tests of this file."""
    return trained_by(method, "tuned", "tune", lambda event: LINES.append(getattr(event, "text", "")))


def trained_by(method: str, run: str, rate: float | str, callback: Callback = silent) -> Trained:
    steps = 100 if method == "full" else 50  # trials of every weight cost more
    training = {"steps": steps, "batch_size": 8, "learning_rate": rate, "backend": "eager"}
    return train(experiment(f"{method}-{run}", adapter=METHODS[method], training=training), callback=callback)


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_run_has_the_bytes_of_a_run_at_the_rate_that_was_chosen(method):
    tuned = tuned_by(method)
    tuning = tuned.manifest.tuning
    assert tuning is not None and len(tuning.trials) >= 5
    assert tuned.manifest.learning_rate == tuning.learning_rate
    given = trained_by(method, "given", tuning.learning_rate)
    assert bits(tuned.result) == bits(given.result) != {}
    assert given.manifest.tuning is None
    files = [sorted(str(file.relative_to(one.run.folder)) for file in one.run.folder.rglob("*"))
             for one in (tuned, given)]  # fmt: skip
    assert files[0] == files[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_leaves_the_base_bit_for_bit(method):
    trials = trials_of(experiment("none", adapter=METHODS[method]))
    module, random = trials.model.module, torch.get_rng_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    kinds = [type(one) for one in module.modules()]
    learning = [one.requires_grad for one in module.parameters()]
    first, second = trials.run(1e-2, 4, 2), trials.run(1e-2, 4, 2)
    assert math.isfinite(first.loss) and first.loss == second.loss and first.losses == second.losses
    assert trials.run(3e-2, 4, 2).loss != first.loss
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert kinds == [type(one) for one in module.modules()]
    assert learning == [one.requires_grad for one in module.parameters()]
    assert torch.equal(random, torch.get_rng_state())


def trials_of(given: Experiment) -> Trials:
    given = decided(given, silent)
    objective = objective_of(given.objective, given.rows, silent)
    model, method = load(given.base, silent, objective.kind), method_of(given.adapter)
    prepared = prepare(given.data, objective.rows.encoding(model), silent)
    apart, _ = set_aside(prepared, 16, 0)
    config = given.training.resolved(len(prepared.trained), model.width, given.auto_rate)
    setup = Setup(
        config, 50, prepared.trained_rows, heads=objective.heads(model), load=partial(load, kind=objective.kind),
        callback=silent,
    )  # fmt: skip
    return Trials(
        model=model, method=method, objective=objective, setup=setup, adapter=given.adapter,
        presentation=Presentation(given.data.packing, given.images), prepared=apart,
    )  # fmt: skip


def test_trials_that_learn_nothing_leave_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning_of_rates, "LEARNED", 0.99)
    tuning = train(experiment("idle"), restart=True).manifest.tuning
    assert tuning is not None and tuning.learning_rate == tuning.default and tuning.trials
    assert "learned too little" in tuning.why and tuning.loss_before is not None


def test_trials_that_only_do_harm_end_after_the_first_stage(monkeypatch: pytest.MonkeyPatch):
    real = Trials.run

    def run(trials: Trials, *given: Any, **named: Any) -> Any:
        trial = real(trials, *given, **named)
        return trial if named.get("with_loss", True) else dataclasses.replace(trial, loss=0.0)

    monkeypatch.setattr(Trials, "run", run)
    tuning = train(experiment("harm"), restart=True).manifest.tuning
    assert tuning is not None and tuning.learning_rate == tuning.default and "learned too little" in tuning.why
    assert {one.stage for one in tuning.trials} == {0, 1}
    plan = TrialPlan.of(50, 8, 20.0, 4)
    assert plan is not None and tuning.steps == plan.cost_of(one.steps for one in tuning.trials) < plan.cost


def test_a_first_stage_that_learned_nothing_is_no_reason_for_a_second():
    tried: list[Stage] = []

    def measured(stage: Stage, x: float) -> float:
        tried.append(stage)
        return 2 + 0.1 * x

    stages = Stage(4, 7), Stage(2, 18)
    assert choose(stages, math.inf, measured, before=1.7) is None and tried == [stages[0]] * 4  # at least 1.7
    assert choose(stages, math.inf, measured, before=1.8) is not None and tried[-1] == stages[1]


def test_a_rate_at_which_training_diverges_has_no_loss():
    trials = trials_of(experiment("none"))
    assert trials.run(1e30, 4, 2).diverged
    assert not trials.run(1e-3, 4, 2).diverged


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "head": {"model": {"name": "tiny-bert", "dtype": "float32"}, "data": {"path": "labels.jsonl", "held_out": 12},
             "adapter": {"method": "head"}},
    "images": {"model": {"name": "vit", "dtype": "float32"}, "data": {"path": "pictures", "held_out": 12},
               "images": {"augmentation": "crop"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_is_tuned_and_its_head_begins_as_without_trials(kind):
    changes = CLASSIFIERS[kind]
    if kind == "images":
        write_pictures(Path("pictures"), 48)
    tuned = train(experiment(f"{kind}-tuned", **changes), restart=True)
    assert tuned.manifest.tuning is not None and tuned.manifest.tuning.rows_from == "validation"
    assert tuned.manifest.tuning.trials
    given = train(experiment(f"{kind}-given", tuned.manifest.learning_rate, **changes), restart=True)
    assert bits(tuned.result) == bits(given.result)


def write_pictures(folder: Path, count: int) -> None:
    """Of noise around two colours, and a model of images beside them."""
    pytest.importorskip("PIL")
    from PIL import Image

    from kit.vision_models import save_folder

    if folder.exists():
        return
    save_folder("vit", "vit")
    generator = np.random.default_rng(0)
    for number in range(count):
        name, colour = ("red", (230, 30, 30)) if number % 2 else ("blue", (30, 30, 230))
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(generator.normal(0, 40, (40, 40, 3)) + colour, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_an_adapter_that_is_trained_on_begins_every_trial_and_the_run():
    first = train(experiment("first", 0.01), restart=True)
    begun: dict[str, Any] = {"adapter": {"method": "lora", "start_from": "first"}}
    tuned = train(experiment("second", **begun), restart=True)
    given = train(experiment("third", tuned.manifest.learning_rate, **begun), restart=True)
    assert bits(tuned.result) == bits(given.result) != bits(first.result)


def test_a_short_run_takes_the_default_and_says_so():
    lines: list[str] = []
    short = experiment("short", training={"steps": 20, "batch_size": 8, "learning_rate": "tune"})
    tuned = train(
        short, restart=True, callback=lambda event: lines.append(getattr(event, "text", "")),
    )  # fmt: skip
    tuning = tuned.manifest.tuning
    assert tuning is not None and not tuning.trials and tuning.learning_rate == tuning.default
    assert TOO_COSTLY in tuning.why
    assert any(tuning.why in line for line in lines)


def test_rows_are_set_aside_only_where_there_are_no_validation_rows():
    assert tuned_by("lora").manifest.tuning.rows_from == "training"
    assert any("training rows that the trials set aside and the run learns from" in line for line in LINES)
    data = {"path": "rows.jsonl", "validation": "apart.jsonl"}
    tuned = train(experiment("apart", data=data), restart=True).manifest.tuning
    assert tuned is not None and tuned.rows == 12 and tuned.rows_from == "validation"


def test_resuming_does_not_tune_again(monkeypatch: pytest.MonkeyPatch):
    steps = {"steps": 50, "batch_size": 8, "learning_rate": "tune", "backend": "eager", "checkpoint_steps": 20}
    whole = tuned_by("lora")

    def stop(event: Any) -> None:
        if isinstance(event, StepRecord) and event.step == 30:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(experiment("stopped", training=steps), restart=True, callback=stop)
    monkeypatch.setattr(tuning_of_rates, "tune", lambda *_: pytest.fail("it was tuned again"))
    resumed = train(experiment("stopped", training=steps), resume=True)
    assert bits(resumed.result) == bits(whole.result)
    again, once = resumed.manifest.tuning, whole.manifest.tuning
    assert again is not None and once is not None and again.trials == once.trials


def test_what_the_command_line_says_and_refuses():
    words = ["train", "--model", "tiny", "--data", "rows.jsonl", "--run", "lines", "--restart", "--steps", "50",
             "--batch-size", "8", "--tune", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["tuning"]["learning_rate"] == told["learning_rate"]
    recorded = RunSnapshot.read("lines").manifest.tuning
    assert recorded is not None and recorded.model_dump(mode="json") == told["tuning"]
    assert "choosing the learning rate" in result.stderr
    page = Path("runs/lines/report.html").read_text()
    assert "Short trials before the run" in page and f"{told['learning_rate']:.3g}" in page
    both = CliRunner().invoke(app, [*words, "--learning-rate", "0.1"])
    assert both.exit_code == 2 and "--learning-rate" in both.output and "Give one of them" in both.output


LIKE_THE_RUN: dict[str, tuple[str, ...]] = {
    "rows": ("--model", "tiny", "--data", "rows.jsonl", "--batch-size", "8"),
    "fewer rows than a step has": ("--model", "tiny", "--data", "rows.jsonl", "--batch-size", "64"),
    "labels of two lengths": ("--model", "tiny-bert", "--data", "uneven.jsonl", "--batch-size", "8",
                              "--held-out", "0"),
    "images": ("--model", "vit", "--data", "pictures", "--batch-size", "8"),
    "replay": ("--model", "tiny", "--data", "rows.jsonl", "--batch-size", "8", "--replay", "0.5",
               "--replay-data", "apart.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKE_THE_RUN)
def test_the_plan_has_the_trials_of_the_run(name, monkeypatch: pytest.MonkeyPatch):
    uneven = [row | {"text": row["text"] * (12 if number % 10 == 0 else 1)} for number, row in enumerate(labelled(60))]
    write_rows("uneven.jsonl", uneven)
    if name == "images":
        write_pictures(Path("pictures"), 48)
    made, real = [], TrialPlan.of
    monkeypatch.setattr(TrialPlan, "of", lambda *given: made.append(given) or real(*given))
    words = (*LIKE_THE_RUN[name], "--steps", "3", "--tune", "--json")
    for command in (["plan"], ["train", "--run", f"planned-{name[:6].strip()}"]):
        result = CliRunner().invoke(app, [*command, *words])
        assert result.exit_code == 0, result.output
    steps, batch, tokens, part = made[0]
    assert made[-1] == (steps, batch, pytest.approx(tokens, rel=0.05), part)


def test_the_plan_tells_what_trials_cost():
    words = ["plan", "--model", "tiny", "--data", "rows.jsonl", "--batch-size", "8", "--json"]
    plans = [json.loads(CliRunner().invoke(app, [*words, *more]).stdout)
             for more in (["--steps", "100"], ["--steps", "100", "--tune"], ["--steps", "20", "--tune"])]  # fmt: skip
    assert plans[0]["tuning"] is None and plans[2]["tuning"]["trials"] == 0
    assert TOO_COSTLY in CliRunner().invoke(app, [*words[:-1], "--steps", "20", "--tune"]).stdout
    assert 0 < plans[1]["tuning"]["steps"] <= most_cost(100)
    assert plans[1]["seconds"] == plans[0]["seconds"]
    seconds, step = plans[1]["tuning"]["seconds"], plans[1]["seconds_per_step"]
    assert seconds["likely"] == pytest.approx(step * plans[1]["tuning"]["steps"])


@settings(max_examples=draws(100))
@given(st.integers(8, 200), st.integers(1, 64), st.integers(0, 5), st.integers(0, 40))
def test_no_row_is_on_both_sides_of_a_trial(count, asked, seed, repeated):
    class Rows:
        trained = np.concatenate([np.arange(count), np.arange(min(repeated, count))])
        measured = np.arange(0)

    from rankwise.rows.preparation import Prepared

    prepared = Prepared(None, Rows.trained, Rows.measured, None)  # pyright: ignore[reportArgumentType]
    apart, from_training = set_aside(prepared, asked, seed)
    assert from_training and len(apart.validation) == min(asked, count // 4)
    assert not set(apart.validation.tolist()) & set(apart.trained.tolist())
    assert set(apart.validation.tolist()) | set(apart.trained.tolist()) == set(range(count))
    measured = dataclasses.replace(prepared, validation=np.arange(count, count + 5))
    apart, from_training = set_aside(measured, asked, seed)
    assert not from_training and len(apart.validation) == min(asked, 5) and len(apart.trained) == len(Rows.trained)


@settings(max_examples=draws(100))
@given(st.floats(-1.5, 1.5), st.floats(0.01, 0.2), st.floats(0.5, 5), st.integers(3, 200))
def test_the_least_point_of_a_parabola_is_found(least, curvature, height, steps):
    stages = Stage(4, 7), Stage(2, steps)
    choice = choose(stages, math.inf, lambda stage, x: height + curvature * (x - least) ** 2, math.inf)
    assert choice is not None and choice.best == pytest.approx(least, abs=0.01)
    assert abs(choice.x) <= abs(choice.best) and choice.x * choice.best >= 0  # drawn towards the default
    longer = choose(
        (Stage(4, 7), Stage(2, 10 * steps)), math.inf, lambda stage, x: height + curvature * (x - least) ** 2, math.inf
    )
    assert longer is not None and abs(longer.x) >= abs(choice.x)


@settings(max_examples=draws(100))
@given(st.floats(-3, 6), st.lists(st.floats(0.1, 9), min_size=12, max_size=12))
def test_a_rate_that_diverges_is_never_chosen(edge, losses):
    given_losses = iter(losses)
    tried: list[float] = []

    def measured(stage: Stage, x: float) -> float:
        tried.append(x)
        return math.inf if x > edge else next(given_losses)

    choice = choose((Stage(4, 7), Stage(2, 18)), math.inf, measured, math.inf)
    finite = [x for x in tried if x <= edge]
    assert choice is not None and choice.best <= max(finite, default=min(tried)) + 1
    assert abs(choice.best) <= WIDEST


@pytest.mark.parametrize("ceiling", [-5.0, -3.0, 0.0, 2.0])
def test_no_trial_is_run_above_the_ceiling_but_the_lowest(ceiling):
    tried: list[float] = []

    def measured(stage: Stage, x: float) -> float:
        tried.append(x)
        return 1 - 0.1 * x

    choose((Stage(4, 7), Stage(2, 18)), ceiling, measured, math.inf)
    assert all(x <= max(ceiling, -2.5) for x in tried)


def test_the_range_ends_before_the_rate_after_which_the_loss_stays_high():
    grown = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert ceiling_of((2.0, 1.9, 1.8, 1.7, 4.0, 9.0), grown) == 2.0  # the update at 3 did it
    assert ceiling_of((2.0, 1.9, 1.8, 1.7), grown) == 2.0  # the next loss was not a number
    assert ceiling_of((2.0, 1.9, 1.8, 1.7, 1.6, 1.5), grown) == 5.0
    assert ceiling_of((1.0, 1.9, 1.8, 3.7, 1.6, 1.5), grown) == 5.0  # a row with a high loss of its own
    assert ceiling_of((), grown) == 0.0
