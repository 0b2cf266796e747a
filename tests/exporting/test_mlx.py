"""mlx-lm's format holds the portable change exactly, and what it cannot hold is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import tiny_model
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft import read_peft, weights_of, write_peft
from rankwise.adapters.weights import AdapterWeights
from rankwise.base.rotary_names import write_older_names
from rankwise.commands.export import export
from rankwise.config.adapters import LoraConfig
from rankwise.errors import AdapterError
from rankwise.exporting import adapter_export
from rankwise.exporting.adapter_export import write_mlx
from rankwise.methods.inject import inject
from rankwise.runs.records import Event, WarningMessage

SPEC = LoraConfig(rank=3, alpha=7, targets=("all-linear", "lm_head"), rank_pattern={"v_proj": 1, "down_proj": 5},
                  scaling="sqrt-rank")  # fmt: skip


def weights(spec: LoraConfig = SPEC, architecture: str = "llama") -> AdapterWeights:
    adapters = inject(tiny_model(architecture), spec)
    torch.manual_seed(2)
    for value in adapters.parameters():
        value.data = torch.randn_like(value)
    return weights_of(adapters, "default")


def test_the_change_is_the_trained_one_by_mlx_formula(tmp_path: Path) -> None:
    own = weights()
    write_mlx(own.portable(), tmp_path / "mlx", {})
    tensors = load_file(tmp_path / "mlx" / "adapters.safetensors")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    scale, rank = config["lora_parameters"]["scale"], config["lora_parameters"]["rank"]
    assert {key.rpartition(".")[0] for key in tensors} == set(own.factors)
    for path, part in own.factors.items():
        a, b = tensors[f"{path}.lora_a"].double(), tensors[f"{path}.lora_b"].double()
        assert (a.shape[1], b.shape[0]) == (rank, rank) == (5, 5)
        trained = part.scale * part.B.double() @ part.A.double()
        assert torch.allclose((scale * b.T) @ a.T, trained, rtol=1e-5, atol=1e-6)


def test_mlx_lays_factors_over_every_layer_that_has_some(tmp_path: Path) -> None:
    """By mlx-lm's rule: a key inside a block selects it in the last num_layers blocks, others by their whole path."""
    own = weights(LoraConfig(rank=2, targets=("q_proj", "layers.1.mlp.up_proj", "lm_head")))
    settings = adapter_export.mlx_settings(own.portable())
    keys, blocks = settings["lora_parameters"]["keys"], list(range(2))[-settings["num_layers"] :]
    selected = {f"model.layers.{block}.{key}" for block in blocks for key in keys} | set(keys)
    assert set(own.factors) <= selected
    assert keys == ["lm_head", "mlp.up_proj", "self_attn.q_proj"]


def test_what_was_written_is_read_back_as_the_same_adapter(tmp_path: Path) -> None:
    adapters = inject(tiny_model("llama"), SPEC)
    write_peft(adapters, tmp_path / "peft", base_model="tiny")
    own = read_adapter(tmp_path / "peft")
    write_mlx(own.portable(), tmp_path / "mlx", {"more.json": {"a": 1}})
    again = read_peft(tiny_model("llama"), tmp_path / "mlx")
    assert set(again.adapters()) == set(adapters.adapters())
    assert json.loads((tmp_path / "mlx" / "more.json").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["model"] == "tiny"


def test_names_that_mlx_may_not_know_are_refused(tmp_path: Path) -> None:
    own = weights(LoraConfig(rank=2, targets=("c_attn",)), "gpt2")
    with pytest.raises(AdapterError, match=r"transformer\.h\.0\.attn\.c_attn.*merged"):
        write_mlx(own.portable(), tmp_path / "mlx", {})
    assert not (tmp_path / "mlx").exists()


def test_a_wrong_file_does_not_get_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = weights().portable()
    settings = adapter_export.mlx_settings(own)
    settings["lora_parameters"]["scale"] = 2.0
    monkeypatch.setattr(adapter_export, "mlx_settings", lambda _: settings)
    with pytest.raises(AdapterError, match="would differ"):
        write_mlx(own, tmp_path / "mlx", {})
    assert not (tmp_path / "mlx").exists()


def test_a_base_whose_angles_mlx_lm_would_not_read_is_named(library, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora"))

    def warnings(to: str, base: str | None = None) -> list[str]:
        events: list[Event] = []
        export("lora", to, "mlx", base_model=base, callback=events.append)
        return [one.text for one in events if isinstance(one, WarningMessage) and "rope_theta" in one.text]

    (warning,) = warnings("before")
    assert "tiny-llama/config.json has rope_parameters and lacks rope_theta" in warning
    assert 'Add {"rope_theta": 10000.0}' in warning
    shutil.copytree("tiny-llama", "complete")
    write_older_names(Path("complete"))
    assert warnings("after", "complete") == []
