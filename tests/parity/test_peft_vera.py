"""VeRA: what a run trains, peft reads and what peft trains, we read, with the same logits; and what is refused."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import rankwise
from conftest import tiny_model
from kit.interrupted import whole_and_resumed
from kit.planning_models import shape_of
from rankwise.adapters.formats.peft import CONFIG, WEIGHTS, read_peft
from rankwise.adapters.targets import seen
from rankwise.config.experiment import Experiment
from rankwise.errors import RankwiseError
from rankwise.methods.vera import VeRA, projections
from rankwise.planning.parameters import parameters_of

NEAR = 1e-5
STEPS, RANK = 8, 12
IDS = torch.arange(60).reshape(3, 20) * 7 % 96
ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "the quick brown fox"}]}
    for n in range(8)
]
LEAVES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def fresh(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def home(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tiny_folder


def experiment(folder: Path, run: str, **adapter: Any) -> Experiment:
    return Experiment.model_validate({
        "model": {"name": str(folder), "dtype": "float32"}, "data": "rows.jsonl", "run": run,
        "adapter": {"method": "vera", "rank": RANK, **adapter},
        "training": {"steps": STEPS, "batch_size": 4, "learning_rate": 0.1, "checkpoint_steps": 2},
    })  # fmt: skip


def test_a_run_learns_two_vectors_a_layer_and_is_the_same_everywhere(home: Path) -> None:
    spec = experiment(home, "vera")
    run = rankwise.train(spec, callback=lambda event: None)
    losses = [row["loss"] for row in run.metrics if row["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.1
    trained, base = logits(run.tuned.model.module), logits(fresh(home))
    layers = run.tuned.trainable.adapters.adapters()
    assert apart(trained, base) > 0.01 and all(type(one) is VeRA for one in layers.values())
    counted = parameters_of(shape_of(str(home)), spec.adapter)
    assert counted.trainable == sum(one.numel() for one in run.tuned.trainable.parameters())
    adapter = run.folder / "adapter"
    assert counted.file_bytes == (adapter / WEIGHTS).stat().st_size
    assert counted.written_bytes == sum(one.numel() for one in load_file(adapter / WEIGHTS).values())
    inspected = rankwise.inspect(str(run.folder))
    assert inspected.parameters == counted.trainable and inspected.adapter is not None
    assert [name for name, problem in inspected.adapter.engines.items() if problem is None] == ["PEFT", "transformers"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(fresh(home), adapter).eval()
    assert apart(logits(theirs), trained) <= NEAR, "PEFT"
    assert apart(logits(theirs.merge_and_unload()), trained) <= NEAR, "merged by PEFT"
    again = fresh(home)
    adapters = read_peft(again, adapter)
    assert apart(logits(again), trained) <= NEAR, "reloaded"
    assert torch.equal(logits(adapters.remove()), base), "removed"
    for number, words in enumerate(({"format": "merged"}, {"format": "peft"}, {"format": "portable"})):
        rankwise.export(str(run.folder), to=f"out-{number}", **words)
    assert apart(logits(fresh(Path("out-0"))), trained) <= NEAR, "merged"
    for folder in ("out-1", "out-2"):
        assert apart(logits(PeftModel.from_pretrained(fresh(home), folder).eval()), trained) <= NEAR, folder


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_that_goes_on_writes_the_same_bytes(home: Path, dropout: float) -> None:
    whole, resumed = whole_and_resumed(lambda run: experiment(home, run, dropout=dropout), 3)
    assert whole == resumed


def of_peft(architecture: str, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = VeraConfig(r=RANK, target_modules=LEAVES[architecture], projection_prng_key=5, **settings)
        model = get_peft_model(tiny_model(architecture), config)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 0.1)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", LEAVES)
def test_what_peft_trained_has_the_same_logits_here(architecture: str, tmp_path: Path) -> None:
    theirs, model = of_peft(architecture, tmp_path), tiny_model(architecture)
    base = logits(model)
    read_peft(model, tmp_path)
    assert apart(logits(model), base) > 1e-3 and apart(logits(model), logits(theirs)) <= NEAR
    shared = [theirs.base_model.vera_A["default"], theirs.base_model.vera_B["default"]]
    assert all(map(torch.equal, projections(RANK, shared[0].shape[1], len(shared[1]), 5), shared))


def spoil(folder: Path, what: str) -> None:
    tensors, settings = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    path = next(name for name in tensors if name.endswith("vera_lambda_d")).removesuffix(".vera_lambda_d")
    match what:
        case "no projection":
            tensors = {name: value for name, value in tensors.items() if "lambda" in name}
        case "half":
            del tensors[f"{path}.vera_lambda_b"]
        case "shape":
            tensors[f"{path}.vera_lambda_d"] = torch.ones(RANK + 1)
        case "width":
            tensors[f"{path}.vera_lambda_b"] = torch.ones(3)
        case "infinite":
            tensors[f"{path}.vera_lambda_d"][0] = math.inf
        case "other":
            tensors["base_model.model.x.weight"] = torch.ones(2)
        case _:
            settings[what] = {"save_projection": False, "bias": "all", "r": "8", "modules_to_save": ["lm_head"]}[what]
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(settings))


@pytest.mark.parametrize(("what", "sentence"), [
    ("no projection", '"base_model.vera_A" is missing'), ("half", "has no vera_lambda_b"),
    ("shape", "vera_lambda_d of shape (13,)"), ("width", "has factors of shape (12, 48) and (3, 12)"),
    ("infinite", "contains NaN or infinity"), ("other", '"base_model.model.x.weight" is no factor'),
    ("save_projection", '"save_projection" is false: input should be true'),
    ("bias", "bias"), ("r", '"r"'), ("modules_to_save", "modules_to_save"),
])  # fmt: skip
def test_a_folder_that_is_no_whole_vera_is_refused(what: str, sentence: str, tmp_path: Path) -> None:
    of_peft("llama", tmp_path)
    spoil(tmp_path, what)
    model = tiny_model("llama")
    with pytest.raises(RankwiseError) as caught:
        read_peft(model, tmp_path)
    assert sentence in str(caught.value)
    assert all(one.requires_grad for one in model.parameters()), "the model is what it was"


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"adapter": {"dora": True}}, '"adapter.dora" is a setting of lora, and the method is vera'),
    ({"adapter": {"start": "eva"}}, "is a setting of lora and adalora, and the method is vera"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    given = {"model": {"name": "m"}, "data": "rows.jsonl", "run": "r", **changes}
    with pytest.raises(RankwiseError) as caught:
        Experiment(**given | {"adapter": {"method": "vera", **changes.get("adapter", {})}})
    assert sentence in str(caught.value)


def test_a_new_head_and_a_layer_of_another_kind_are_refused() -> None:
    spec = Experiment(model="m", data="rows.jsonl", run="r", adapter={"method": "vera", "targets": "wte"}).adapter
    with pytest.raises(RankwiseError, match=r"the head score would be trained beside them\. Choose --method lora"):
        spec.parameters(1, (), {"score": (2, 3)})
    with pytest.raises(RankwiseError, match=r"VeRA is for linear layers and Conv1D, .*or choose --method lora"):
        spec.select(seen(tiny_model("gpt2")))
