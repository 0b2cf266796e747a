"""Peft loads what we write and we load what it writes, with the same logits, over random ranks, alphas, patterns."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from conftest import ARCHITECTURES, tiny_model
from rankwise.adapters.formats.peft import WEIGHTS, read_peft, write_peft
from rankwise.config.adapters import LoraConfig
from rankwise.methods.inject import inject

IDS = torch.arange(48).reshape(2, 24) % 96
LEAVES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj"],
    "neox": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
    "gptj": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
    "bert": ["query", "key", "value", "attention.output.dense"],
}
EMBEDDINGS = {"llama": "embed_tokens", "gpt2": "wte", "neox": "embed_in", "gptj": "wte", "bert": "word_embeddings"}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def randomise(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def assert_alike(found: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor) -> None:
    """Within 1e-5 of the largest logit, where the adapter itself changes far more than that."""
    scale = wanted.abs().max()
    assert (wanted - base).abs().max() > 1e-3 * scale, "an adapter that changes nothing would prove nothing"
    assert (found - wanted).abs().max() <= 1e-5 * scale


def random_leaves(chance: random.Random, architecture: str) -> list[str]:
    """The last of the list always: it acts on the residual stream, where a query alone may change next to nothing."""
    *others, last = LEAVES[architecture]
    return [*chance.sample(others, chance.randint(0, len(others))), last]


def random_patterns(chance: random.Random, leaves: list[str]) -> tuple[dict[str, int], dict[str, float]]:
    ranks = {leaf: chance.randint(1, 9) for leaf in leaves if chance.random() < 0.4}
    alphas = {leaf: chance.choice([1, 3, 7.5, 24, 100]) for leaf in leaves if chance.random() < 0.4}
    return ranks, alphas


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_loads_ours(architecture: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"{architecture}{seed}")
    leaves = random_leaves(chance, architecture)
    ranks, alphas = random_patterns(chance, leaves)
    ranks |= {r"(layers|layer|h)\.1\..*": chance.randint(1, 9)} if chance.random() < 0.5 else {}
    spec = LoraConfig(
        rank=chance.randint(1, 8), alpha=chance.choice([1.0, 8.0, 13.0, 32.0]), targets=tuple(leaves),
        layers=chance.choice([None, (1,)]), rank_pattern=ranks, alpha_pattern=alphas,
    )  # fmt: skip
    model = tiny_model(architecture)
    base = logits(model)
    adapters = inject(model, spec)
    randomise(adapters.parameters())
    write_peft(adapters, tmp_path, base_model="tiny", task_type=None if architecture == "bert" else "CAUSAL_LM")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    assert_alike(logits(theirs), logits(model), base)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_we_load_peft_s(architecture: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"{architecture}{seed}")
    leaves = random_leaves(chance, architecture)
    ranks, alphas = random_patterns(chance, leaves)
    config = PeftLoraConfig(
        r=chance.randint(1, 8), lora_alpha=chance.choice([1, 8, 13, 32]), target_modules=leaves, rank_pattern=ranks,
        alpha_pattern=alphas, use_rslora=chance.random() < 0.5, lora_dropout=0.1,
    )  # fmt: skip
    theirs = get_peft_model(tiny_model(architecture), config).eval()
    randomise([parameter for name, parameter in theirs.named_parameters() if "lora_" in name])
    theirs.save_pretrained(tmp_path)
    model = tiny_model(architecture)
    base = logits(model)
    read_peft(model, tmp_path)
    assert_alike(logits(model.eval()), logits(theirs), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_means_the_same_layers_to_both(architecture: str) -> None:
    theirs = get_peft_model(tiny_model(architecture), PeftLoraConfig(target_modules="all-linear"))
    adapted = {
        name.removeprefix("base_model.model.") for name, module in theirs.named_modules() if hasattr(module, "lora_A")
    }
    assert set(inject(tiny_model(architecture)).layers) == adapted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapted_embedding_goes_both_ways(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    base = logits(model)
    adapters = inject(model, LoraConfig(rank=4, alpha=8, targets=(LEAVES[architecture][0], EMBEDDINGS[architecture])))
    randomise(adapters.parameters())
    (tmp_path / "ours").mkdir()
    task = None if architecture == "bert" else "CAUSAL_LM"
    write_peft(adapters, tmp_path / "ours", base_model="tiny", task_type=task)
    theirs = PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "ours").eval()
    assert_alike(logits(theirs), logits(model), base)
    # Peft stores the table and the head beside the factors; they are the base's own, so they are accepted and unused.
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    again = tiny_model(architecture)
    read_peft(again, tmp_path / "theirs")
    assert_alike(logits(again), logits(theirs), base)


def test_peft_s_own_reader_takes_every_key_of_our_config(tmp_path: Path) -> None:
    adapters = inject(tiny_model("llama"), LoraConfig(rank=4, alpha=8, targets=("q_proj",), layers=(1,)))
    write_peft(adapters, tmp_path, base_model="tiny")
    ours = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(ours) <= set(PeftLoraConfig().to_dict())
    assert ours["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert ours["lora_alpha"] == 8 and isinstance(ours["lora_alpha"], int)


VARIANTS = {
    "rank-stabilised": ({"scaling": "sqrt-rank"}, {"use_rslora": True}),
    "DoRA": ({"dora": True}, {"use_dora": True}),
    "DoRA, rank-stabilised": ({"dora": True, "scaling": "sqrt-rank"}, {"use_dora": True, "use_rslora": True}),
}
SHAPE = {"rank_pattern": {"c_proj": 3, "down_proj": 3}, "alpha_pattern": {"c_fc": 5.0, "v_proj": 5.0}}


def shape_of(architecture: str) -> dict[str, dict[str, float]]:
    leaves = {leaf.rpartition(".")[2] for leaf in LEAVES[architecture]}
    return {name: {leaf: value for leaf, value in each.items() if leaf in leaves} for name, each in SHAPE.items()}


def unsettle(model: nn.Module) -> None:
    """What training would have made of the adapter: magnitudes near where they start, the rest anywhere."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    lengths = [parameter for name, parameter in named if "magnitude" in name]
    starts = [parameter.detach().clone() for parameter in lengths]
    randomise([parameter for _, parameter in named])
    with torch.no_grad():
        for parameter, start in zip(lengths, starts, strict=True):
            parameter.add_(1).mul_(start)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_loads_our_variants(architecture: str, variant: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    base = logits(model)
    adapters = inject(model, LoraConfig(rank=6, alpha=9.0, **shape_of(architecture), **VARIANTS[variant][0]))
    unsettle(model)
    write_peft(adapters, tmp_path, base_model="tiny")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    assert_alike(logits(theirs), logits(model), base)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_we_load_peft_s_variants(architecture: str, variant: str, tmp_path: Path) -> None:
    spec, config = VARIANTS[variant]
    theirs = get_peft_model(
        tiny_model(architecture),
        PeftLoraConfig(r=6, lora_alpha=9, target_modules="all-linear", **shape_of(architecture), **config),
    ).eval()
    unsettle(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    model = tiny_model(architecture)
    base = logits(model)
    adapters = read_peft(model, tmp_path / "theirs")
    assert_alike(logits(model), logits(theirs), base)
    scales = {path: adapter.scale for path, adapter in adapters.adapters().items()}
    own = inject(tiny_model(architecture), LoraConfig(rank=6, alpha=9.0, **shape_of(architecture), **spec))
    assert scales == {path: adapter.scale for path, adapter in own.adapters().items()}
    write_peft(adapters, tmp_path / "ours", base_model="tiny")
    stored = [load_file(tmp_path / folder / WEIGHTS) for folder in ("theirs", "ours")]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][key], stored[1][key]) for key in stored[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dora_learns_as_peft_s_does(architecture: str, tmp_path: Path) -> None:
    """Gradients of A, B and the magnitude on one batch: the norm is a constant to both."""
    model = tiny_model(architecture)
    adapters = inject(model, LoraConfig(rank=4, alpha=6.0, dora=True))
    unsettle(model)
    write_peft(adapters, tmp_path, base_model="tiny")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), tmp_path, is_trainable=True).eval()
    for each in (model, theirs):
        shifted = each(input_ids=IDS).logits[:, :-1].flatten(0, 1)
        F.cross_entropy(shifted, IDS[:, 1:].flatten()).backward()
    wanted = dict(theirs.named_parameters())
    for path, adapter in adapters.adapters().items():
        names = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
        names["magnitude"] = "lora_magnitude_vector.default.weight"
        for ours, name in names.items():
            found, their = getattr(adapter, ours).grad, wanted[f"base_model.model.{path}.{name}"].grad
            assert their.abs().max() > 1e-7 and found.shape == their.shape
            assert (found - their).abs().max() <= 1e-5 * their.abs().max(), f"{path} {ours}"
