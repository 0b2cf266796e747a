"""An adapter can change only what it declares; read(write(x)) = x; what is broken is refused, changing nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import tiny_model
from rankwise.adapters.formats.peft import CONFIG, WEIGHTS, read_peft, write_peft
from rankwise.adapters.wrapper import AdapterWrapper
from rankwise.config.adapters import LoraConfig
from rankwise.errors import AdapterError, RankwiseError
from rankwise.methods.inject import inject

PREFIX = "base_model.model."
OTHER_WEIGHTS = "must not contain other weights"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def written(folder: Path, spec: LoraConfig | None = None) -> Path:
    adapters = inject(tiny_model("llama"), spec or LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    write_peft(adapters, folder, base_model="tiny")
    return folder


@pytest.mark.parametrize(
    "spec",
    [
        LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")),
        LoraConfig(
            rank=3, alpha=7.3, rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 1}, alpha_pattern={"k_proj": 0.7}
        ),
        LoraConfig(rank=2, targets=("all-linear", "embed_tokens", "lm_head"), layers=None, dropout=0.25),
    ],
)
def test_what_is_written_is_read_back_the_same(spec: LoraConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    written(tmp_path / "a", spec)
    adapters = read_peft(tiny_model("llama"), tmp_path / "a")
    stored = load_file(tmp_path / "a" / WEIGHTS)
    for path, adapter in adapters.adapters().items():
        by_pattern = [rank for key, rank in spec.rank_pattern.items() if path.endswith(key)]
        assert adapter.rank == (by_pattern or [spec.rank])[0]
        assert adapter.dropout == (0.0 if "embed" in path else spec.dropout)
    write_peft(adapters, tmp_path / "b", base_model="tiny")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / CONFIG).read_bytes() == (tmp_path / "b" / CONFIG).read_bytes()
    assert len(stored) == 2 * len(adapters.layers)


def test_a_second_adapter_is_read_over_the_first(tmp_path: Path) -> None:
    written(tmp_path)
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(rank=1, targets=("o_proj",)), name="first")
    assert read_peft(model, tmp_path, name="second", into=adapters) is adapters
    assert set(adapters.names) == {"first", "second"}
    assert adapters.active == ("second",)


Breaking = Callable[[dict[str, Any], dict[str, Tensor]], object]


def config(**changes: Any) -> Breaking:
    return lambda settings, tensors: settings.update(changes)


def tensor(key: str, change: Callable[[Tensor], Tensor]) -> Breaking:
    return lambda settings, tensors: tensors.update({key: change(tensors[key]).contiguous()})


def add(key: str, value: Tensor) -> Breaking:
    return lambda settings, tensors: tensors.update({key: value})


def drop(*parts: str) -> Breaking:
    def breaking(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if all(part in key for part in parts)]:
            del tensors[key]

    return breaking


A0, B0 = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
BROKEN: dict[str, tuple[Breaking, str]] = {
    "a base weight among the tensors": (add(f"{PREFIX}model.norm.weight", torch.full((32,), 9.0)), OTHER_WEIGHTS),
    "a base weight of an adapted layer": (add(f"{Q0}.base_layer.weight", torch.zeros(32, 32)), OTHER_WEIGHTS),
    "a key without the prefix": (add(A0.removeprefix(PREFIX), torch.zeros(4, 32)), "is not a LoRA factor"),
    "a DoRA magnitude": (add(f"{Q0}.lora_magnitude_vector.weight", torch.zeros(32)), "is not a LoRA factor"),
    "an AdaLoRA strength": (add(f"{Q0}.lora_E", torch.zeros(4, 1)), "is not a LoRA factor"),
    "a layer that is not there": (add(A0.replace("layers.0", "layers.9"), torch.zeros(4, 32)), "does not have"),
    "a norm as host": (add(f"{PREFIX}model.norm.lora_A.weight", torch.zeros(4, 32)), "cannot have an adapter"),
    "an embedding's key for a linear layer": (
        add(f"{Q0}.lora_embedding_A", torch.zeros(4, 32)),
        "does not fit a layer",
    ),
    "a letter that looks like another": (add(A0.replace("_A", "_\uff21"), torch.zeros(4, 32)), "is not a LoRA factor"),
    "NaN in B": (tensor(B0, lambda t: t * float("nan")), "NaN or infinity"),
    "infinity in A": (tensor(A0, lambda t: t / 0), "NaN or infinity"),
    "one B missing": (drop("layers.0", "q_proj", "lora_B"), "has only lora_A"),
    "a declared target without factors": (drop("v_proj"), 'target "v_proj" has no factors'),
    "no factor at all": (drop("lora"), "no factors"),
    "A and B exchanged": (lambda s, t: t.update({A0: t[B0].clone(), B0: t[A0].clone()}), "needs (4, 32)"),
    "a transposed A": (tensor(A0, lambda t: t.T), "needs (4, 32)"),
    "integers": (tensor(A0, lambda t: t.to(torch.int8)), "I8"),
    "another rank than declared": (config(r=8), "but rank 8"),
    "rank 0": (config(r=0), '"r" is 0'),
    "rank -1": (config(r=-1), '"r" is -1'),
    "rank as text": (config(r="4"), "\"r\" is '4'"),
    "a huge rank": (config(r=10**9), '"r" is 1000000000'),
    "rank true": (config(r=True), '"r" is true'),
    "alpha 0": (config(lora_alpha=0), '"lora_alpha" is 0'),
    "alpha NaN": (config(lora_alpha=float("nan")), '"lora_alpha" is nan'),
    "alpha 1e30": (config(lora_alpha=1e30), '"lora_alpha" is 1e+30'),
    "dropout 2": (config(lora_dropout=2), '"lora_dropout" is 2'),
    "a start that changed the base": (config(init_lora_weights="pissa"), 'init_lora_weights to "pissa"'),
    "a part that acts after a token": (config(alora_invocation_tokens=[1]), "sets alora_invocation_tokens"),
    "another method": (config(peft_type="EVIL"), "\"peft_type\" is 'EVIL'"),
    "DoRA without magnitudes": (config(use_dora=True), "has only lora_A and lora_B, no lora_magnitude_vector"),
    "use_dora as a word": (config(use_dora="maybe"), "\"use_dora\" is 'maybe'"),
    "a magnitude without use_dora": (add(f"{Q0}.lora_magnitude_vector", torch.ones(32)), "does not set use_dora"),
    "biases": (config(bias="all"), "\"bias\" is 'all'"),
    "saved modules": (config(modules_to_save=["norm"]), '"modules_to_save"'),
    "one of two targets misspelt": (config(target_modules=["q_proj", "v_prj"]), 'target "v_prj" has no factors'),
    "a factor that no target declares": (config(target_modules=["q_proj"]), "is not among the targets"),
    "a pattern that never ends": (config(rank_pattern={r"(.|.)+[xyz]": 4}), "takes too long"),
    "a rank pattern that says otherwise": (config(rank_pattern={"q_proj": 2}), "but rank 2"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_refused_by_name_and_the_base_stays_as_it_was(case: str, tmp_path: Path) -> None:
    breaking, said = BROKEN[case]
    written(tmp_path)
    settings, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    breaking(settings, tensors)
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    save_file(tensors, tmp_path / WEIGHTS)
    assert_refused(tmp_path, said)


def assert_refused(folder: Path, said: str) -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RankwiseError) as caught:
        read_peft(model, folder)
    assert said in str(caught.value) and len(str(caught.value)) < 2000
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(isinstance(module, AdapterWrapper) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (WEIGHTS, None, "is missing"),
        (WEIGHTS, b"", "is damaged"),
        (WEIGHTS, b"\xff" * 64, "is damaged"),
        (CONFIG, None, "there is no adapter_config.json beside it"),
        (CONFIG, b"{", "is not JSON"),
        (CONFIG, b"[" * 100_000, "is not JSON"),
        (CONFIG, b"[]", "no peft_type"),
        (CONFIG, b'{"lora_parameters": {}}', "mlx-lm"),
        (CONFIG, b'{"peft_type": "LORA"}', '"r" is required'),
    ],
)
def test_a_damaged_file_is_named(file: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    written(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    assert_refused(tmp_path, said)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-100])
    assert_refused(tmp_path, "is damaged")


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    written(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors[f"{Q0}.lora_B.weight"]
    tensors["base_model.model.model.norm.weight"] = torch.zeros(32)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError) as caught:
        read_peft(tiny_model("llama"), tmp_path)
    assert "has only lora_A" in str(caught.value) and "model.norm.weight" in str(caught.value)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    assert_refused(tmp_path, "is a pickle")
