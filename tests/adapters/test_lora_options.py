"""Three options of plain LoRA: the scale by the root of the rank, a faster B, and DoRA."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from conftest import tiny_model
from rankwise.adapters.formats.peft import CONFIG, WEIGHTS, read_peft, rewrite, write_peft
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.weights import check_same
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.commands.train import train
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.experiment import Experiment
from rankwise.config.training import TrainingConfig
from rankwise.errors import AdapterError, ConfigError, TargetError
from rankwise.methods.inject import add_adapter, inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.training.state import adamw

IDS = torch.arange(48).reshape(2, 24) % 96
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def unsettle(adapters: AdapterSet, name: str = "default", seed: int = 1) -> None:
    """What training would have made of it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters.adapters(name).values():
            for part, parameter in adapter.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(parameter * (1 + drawn) if part == "magnitude" else drawn)


def hosts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    conv1d = Conv1D(7, 5)
    nn.init.normal_(conv1d.weight, std=0.4)
    nn.init.normal_(conv1d.bias)
    return {"linear": nn.Linear(5, 7), "linear without bias": nn.Linear(5, 7, bias=False), "conv1d": conv1d}


# the scale


def test_the_scale_is_alpha_over_rank_or_over_its_root() -> None:
    pattern = {"k_proj": 9}
    spec = LoraConfig(rank=16, alpha=8.0, targets=("q_proj", "k_proj"), rank_pattern=pattern)
    wanted = {"rank": (8 / 16, 8 / 9), "sqrt-rank": (8 / 4, 8 / 3)}
    for scaling, (q, k) in wanted.items():
        adapters = inject(tiny_model("llama"), spec.model_copy(update={"scaling": scaling}))
        assert {adapter.scale for path, adapter in adapters.adapters().items() if "q_proj" in path} == {q}
        assert {adapter.scale for path, adapter in adapters.adapters().items() if "k_proj" in path} == {k}


def test_a_scale_by_the_root_is_written_as_alpha_over_rank_and_read_back_up_to_the_largest(tmp_path: Path) -> None:
    spec = LoraConfig(rank=9, alpha=1e6, scaling="sqrt-rank", targets=("q_proj",))
    write_peft(inject(tiny_model("llama"), spec), tmp_path, base_model="tiny")
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (9, 3_000_000, False)
    assert {adapter.scale for adapter in read_peft(tiny_model("llama"), tmp_path).adapters().values()} == {1e6 / 3}


# a faster B


def first_step(spec: LoraConfig, **training: Any) -> tuple[AdapterSet, dict[str, dict[str, torch.Tensor]]]:
    """How far each parameter goes in one step of AdamW, by path and name."""
    model = tiny_model("llama")
    adapters = inject(model, spec)
    unsettle(adapters)
    trainable = TrainableLoRA(adapters, spec)
    optimizer = adamw(trainable, TrainingConfig(**training))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["rate"]
    before = {path: copy.deepcopy(adapter.state_dict()) for path, adapter in adapters.adapters().items()}
    model(input_ids=IDS).logits.float().square().mean().mul(1e4).backward()  # far above AdamW's epsilon
    optimizer.step()
    moved = {
        path: {name: (value - before[path][name]).abs() for name, value in adapter.state_dict().items()}
        for path, adapter in adapters.adapters().items()
    }
    return adapters, moved


def typical(moves: torch.Tensor) -> float:
    return moves[moves > 0].median().item()


def test_b_steps_faster_by_its_rate_and_of_an_embedding_a_does() -> None:
    spec = LoraConfig(rank=2, b_rate=16.0, targets=("q_proj", "down_proj", "embed_tokens"))
    _, moved = first_step(spec)
    for path, move in moved.items():
        fast, slow = ("A", "B") if "embed" in path else ("B", "A")
        assert typical(move[fast]) == pytest.approx(16e-3, rel=1e-2), path
        assert typical(move[slow]) == pytest.approx(1e-3, rel=1e-2), path


def test_with_a_rate_of_one_everything_is_one_group_as_before() -> None:
    adapters, moved = first_step(LoraConfig(rank=2, targets=("q_proj", "embed_tokens")))
    [group] = TrainableLoRA(adapters).parameter_groups()
    assert group["rate"] == 1.0 and [*map(id, group["params"])] == [*map(id, adapters.parameters())]
    assert all(typical(move[name]) == pytest.approx(1e-3, rel=1e-2) for move in moved.values() for name in move)


