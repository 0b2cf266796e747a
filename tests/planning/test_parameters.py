"""A plan's counts are those of a model that was built and adapted, to the last parameter."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from kit.planning_models import SMALL, on_meta, shape_of, shape_of_small
from rankwise.adapters.formats.peft import write_peft
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import host_view
from rankwise.config.adapters import AdaLoraConfig, FullConfig, LoraConfig
from rankwise.errors import RankwiseError, TargetError
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.planning.parameters import parameters_of

QUERY_VALUE = {
    "gpt_neox": "query_key_value", "gpt2": "c_attn", "phi3": "qkv_proj", "bert": "query,value",
    "deberta-v2": "query_proj,value_proj", "t5": "q,v",
}  # fmt: skip
FEED_FORWARD = {
    "gptj": r"mlp\.fc_.*", "opt": "fc1,fc2", "bart": r"(en|de)coder\.layers\.\d\.fc[12]", "t5": r"DenseReluDense\.w.*",
    "bert": "intermediate.dense,output.dense", "deberta-v2": "intermediate.dense",
}  # fmt: skip
TABLES = {
    "gpt2": r".*w[tp]e", "gptj": "wte", "gpt_neox": "embed_in", "opt": "embed_tokens", "bert": ".*_embeddings",
    "deberta-v2": ".*_embeddings",
    "t5": "shared,embed_tokens,relative_attention_bias", "vit": "projection", "dinov2": "projection",
    "gemma": "lm_head", "gemma3_text": "lm_head", "bart": "model.decoder.layers.1.fc1",
}  # fmt: skip


def choices(family: str) -> dict[str, dict[str, object]]:
    """Four target choices."""
    return {
        "all-linear": {"targets": "all-linear"},
        "attention": {"targets": QUERY_VALUE.get(family, "q_proj,v_proj"), "rank_pattern": {r".*\.1\..*": 2}},
        "feed-forward": {"targets": FEED_FORWARD.get(family, r"mlp\..*"), "layers": "0,2" if family != "bart" else "0"},
        "tables": {"targets": "all-linear," + TABLES.get(family, "embed_tokens")},
    }


COUNTED = [name for name in SMALL if name not in ("qwen2", "qwen3, wide", "gemma2", "roberta")]
"""The others have the layers of Llama, Gemma and BERT."""
CASES = [(name, choice) for name in COUNTED for choice in choices(SMALL[name][0])]


def of_family(name: str, choice: str) -> dict[str, object]:
    return choices(SMALL[name][0])[choice]


@cache
def built(name: str) -> nn.Module:
    family, settings = SMALL[name]
    return on_meta({"model_type": family} | settings)


def adapted(name: str, spec: LoraConfig | AdaLoraConfig) -> tuple[AdapterSet | None, str | None]:
    try:
        return inject(built(name), spec), None
    except RankwiseError as error:
        return None, str(error)


def added(adapters: AdapterSet) -> dict[str, int]:
    return {
        path: sum(parameter.numel() for parameter in adapter.parameters())
        for path, adapter in adapters.adapters().items()
    }


@pytest.mark.parametrize("name", COUNTED)
def test_a_shape_has_every_weight_of_the_model_in_its_order(name: str) -> None:
    shape, model = shape_of_small(name), built(name)
    held = {
        path: sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for path, module in host_view(model).items()
    }
    found = {layer.path: layer.parameters for layer in shape.layers if layer.parameters}
    seen: set[int] = set()
    for path, module in host_view(model).items():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        held[path] = sum(parameter.numel() for parameter in own)
        seen.update(map(id, own))
    wanted = {path: count for path, count in held.items() if count}
    assert list(found.items()) == list(wanted.items())
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "choice"), CASES)
def test_lora_is_counted_as_it_is_injected(name: str, choice: str) -> None:
    settings = of_family(name, choice)
    spec = LoraConfig(rank=3, **settings)
    adapters, refused = adapted(name, spec)
    if adapters is None:
        with pytest.raises(TargetError) as caught:
            parameters_of(shape_of_small(name), spec)
        assert str(caught.value) == refused
        return
    try:
        counted = parameters_of(shape_of_small(name), spec)
        assert {planned.layer.path: planned.trainable for planned in counted.adapted} == added(adapters)
        assert [planned.layer.path for planned in counted.adapted] == list(adapters.layers)
        assert counted.trainable == sum(one.numel() for one in adapters.parameters())
        assert sum(many for many, _ in counted.by_leaf.values()) == len(adapters.layers)
    finally:
        adapters.remove()
    assert counted.total == sum(parameter.numel() for parameter in built(name).parameters())


@pytest.mark.parametrize("budget", ["2", "40 triplets", "4k parameters", "30KB"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3", "bert", "t5", "vit", "opt, narrow", "bart"])
def test_adalora_is_counted_as_it_is_injected(name: str, budget: str) -> None:
    spec = AdaLoraConfig(budget=budget, initial=2, targets=of_family(name, "all-linear")["targets"])
    adapters = inject(built(name), spec)
    try:
        counted = parameters_of(shape_of_small(name), spec)
        assert {planned.layer.path: planned.trainable for planned in counted.adapted} == added(adapters)
        assert counted.trainable == sum(one.numel() for one in adapters.parameters())
    finally:
        adapters.remove()


BUDGETS = ("2", "40 triplets", "4k parameters", "30KB", "1000 triplets")
LEFT = [(("llama", "gpt2", "gpt_neox")[(at + half) % 3], budget, unit)
        for half, unit in enumerate(("triplets", "parameters")) for at, budget in enumerate(BUDGETS)]  # fmt: skip
"""Each budget in each unit, over families in turn."""


@pytest.mark.parametrize(("name", "budget", "unit"), LEFT)
def test_what_is_left_is_what_training_leaves(name: str, budget: str, unit: str, tmp_path: Path) -> None:
    spec = AdaLoraConfig(budget=budget, budget_unit=unit, warmup=0, interval=1)
    adapters = inject(on_cpu(name), spec)
    trainable = TrainableAdaLora(adapters, spec, steps=3)
    left = parameters_of(shape_of_small(name), spec).left
    assert left is not None
    assert (left.first, left.amount) == (trainable.schedule.first, trainable.schedule.last)
    assert (left.unit, left.mean_rank) == (trainable.budget.unit, trainable.budget.mean_rank)
    optimizer = torch.optim.AdamW(trainable.parameter_groups())
    for step in range(3):
        for parameter in adapters.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(torch.randn(parameter.shape))
        optimizer.step()
        trainable.after_step(step, optimizer)
    write_peft(adapters, tmp_path / "adapter", base_model=name)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with safe_open(file, "np") as tensors:
        written = sum(tensors.get_tensor(key).size for key in tensors.keys())  # noqa: SIM118
    assert left.least <= written <= left.most
    assert left.least <= left.even <= left.most
    most = parameters_of(shape_of_small(name), spec).file_bytes
    assert most is not None
    assert file.stat().st_size <= most


def test_a_whole_model_trains_whole() -> None:
    counted = parameters_of(shape_of_small("t5"), FullConfig())
    assert counted.trainable == counted.total == sum(p.numel() for p in built("t5").parameters())
    assert counted.ratio == 1
    assert counted.file_bytes is None


def test_dora_is_counted_and_refused_alike() -> None:
    for targets in ("all-linear", "all-linear,wte"):
        spec = LoraConfig(rank=3, dora=True, targets=targets)
        if targets == "all-linear":
            model = on_cpu("gpt2")
            adapters = inject(model, spec)
            assert parameters_of(shape_of_small("gpt2"), spec).trainable == sum(
                one.numel() for one in adapters.parameters()
            )
        else:
            _, refused = adapted("gpt2", spec)
            with pytest.raises(TargetError) as caught:
                parameters_of(shape_of_small("gpt2"), spec)
            assert str(caught.value) == refused
    assert 'transformer.wte" (Embedding)' in str(refused)


def on_cpu(name: str) -> nn.Module:
    family, settings = SMALL[name]
    return on_meta({"model_type": family} | settings).to_empty(device="cpu").float()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("gpt2", {"targets": "all-linear,wte,wpe", "rank_pattern": {"c_fc": 1}}),
        ("gpt2", {"dora": True}),
        ("vit", {"targets": "all-linear,projection"}),
        ("t5", {"targets": r".*\.(q|wo),shared"}),
    ],
    ids=str,
)
def test_the_file_has_the_size_that_was_planned(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    spec = LoraConfig(rank=3, **settings)
    model = on_cpu(name)
    for parameter in model.parameters():  # whatever lay in memory is no weight that can be written
        torch.nn.init.ones_(parameter)
    write_peft(inject(model, spec), tmp_path / "adapter", base_model=name)
    counted = parameters_of(shape_of_small(name), spec)
    assert counted.file_bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert counted.file_bytes_half is not None
    assert counted.file_bytes - 2 * counted.written_bytes - 200 < counted.file_bytes_half < counted.file_bytes
    assert counted.exact


def test_eva_moves_ranks_and_so_is_counted_at_most() -> None:
    assert not parameters_of(shape_of_small("llama"), LoraConfig(start="eva")).exact


def test_gpt_3_at_rank_4() -> None:
    """The figures of LoRA's paper: 18.9M parameters in 192 layers, 37.7 MB in float16."""
    counted = parameters_of(shape_of("gpt3-175b"), LoraConfig(rank=4, targets="q_proj,v_proj"))
    assert counted.trainable == counted.written_bytes == 18_874_368
    assert len(counted.adapted) == 192
    assert 2 * counted.written_bytes == 37_748_736  # 37.7 MB in fp16
    assert counted.total == 174_604_283_904
    assert round(counted.ratio) == 9_251
