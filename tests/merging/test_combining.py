"""Several adapters as one: the formulas, PEFT's results where its formulas are the same, and errors that are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from kit.adapted_models import TABLES, logits, save_adapter, save_base
from rankwise.adapters.combining import Combining
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.low_rank import of_factors, of_matrix
from rankwise.cli.main import app
from rankwise.commands.merge import combined, merge, options_of
from rankwise.config.adapters import LoraConfig
from rankwise.errors import AdapterError, ConfigError

WEIGHTS = [0.7, 0.4]
PATH = "model.layers.0.mlp.gate_proj"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base and two adapters of different ranks and scales."""
    base = save_base(tmp_path / "base", "llama")
    save_adapter(tmp_path / "one", base, "llama", LoraConfig(rank=3, alpha=5), seed=1)
    save_adapter(tmp_path / "two", base, "llama", LoraConfig(rank=2, alpha=3), seed=2)
    return base, tmp_path / "one", tmp_path / "two"


def changes(*folders: Path) -> list[torch.Tensor]:
    """The change of one layer in each adapter."""
    parts = [read_weights(folder).factors[PATH] for folder in folders]
    return [part.scale * part.B.double() @ part.A.double() for part in parts]


def change_of(base: Path, merged: str) -> torch.Tensor:
    before, after = (load_file(Path(one) / "model.safetensors")[f"{PATH}.weight"] for one in (base, merged))
    return after.double() - before.double()


def theirs(base: Path, one: Path, two: Path, kind: str, **settings: object) -> torch.nn.Module:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one, adapter_name="one")
    model.load_adapter(two, adapter_name="two")
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "both", combination_type=kind, **settings)
    model.set_adapter("both")
    return model.eval()


def near(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_linear_is_the_weighted_sum_in_a_model_and_in_an_adapter_and_to_peft(two, tmp_path):
    base, one, other = two
    merged = merge([one, other], tmp_path / "merged", weights=WEIGHTS)
    wanted = sum(weight * change for weight, change in zip(WEIGHTS, changes(one, other), strict=True))
    assert near(change_of(base, merged.folder), wanted) < 1e-5
    result = combined(options_of([one, other], WEIGHTS, Combining(), 1.0), tmp_path / "joined")
    assert result.rank == 5 and result.error == 0
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "joined").eval()
    live = logits(theirs(base, one, other, "cat"))
    assert near(logits(ours), live) < 1e-5
    assert near(logits(AutoModelForCausalLM.from_pretrained(merged.folder)), live) < 1e-5


def test_svd_is_the_nearest_change_of_its_rank_and_peft_says_the_same(two, tmp_path):
    base, one, other = two
    combining = Combining("svd", rank=2)
    merged = merge([one, other], tmp_path / "merged", weights=WEIGHTS, method="svd", rank=2)
    result = combined(options_of([one, other], WEIGHTS, combining, 1.0), tmp_path / "joined")
    whole = WEIGHTS[0] * changes(one)[0] + WEIGHTS[1] * changes(other)[0]
    values = torch.linalg.svdvals(whole)
    best = float(values[2:].norm() / values.norm())
    layer = next(one for one in result.layers if one.layer == PATH)
    assert layer.rank == 2 and layer.error == pytest.approx(best, rel=1e-5)
    for change in (change_of(base, merged.folder), changes(tmp_path / "joined")[0]):
        assert float((change - whole).norm() / whole.norm()) == pytest.approx(best, rel=1e-4)
    live = logits(theirs(base, one, other, "svd", svd_rank=2))
    assert near(logits(AutoModelForCausalLM.from_pretrained(merged.folder)), live) < 1e-4


def test_ties_keeps_the_largest_elects_a_sign_and_takes_the_mean_as_peft_does(two, tmp_path):
    base, one, other = two
    merged = merge([one, other], tmp_path / "merged", weights=WEIGHTS, method="ties", density=0.3)
    trimmed = []
    for change in changes(one, other):
        least = change.abs().flatten().sort(descending=True).values[int(0.3 * change.numel()) - 1]
        trimmed.append(torch.where(change.abs() >= least * (1 - 1e-6), change, 0.0))
    sign = torch.where(trimmed[0] + trimmed[1] >= 0, 1.0, -1.0)
    agrees = [change.sign() == sign for change in trimmed]
    total = sum(weight * change * agree for weight, change, agree in zip(WEIGHTS, trimmed, agrees, strict=True))
    wanted = total / (agrees[0].int() + agrees[1].int()).clamp_min(1)
    assert 0.2 < float((wanted != 0).double().mean()) < 0.6
    assert near(change_of(base, merged.folder), wanted) < 1e-5
    layer = theirs(base, one, other, "ties_svd", svd_rank=32, density=0.3).get_submodule(f"base_model.model.{PATH}")
    assert near(change_of(base, merged.folder), layer.get_delta_weight("both").double()) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dare_drops_by_the_seed_and_keeps_the_mean(tmp_path, architecture):
    base = save_base(tmp_path / "base", architecture)
    save_adapter(tmp_path / "one", base, architecture, LoraConfig(rank=3, targets=("all-linear", TABLES[architecture])))

    def drawn(seed: int, drop: float, name: str) -> dict[str, torch.Tensor]:
        merged = merge(tmp_path / "one", tmp_path / name, method="dare", drop=drop, seed=seed)
        return load_file(Path(merged.folder) / "model.safetensors")

    before, whole = load_file(base / "model.safetensors"), drawn(0, 0.0, "whole")
    first, again, other = drawn(1, 0.75, "first"), drawn(1, 0.75, "again"), drawn(2, 0.75, "other")
    key = next(key for key in before if key.endswith(("gate_proj.weight", "mlp.c_fc.weight")))
    change, part = whole[key] - before[key], first[key] - before[key]
    assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])
    stays = part != 0
    assert 0.15 < float(stays.double().mean()) < 0.35
    torch.testing.assert_close(part[stays], 4 * change[stays], rtol=1e-3, atol=1e-6)