def test_every_parameter_is_in_one_group_and_a_magnitude_does_not_decay() -> None:
    spec = LoraConfig(rank=2, b_rate=4.0, dora=True)
    adapters, moved = first_step(spec, weight_decay=0.5)
    groups = TrainableLoRA(adapters, LoraConfig(b_rate=4.0)).parameter_groups()
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, adapters.parameters()))
    assert [(group["rate"], group.get("weight_decay")) for group in groups] == [(1.0, None), (4.0, None), (1.0, 0.0)]
    assert all(typical(move["magnitude"]) == pytest.approx(1e-3, rel=1e-2) for move in moved.values())


def test_training_takes_the_options_from_the_settings(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {k}?", "completion": f"It is {k}."} for k in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stored = {}
    for rate in (1.0, 16.0):
        adapter = {"rank": 2, "dora": True, "scaling": "sqrt-rank", "b_rate": rate}
        experiment = Experiment(
            model=str(tiny_folder), data="rows.jsonl", run=f"rate-{rate:g}", adapter=adapter, training={"steps": 1}
        )
        folder = train(experiment).result
        assert json.loads((folder / CONFIG).read_text())["use_dora"] is True
        stored[rate] = load_file(folder / WEIGHTS)
    for key, slow in stored[1.0].items():  # B starts at zero, and A has had no gradient yet
        assert torch.allclose(stored[16.0][key], slow * (16 if "lora_B" in key else 1), rtol=1e-5, atol=0), key
    assert any(slow.any() for key, slow in stored[1.0].items() if "lora_B" in key)


# DoRA


@pytest.mark.parametrize("kind", hosts())
def test_each_output_s_weights_are_as_long_as_its_magnitude_and_point_where_lora_points(kind: str) -> None:
    host = hosts()[kind].double()
    adapters = inject(nn.Sequential(host), LoraConfig(rank=2, alpha=3.0, targets=("0",), dora=True))
    adapter = adapters.adapters()["0"].double()
    unsettle(adapters)
    weight = (host.weight.T if kind == "conv1d" else host.weight).detach()
    changed, plain = weight + adapter.delta().detach(), weight + 1.5 * (adapter.B @ adapter.A).detach()
    assert torch.allclose(changed.norm(dim=1), adapter.magnitude.detach(), rtol=1e-12)
    assert torch.allclose(F.cosine_similarity(changed, plain), torch.ones(7, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_untrained_it_is_the_base_within_rounding_also_with_dropout(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture).to(dtype)
    before = logits(model)
    adapters = inject(model, LoraConfig(rank=3, dora=True, dropout=0.5))
    adapters.train()
    assert (logits(model) - before).abs().max() <= torch.finfo(dtype).eps * before.abs().max()
    assert all(parameter.dtype == torch.float32 for parameter in adapters.parameters())


def test_dropout_meets_the_low_rank_part_alone() -> None:
    host = hosts()["linear"]
    model = nn.Sequential(host)
    adapters = inject(model, LoraConfig(rank=2, targets=("0",), dora=True, dropout=0.99))
    unsettle(adapters)
    adapters.train()
    torch.manual_seed(1)
    x = torch.randn(1, 5)
    found = model(x)  # with this seed nothing of x is left
    adapter = adapters.adapters()["0"]
    assert torch.allclose(found, adapter.stretch() * (x @ host.weight.T) + host.bias, atol=1e-6)


def test_the_host_is_no_part_of_the_adapter_and_a_copy_of_the_model_has_its_own() -> None:
    model = nn.Sequential(hosts()["linear"])
    adapters = inject(model, LoraConfig(rank=2, targets=("0",), dora=True))
    adapter = adapters.adapters()["0"]
    assert list(adapter.state_dict()) == ["A", "B", "magnitude"] and not list(adapter.children())
    assert sum(parameter.numel() for parameter in adapters.parameters()) == 2 * 5 + 7 * 2 + 7
    unsettle(adapters)
    again = copy.deepcopy(model)
    x = torch.randn(3, 5)
    wanted = model(x)
    assert torch.equal(again(x), wanted)
    with torch.no_grad():
        model[0].base_layer.weight.zero_()
    assert torch.equal(again(x), wanted)
    assert adapters.remove()[0] is not again[0]


def test_an_output_without_weights_stays_without_and_breaks_nothing() -> None:
    host = nn.Linear(5, 3)
    with torch.no_grad():
        host.weight[1] = 0
    model = nn.Sequential(host)
    adapters = inject(model, LoraConfig(rank=2, targets=("0",), dora=True))
    x = torch.randn(4, 5)
    y = model(x)
    assert torch.allclose(y, host(x))
    y.square().sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in adapters.parameters())


def test_what_has_no_row_for_an_output_is_refused_and_nothing_is_laid() -> None:
    model = tiny_model("llama")
    with pytest.raises(TargetError, match=r'"model\.embed_tokens" \(Embedding\).*adapter\.dora=false'):
        inject(model, LoraConfig(dora=True, targets=("all-linear", "embed_tokens")))
    assert not any(isinstance(module, AdapterWrapper) for module in model.modules())
    with pytest.raises(TargetError, match=r'"1" \(Conv2d\)'):
        inject(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 4, 3)), LoraConfig(dora=True, targets=("0", "1")))


