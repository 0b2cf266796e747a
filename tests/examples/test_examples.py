"""The examples run, and the flat reading version and the package's trainer learn the same from the same start."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rankwise
from kit.summed_losses import summed
from kit.trainers import train
from rankwise.base.loading import load
from rankwise.config.adapters import LoraConfig
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import tokenise
from rankwise.runs.records import StepRecord
from rankwise.training.state import TrainState, adamw
from rankwise.training.trainer import rate_factor

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_one_row_keeps_every_law_on_the_way(starter_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "one_row.py"), run_name="__main__")
    assert "11 written   and read again: 210 layers" in capsys.readouterr().out


def test_the_flat_version_and_the_trainer_agree_step_by_step(tiny_folder: Path) -> None:
    flat = example("flat_lora")
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


def shown(notebook: Any) -> list[tuple[str, list[Any]]]:
    """Each cell of code with what it shows."""
    return [(cell.source, cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_the_notebook_runs_cell_after_cell(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model of two small blocks in the place of the starter."""
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text()) | {"max_position_embeddings": 1024}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("PYTHONPATH", str(Path(rankwise.__file__).parents[1]))
    cells = shown(example("first").executed(tmp_path, MODEL="tiny"))
    assert cells[0][0] == "MODEL = 'tiny'" and (tmp_path / "orders-model" / "model.safetensors").is_file()
    kinds = [kind for _, outputs in cells for output in outputs for kind in output.get("data", {})]
    assert kinds.count("text/html") == 3 and {"image/png", "image/svg+xml"} <= set(kinds)
    assert not [output for _, outputs in cells for output in outputs if output.get("name") == "stderr"]


def test_the_notebook_shows_what_its_cells_showed_when_they_ran() -> None:
    notebook = json.loads((EXAMPLES / "first.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = json.dumps(notebook)
    assert not re.search(r"/(tmp|home|root|work|Users)/|\bstderr\b|\\u001b", text), "of the machine that ran it"
    assert max(sum(str(output).count("\\n") for output in cell["outputs"] if "text" in output) for cell in cells) < 25
    told = [one["cell_type"] for one, cell in pairwise(notebook["cells"]) if cell["cell_type"] == "code"]
    assert set(told) == {"markdown"}, "a sentence before each"