def test_the_rank_of_an_adapter_is_lowered_with_the_best_error_and_without_its_base(two, tmp_path):
    base, one, _ = two
    (base / "model.safetensors").unlink()
    lowered = combined(options_of([one], None, Combining(rank=1), 1.0), tmp_path / "low")
    (whole,) = changes(one)
    values = torch.linalg.svdvals(whole)
    layer = next(one for one in lowered.layers if one.layer == PATH)
    assert layer.error == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-5)
    assert float((changes(tmp_path / "low")[0] - whole).norm() / whole.norm()) == pytest.approx(layer.error, rel=1e-4)
    by_error = combined(options_of([one], None, Combining(error=0.4), 1.0), tmp_path / "by-error")
    assert all(layer.error <= 0.4 for layer in by_error.layers)
    assert any(layer.rank < 3 for layer in by_error.layers) and by_error.error <= 0.4


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (40, 40)])
def test_the_error_of_a_low_rank_is_that_of_eckart_and_young(shape):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(X)
    for rank in (1, 3, min(shape)):
        near = of_matrix(X, rank, None)
        best = float(values[rank:].norm()) if rank < len(values) else 0.0
        assert near.rank == rank and near.error == pytest.approx(best, abs=1e-7)
        assert float((X - near.B @ near.A).norm()) == pytest.approx(best, abs=1e-7)
        factored = of_factors(X, torch.eye(shape[1], dtype=torch.float64), rank, None)
        assert factored.error == pytest.approx(best, abs=1e-7)
    for error in (0.9, 0.3, 0.01):
        near = of_matrix(X, None, error)
        assert near.relative <= error
        assert near.rank == 0 or float(values[near.rank - 1 :].norm() / values.norm()) > error


def test_power_iterations_arrive_at_the_best_of_a_matrix_without_low_rank(monkeypatch):
    monkeypatch.setattr("rankwise.adapters.low_rank.SMALL", 100)
    X = torch.randn(300, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(X)
    near, best = of_matrix(X, 8, None), float(values[8:].norm())
    assert best <= near.error <= best * 1.001
    assert float((X - near.B @ near.A).norm()) == pytest.approx(near.error, rel=1e-9)


def test_what_cannot_be_combined_is_refused(two, tmp_path):
    base, one, _ = two
    save_adapter(tmp_path / "dora", base, "llama", LoraConfig(rank=2, dora=True))
    with pytest.raises(AdapterError, match="is DoRA"):
        merge([one, tmp_path / "dora"], tmp_path / "merged", weights=[1, 1])
    with pytest.raises(AdapterError, match="gives no low rank"):
        combined(options_of([one, one], [1, 1], Combining("ties"), 1.0), tmp_path / "joined")
    with pytest.raises(ConfigError, match="needs --rank or --error"):
        merge([one, one], tmp_path / "merged", weights=[1, 1], method="svd")
    with pytest.raises(ConfigError, match="all weights are 0"):
        merge([one, one], tmp_path / "merged", weights=[0, 0])
    for combining in (Combining("linear"), Combining("svd", rank=2)):
        with pytest.raises(AdapterError, match="nothing is left"):
            combined(options_of([one, one], [1, -1], combining, 1.0), tmp_path / "joined")
    assert not list(tmp_path.glob("*merged*")) and not list(tmp_path.glob("*joined*"))


def test_the_command_writes_an_adapter_and_its_errors(two, tmp_path):
    _, one, other = two
    words = ["merge", str(one), str(other), "--weights", "0.7,0.4", "--as-adapter", "--rank", "2"]
    result = CliRunner().invoke(app, [*words, "--to", str(tmp_path / "out"), "--json"])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["rank"] == 2 and 0 < facts["error"] < 1
    assert read_weights(tmp_path / "out").rank == 2
    shown = CliRunner().invoke(app, [*words, "--to", str(tmp_path / "out2")])
    assert "differs from the whole change by" in shown.stdout
