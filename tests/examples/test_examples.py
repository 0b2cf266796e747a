"""The examples run, and the flat reading version and the package's trainer learn the same from the same start."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

from kit.trainers import train
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.objectives.causal_lm import summed
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.runs.records import StepRecord
from rankwise.training.state import TrainState, adamw
from rankwise.training.trainer import rate_factor

EXAMPLES = Path(__file__).parents[2] / "examples"


def flat_lora() -> ModuleType:
    found = importlib.util.spec_from_file_location("flat_lora", EXAMPLES / "flat_lora.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_one_row_keeps_every_law_on_the_way(starter_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "one_row.py"), run_name="__main__")
    assert "11 written   and read again: 210 layers" in capsys.readouterr().out


def test_the_flat_version_and_the_trainer_agree_step_by_step(tiny_folder: Path) -> None:
    flat = flat_lora()
    loaded = load(ModelConfig(name=str(tiny_folder), dtype="float32", device="cpu"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    expected = flat.train(plain, loaded.tokenizer.hub)

    adapters = inject(loaded.module, LoraConfig(rank=flat.RANK, alpha=flat.ALPHA))
    wrapped = {path: module for path, module in plain.named_modules() if isinstance(module, flat.LoraLinear)}
    assert set(wrapped) == set(adapters.layers)
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    torch.manual_seed(0)
    flat.adapt(fresh)
    starts = {path: module.A for path, module in fresh.named_modules() if isinstance(module, flat.LoraLinear)}
    with torch.no_grad():
        for path, adapter in adapters.adapters().items():
            adapter.A.copy_(starts[path])

    spec = TrainingConfig(steps=flat.STEPS, batch_size=len(flat.ROWS), warmup=0.0)
    examples = [Example((Message("user", q), Message("assistant", a)), "flat") for q, a in flat.ROWS]
    rows = [tokenise(render(example, loaded.template), loaded.tokenizer) for example in examples]
    trainable = TrainableLoRA(adapters)
    state = TrainState(
        trainable, adamw(trainable, spec), lambda step: flat.RATE * rate_factor(spec, step, flat.STEPS), flat.STEPS,
        spec.clip, torch.device("cpu"),
    )  # fmt: skip
    records: list[StepRecord] = []
    batches = Batches(rows, spec.batch_size, 64, 0)
    train(state, batches, loss_of=summed(SupervisedLogits(loaded.module)), callback=records.append)
    assert expected[-1] < expected[0]
    assert [record.loss for record in records] == pytest.approx(expected, rel=1e-5)


def test_the_notebook_runs_cell_after_cell(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model of two small blocks in the place of the starter, which one_row.py loads by its name."""
    monkeypatch.chdir(tmp_path)
    code = (EXAMPLES / "notebook.py").read_text(encoding="utf-8")
    assert code.count('"smollm2-135m"') == 1
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    exec(code.replace('"smollm2-135m"', '"tiny"'), {})  # noqa: S102  our own example
    printed = capsys.readouterr().out
    before, after = map(float, printed.splitlines()[1].split(" -> "))
    assert after < before, "three rows that were not trained on are learned from the others"
    assert "tuned:" in printed and printed.splitlines()[-1].startswith("True ")
    assert (tmp_path / "runs" / "colours" / "loss.png").is_file()
