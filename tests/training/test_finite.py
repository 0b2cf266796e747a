"""What the last update makes is looked at: a NaN is an error of the training, named, and never a finished run.

The NaN comes in where a real one would, through the optimizer's averages or by an update that is too large.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rankwise
from conftest import tiny_model
from rankwise.adapters.formats.peft import write_peft
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import AdapterError, TrainingError
from rankwise.methods.inject import inject
from rankwise.training import trainer, validation
from rankwise.training.losses import sum_loss
from rankwise.training.state import not_finite

STEPS = 12
METHODS = {
    "lora": LoraConfig(rank=2, targets=("q_proj", "v_proj")),
    "dora": LoraConfig(rank=2, targets=("q_proj", "v_proj"), dora=True),
    "adalora": AdaLoraConfig(budget=2, targets=("q_proj", "v_proj")),
    "full": FullConfig(),
}
LEARNED = {"lora": "q_proj.A", "dora": "q_proj.A", "adalora": "v_proj.P", "full": "model.embed_tokens.weight"}


@pytest.fixture(autouse=True)
def workplace(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("base").symlink_to(tiny_folder)


def experiment(method, held_out=0, **more):
    data = {"path": "rows.jsonl", "held_out": held_out}
    training = TrainingConfig(steps=STEPS, batch_size=2, backend="eager", checkpoint_steps=5)
    return rankwise.Experiment(
        model="./base", data=data, run="r", adapter=METHODS[method], training=training, **more
    )  # fmt: skip


def poisoned(monkeypatch, change, step):
    """Before that update `change` is done to the first parameter that learns and to its averages."""
    real, count = trainer.adamw, iter(range(1, STEPS + 1))

    def adamw(trainable, spec):
        optimizer = real(trainable, spec)

        def before(*_):
            if next(count) == step:
                parameter = optimizer.param_groups[0]["params"][0]
                change(parameter, optimizer.state[parameter])

        optimizer.register_step_pre_hook(before)
        return optimizer

    monkeypatch.setattr(trainer, "adamw", adamw)


def nan_in_average(parameter, averages):
    averages["exp_avg"].view(-1)[0] = float("nan")


def refused(spec):
    with pytest.raises(TrainingError) as caught:
        rankwise.train(spec)
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert caught.value.exit_code == 1
    assert (manifest["status"], manifest["problem"]) == ("failed", str(caught.value))
    assert manifest["result_sha256"] is None and manifest["results"] is None
    assert not any(Path("runs/r", name).exists() for name in ("adapter", "model"))
    return str(caught.value)


@pytest.mark.parametrize(("method", "held_out"), zip(METHODS, (0, 2, 0, 2), strict=True))
def test_a_nan_of_the_last_update_is_an_error_of_the_training(monkeypatch, method, held_out):
    poisoned(monkeypatch, nan_in_average, STEPS)
    said = refused(experiment(method, held_out))
    assert f"after step {STEPS} of {STEPS}" in said and LEARNED[method] in said and "learning rate" in said
    assert {path.name for path in Path("runs/r/checkpoints").iterdir()} == {"step-5", "step-10"}


def test_the_run_can_go_on_from_its_checkpoint(monkeypatch):
    with monkeypatch.context() as patch:
        poisoned(patch, nan_in_average, STEPS)
        refused(experiment("lora"))
    trained = rankwise.train(experiment("lora"), resume=True)
    straight = rankwise.train(experiment("lora").model_copy(update={"run": "straight"}))
    one, other = ((run.folder / "adapter" / "adapter_model.safetensors").read_bytes() for run in (trained, straight))
    assert one == other


def test_a_nan_of_the_last_update_fails_where_the_best_step_would_be_kept_too(monkeypatch):
    poisoned(monkeypatch, nan_in_average, STEPS)
    said = refused(experiment("lora", 2, validation={"keep": "best", "steps": 3}))
    assert f"after step {STEPS}" in said


def test_a_nan_before_an_evaluation_is_named_and_not_measured(monkeypatch):
    poisoned(monkeypatch, nan_in_average, 3)
    said = refused(experiment("lora", 2, validation={"steps": 3}))
    assert f"after step 3 of {STEPS}" in said
    assert "NaN" not in Path("runs/r/metrics.jsonl").read_text()


@pytest.mark.parametrize("step", [5, STEPS])
def test_an_infinite_average_by_which_nothing_learns_is_found_at_checkpoints_and_at_the_end(monkeypatch, step):
    poisoned(monkeypatch, lambda parameter, averages: averages["exp_avg_sq"].view(-1)[0].fill_(math.inf), step)
    said = refused(experiment("lora"))
    assert f"after step {step}" in said and "exp_avg_sq of model.layers.0.self_attn.q_proj.A" in said


def test_what_becomes_infinite_as_triplets_are_folded_is_found(monkeypatch):
    real = trainer.Trainer._check_that_all_learned

    def then_grow(self):
        real(self)
        if not self.state.finished:
            return
        with torch.no_grad():
            self.trainable.triplets.vectors.fill_(1e30)
            self.trainable.triplets.strengths.fill_(1e30)

    monkeypatch.setattr(trainer.Trainer, "_check_that_all_learned", then_grow)
    said = refused(experiment("adalora"))
    assert "q_proj.B" in said and "contain NaN or infinity" in said


@pytest.mark.parametrize(("number", "when"), [(1, "before the first step"), (2, f"after step {STEPS}")])
def test_a_validation_loss_that_is_no_number_is_an_error_of_the_training(monkeypatch, number, when):
    count = iter(range(1, 9))

    def loss(*words):
        found, tokens = sum_loss(*words)
        return (float("nan") if next(count) == number else found), tokens

    monkeypatch.setattr(validation, "sum_loss", loss)
    assert f"validation loss {when} is nan" in refused(experiment("lora", 2, validation={"steps": STEPS}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_among_many_is_enough(dtype, value):
    spoiled = torch.zeros(50, 50, dtype=dtype)
    spoiled[17, 31] = value
    whole = {"largest": torch.full((9,), torch.finfo(dtype).max, dtype=dtype), "empty": torch.empty(0, dtype=dtype)}
    assert not_finite(whole | {"spoiled": spoiled, "step": torch.tensor(3)}) == ["spoiled"]


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path):
    adapters = inject(tiny_model("llama"), LoraConfig(rank=2, targets=("q_proj",)))
    with torch.no_grad():
        adapters.parameters()[-1].view(-1)[0] = math.inf
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.q_proj\.lora_B"):
        write_peft(adapters, tmp_path / "a", base_model="tiny")
    assert not (tmp_path / "a").exists()


WHERE = {
    "loss": "gradient of model.layers.",
    "activation": "gradient of model.layers.",
    "gradient": "gradient of model.layers.0.self_attn.q_proj.A",
    "weight": "weight model.layers.0.self_attn.q_proj.A",
}


@pytest.mark.parametrize(("where", "step"), zip(WHERE, (STEPS, 1, 6, STEPS), strict=True))
def test_a_nan_stops_within_its_step_and_is_named(monkeypatch, where, step):
    real = trainer.optimizer_step

    def spoiled(state, batches, loss_of, *more):
        if state.step + 1 != step:
            return real(state, batches, loss_of, *more)
        first = state.parameters[0]
        if where == "loss":
            return real(state, batches, lambda batch: loss_of(batch) * math.nan, *more)
        if where == "activation":
            module = state.trainable.adapters.adapters("default")["model.layers.1.self_attn.q_proj"]
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * math.nan, *inputs[1:]))
        elif where == "gradient":
            first.register_hook(lambda gradient: gradient * math.nan)
        else:
            first.data.view(-1)[0] = math.nan
        return real(state, batches, loss_of, *more)

    monkeypatch.setattr(trainer, "optimizer_step", spoiled)
    said = refused(experiment("lora"))
    assert f"step {step} of {STEPS}" in said and WHERE[where] in said
    log = Path("runs/r/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if step > 1 else []
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, step))
    for file in Path("runs/r").rglob("*.safetensors"):
        assert not not_finite(load_file(file))