def test_it_is_active_alone_where_another_acts() -> None:
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(targets=("q_proj", "k_proj")), name="plain")
    add_adapter(adapters, LoraConfig(targets=("q_proj",), dora=True), name="dora")
    add_adapter(adapters, LoraConfig(targets=("v_proj",)), name="elsewhere")
    for names in (("plain", "dora"), ("dora", "elsewhere", "plain"), ("dora", "dora")):
        with pytest.raises(TargetError, match=r'adapter "dora" is DoRA.*Activate it alone'):
            adapters.activate(*names)
        assert adapters.active == ("elsewhere",)
    adapters.activate("dora", "elsewhere")
    assert adapters.active == ("dora", "elsewhere")


def written(folder: Path) -> Path:
    adapters = inject(tiny_model("llama"), LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj"), dora=True))
    unsettle(adapters)
    write_peft(adapters, folder, base_model="tiny")
    return folder


def test_what_is_written_is_read_back_the_same_also_beside_another(tmp_path: Path) -> None:
    written(tmp_path / "a")
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(targets=("q_proj",)), name="first")
    read_peft(model, tmp_path / "a", name="second", into=adapters)
    adapters.settle("second")
    write_peft(adapters, tmp_path / "b", base_model="tiny", name="second")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert load_file(tmp_path / "a" / WEIGHTS)[f"{Q0}.lora_magnitude_vector"].shape == (32,)


def test_it_is_not_written_for_engines_that_know_one_rank_and_alpha(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is DoRA.*Use the format peft or merged"):
        read_weights(written(tmp_path / "x")).portable()


def test_its_files_alone_are_read_and_written_the_same(tmp_path: Path) -> None:
    held = read_weights(written(tmp_path / "x"))
    rewrite(held, tmp_path / "y", {})
    assert load_file(tmp_path / "x" / WEIGHTS).keys() == load_file(tmp_path / "y" / WEIGHTS).keys()
    one, other = (logits(read_peft(tiny_model("llama"), tmp_path / name).model) for name in "xy")
    assert torch.equal(one, other)
    path, part = next(iter(held.factors.items()))
    assert part.magnitude is not None
    stretched = replace(held, factors=held.factors | {path: replace(part, magnitude=part.magnitude * 1.01)})
    with pytest.raises(AdapterError, match="would differ from the adapter"):
        check_same(stretched, held, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{Q0}.lora_magnitude_vector", None, "has only lora_A and lora_B, no lora_magnitude_vector"),
        (f"{Q0}.lora_magnitude_vector", torch.ones(31), "needs (4, 32) and (32, 4) and (32,)"),
        (f"{Q0}.lora_magnitude_vector", torch.ones(1, 32), "needs (4, 32) and (32, 4) and (32,)"),
        (f"{Q0}.lora_magnitude_vector", torch.full((32,), math.nan), "NaN or infinity"),
        (f"{Q0}.lora_magnitude_vector.weight", torch.ones(32), "is not a LoRA factor"),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            torch.ones(4, 96),
            "Embedding, which is not supported",
        ),
        (f"{Q0}.lora_A.weight", None, "has only lora_B and lora_magnitude_vector, no lora_A"),
    ],
)
def test_broken_magnitudes_are_refused_by_name(key: str, value: torch.Tensor | None, said: str, tmp_path: Path) -> None:
    tensors = load_file(written(tmp_path) / WEIGHTS)
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    save_file(tensors, tmp_path / WEIGHTS)
    model = tiny_model("llama")
    with pytest.raises(AdapterError) as caught:
        read_peft(model, tmp_path)
    assert said in str(caught.value)
    assert not any(isinstance(module, AdapterWrapper) for module in model.modules())


# the settings


@pytest.mark.parametrize(
    "values",
    [
        {"scaling": "log-rank"}, {"scaling": True}, {"scaling": None}, {"b_rate": 0}, {"b_rate": -1}, {"b_rate": 1001},
        {"b_rate": math.nan}, {"b_rate": math.inf}, {"b_rate": True}, {"b_rate": "fast"}, {"dora": "maybe"},
        {"dora": 2}, {"dora": None},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    [name] = values
    with pytest.raises(ConfigError, match=f'setting "{name}"'):
        LoraConfig(**values)


@pytest.mark.parametrize("name", ["scaling", "b_rate", "dora"])
def test_they_are_options_of_plain_lora_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=f'unknown setting "{name}"'):
        AdaLoraConfig(**{name: LoraConfig.model_fields[name].default})
