"""A token by compiled code has the logits of the model's own forward pass, and leaves the same keys and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from kit.adapted_models import unsettle
from kit.gguf_models import SETTINGS
from kit.quantized_models import quantize, wide_model
from rankwise.adapters.by_row import AdaptersByRow
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward.decode_step import MOST_ROWS, DecodeStep
from rankwise.inference.batch import GenerationBatch, GenerationRow
from rankwise.inference.kv_cache import cache_name, new_cache
from rankwise.kernels import decode
from rankwise.kernels.quantized.gguf import FORMATS
from rankwise.kernels.quantized.tensor import QuantizedTensor
from rankwise.methods.inject import inject

SHAPE = {
    "vocab_size": 96, "hidden_size": 80, "intermediate_size": 120, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
KINDS = {
    "llama": LlamaConfig(**SHAPE), "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True), "qwen3": Qwen3Config(**SHAPE, head_dim=12),
    "gemma": GemmaConfig(**SHAPE, head_dim=24),
}  # fmt: skip


def model_of(kind, dtype=torch.float32):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model.to(dtype).requires_grad_(False)


IDS = torch.tensor([[0, 0, 5, 7, 9], [4, 8, 1, 2, 3], [0, 6, 11, 20, 30]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
"""Padded on the left."""
NEXT = torch.tensor([[17], [40], [3]])


@torch.inference_mode()
def read(model, rows):
    """The cache of what was read of the first rows, and the tokens that come next."""
    cache = new_cache(model)
    ids, mask, next_ids = (one.repeat(6, 1)[:rows] for one in (IDS, MASK, NEXT))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, **{cache_name(model): cache})
    return cache, mask, next_ids


@torch.inference_mode()
def both(model, rows=3, steps=2, key=None):
    """Logits and caches of some steps by compiled code, and by the model."""
    (ours, mask, ids), (theirs, _, _) = read(model, rows), read(model, rows)
    step, made = DecodeStep.of(model), []
    assert step is not None
    for at in range(steps):
        mask = torch.cat([mask, mask.new_ones((rows, 1))], 1)
        positions = (mask.cumsum(-1) - 1)[:, -1:]
        logits = step(ids + at, positions, mask, ours, key)
        wanted = model(
            input_ids=ids + at, attention_mask=mask, position_ids=positions, **{cache_name(model): theirs}
        ).logits[:, -1].float()  # fmt: skip
        made.append((logits, wanted))
    caches = [[(one.keys, one.values) for one in cache.layers] for cache in (ours, theirs)]
    return made, caches


def apart(one, two):
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_caches_are_those_of_the_model(kind, rows):
    made, (ours, theirs) = both(model_of(kind), rows)
    assert all(apart(*pair) < 2e-6 for pair in made)
    for layer, wanted in zip(ours, theirs, strict=True):
        assert all(apart(*pair) < 2e-6 for pair in zip(layer, wanted, strict=True))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_bfloat16_it_is_at_least_as_near_to_float32_as_the_model_is(kind):
    model = model_of(kind, torch.bfloat16)
    made, _ = both(model)
    exact, _ = both(model.float())
    for (ours, theirs), (_, wanted) in zip(made, exact, strict=True):
        assert apart(ours, wanted) < apart(theirs, wanted)


@pytest.mark.parametrize("spec", [LoraConfig(rank=3, alpha=5), AdaLoraConfig(budget=3),
                                  LoraConfig(rank=20, targets=("q_proj", "down_proj"), layers=(1,))])  # fmt: skip
def test_adapters_that_are_active_are_added(spec):
    model = model_of("llama")
    base, _ = both(model)
    adapters = inject(model, spec)
    unsettle(adapters, 1)
    made, _ = both(model)
    assert all(apart(*pair) < 2e-6 for pair in made) and apart(made[0][0], base[0][0]) > 1e-3
    with adapters.base():
        assert apart(both(model)[0][0][0], base[0][0]) < 2e-6


def test_a_base_in_int8_is_read_as_it_lies_and_one_in_nf4_left_to_the_model():
    made, _ = both(quantize(model_of("llama"), "int8"))
    assert all(apart(*pair) < 2e-6 for pair in made)
    assert DecodeStep.of(quantize(wide_model(), "nf4")) is None


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_damage_in_sixteen_bits_is_seen(value):
    """A number that is none must not become one."""
    model = model_of("llama")
    layer = model.model.layers[0].mlp.down_proj
    damaged = layer.weight.detach().half()
    damaged[3, 7] = value
    rows = damaged.view(torch.uint8)
    layer.weight = nn.Parameter(QuantizedTensor(FORMATS["F16"], [rows], tuple(damaged.shape), torch.float32), False)
    (ours, theirs), *_ = both(model)[0]
    assert not ours.isfinite().all() and not theirs.isfinite().all()


HALVES = {"BF16": (), "Q6_K": (208,)} | dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))


def model_in(name, inner=512):
    """Of random blocks whose factors are small numbers, or of weights in int8."""
    torch.manual_seed(3)
    sizes = SHAPE | {"hidden_size": 256, "intermediate_size": inner, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).eval().requires_grad_(False)
    if name == "int8":
        return quantize(model, name)
    form, generator = FORMATS[name], np.random.default_rng(0)
    for layer in (model.model.layers[0].self_attn.v_proj, model.model.layers[0].mlp.down_proj):
        outputs, inputs = layer.weight.shape
        blocks = generator.integers(0, 256, (outputs * inputs // form.numbers, form.bytes), dtype=np.uint8)
        if name == "BF16":
            blocks = layer.weight.detach().bfloat16().view(torch.uint8).numpy()
        for at in HALVES.get(name, (0,)):
            small = generator.uniform(-0.002, 0.002, (len(blocks), 1)).astype(np.float16)
            blocks[:, at : at + 2] = small.view(np.uint8)
        rows = torch.from_numpy(blocks.reshape(outputs, -1))
        layer.weight = nn.Parameter(
            QuantizedTensor(form, [rows], (outputs, inputs), torch.float32), requires_grad=False
        )
    return model


@pytest.fixture
def unrounded(monkeypatch):
    """As processors compute that cannot multiply bytes."""
    monkeypatch.setattr(decode, "FLAGS", (*decode.FLAGS, "-DUNROUNDED"))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_a_gguf_file_are_read_as_they_lie(name, unrounded):
    made, _ = both(model_in(name))
    assert all(apart(*pair) < 3e-6 for pair in made)


@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("name", [*FORMATS, "int8"])
def test_inputs_are_rounded_to_sixteen_bits_at_most(name, rows):
    made, _ = both(model_in(name), rows)
    assert all(apart(*pair) < 6e-5 for pair in made)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_input_that_is_no_number_is_seen_where_inputs_are_rounded(value):
    """One of 64."""
    model = model_in("int8")
    model.model.layers[0].post_attention_layernorm.weight[7] = value
    (ours, theirs), *_ = both(model)[0]
    assert not ours.isfinite().any() and not theirs.isfinite().any()


@pytest.mark.parametrize("name", ["Q5_0", "Q6_K", "int8"])
def test_a_row_is_the_same_alone_and_in_company_to_the_bit(name):
    model, made = model_in(name), []
    for rows in (13, 1):
        cache, mask, ids = read(model, 13)
        cache.batch_select_indices(torch.arange(rows))
        mask = torch.cat([mask, mask.new_ones((13, 1))], 1)[:rows]
        with torch.inference_mode():
            made.append(DecodeStep.of(model)(ids[:rows], (mask.cumsum(-1) - 1)[:, -1:], mask, cache, None)[0])
    assert torch.equal(*made)


@pytest.mark.parametrize("inner", [96, 512])
def test_layers_of_several_widths_and_adapters_lie_in_one_model(inner):
    """Inputs of 96 are not rounded, those of 256 are."""
    model = model_in("int8", inner)
    unsettle(inject(model, LoraConfig(rank=3)), 1)
    made, _ = both(model)
    assert all(apart(*pair) < 6e-5 for pair in made)


VNNI = "avx512_vnni" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")


@pytest.mark.skipif(not VNNI, reason="this processor does not multiply bytes")
def test_bytes_are_multiplied_where_they_can_be(monkeypatch):
    model = model_in("Q8_0")
    ((rounded, _), _), _ = both(model)
    monkeypatch.setattr(decode, "FLAGS", (*decode.FLAGS, "-DUNROUNDED"))
    ((exact, _), _), _ = both(model)
    assert 1e-7 < apart(rounded, exact) < 6e-5


def test_what_it_does_not_know_is_left_to_the_model():
    assert (
        DecodeStep.of(AutoModelForCausalLM.from_config(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2)))
        is None
    )
    model = model_of("llama")
    inject(model, LoraConfig(rank=3, dora=True))
    cache, mask, ids = read(model, 1)
    mask = torch.cat([mask, mask.new_ones((1, 1))], 1)
    step = DecodeStep.of(model)
    assert step is not None and step(ids, mask.sum(-1, keepdim=True) - 1, mask, cache, None) is None
    assert cache.layers[0].keys.shape[2] == 5, "nothing was written"


@pytest.mark.parametrize("spoilt", ["cache", "autocast", "block", "norm"])
def test_what_does_not_fit_is_left_to_the_model(spoilt):
    model = model_of("llama")
    if spoilt == "block":
        model.model.layers[1].mlp = type(model.model.layers[1].mlp)(LlamaConfig(**SHAPE | {"intermediate_size": 200}))
    adapters = inject(model, LoraConfig(rank=3))
    if spoilt == "norm":
        adapters.add_heads(["norm"])
    if spoilt in ("block", "norm"):
        assert DecodeStep.of(model) is None
        return
    step, (cache, mask, ids) = DecodeStep.of(model), read(model, 1)
    mask = torch.cat([mask, mask.new_ones((1, 1))], 1)
    if spoilt == "cache":
        cache.layers[2].keys = cache.layers[2].keys.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=spoilt == "autocast"):
        assert step(ids, mask.sum(-1, keepdim=True) - 1, mask, cache, None) is None


def test_a_head_that_comes_with_a_later_adapter_is_seen():
    model = model_of("llama")
    adapters = inject(model, LoraConfig(rank=3))
    step = DecodeStep.of(model)
    assert step is not None and step.knows("first")
    adapters.add_heads(["lm_head"])
    assert step.knows("first") and not step.knows("later")


def test_rows_with_different_adapters_are_left_to_the_model():
    model = model_of("llama")
    adapters = inject(model, LoraConfig(rank=3))
    (name,) = adapters.names
    step, (cache, mask, ids) = DecodeStep.of(model), read(model, 2)
    mask = torch.cat([mask, mask.new_ones((2, 1))], 1)
    with AdaptersByRow(adapters).of([name, None]):
        assert step(ids, mask.sum(-1, keepdim=True) - 1, mask, cache, "mixed") is None


def test_families_with_compiled_code_are_these():
    others = {kind: AutoConfig.for_model(kind, vocab_size=96, **SETTINGS[kind]) for kind in set(SETTINGS) - {"llama3"}}
    models = {kind: AutoModelForCausalLM.from_config(settings) for kind, settings in (others | KINDS).items()}
    assert {kind for kind, model in models.items() if DecodeStep.of(model) is not None} == set(KINDS)


@pytest.mark.parametrize("more", [0, 1])
def test_more_rows_than_it_is_faster_for_are_left_to_the_model(more, monkeypatch):
    asked = []
    monkeypatch.setattr(DecodeStep, "__call__", lambda self, ids, *given: asked.append(len(ids)))
    batch = GenerationBatch(model_of("llama"))
    batch.begin([GenerationRow([5, 7]) for _ in range(MOST_ROWS + more)])
    batch.step()
    assert asked == [MOST_ROWS] * (1 - more)


@pytest.mark.parametrize("count", [1, 7, 16, 40])
def test_a_short_prompt_is_read_in_parts_over_weights_that_would_be_unpacked(count):
    """Behind what was read before, some of which nobody sees."""
    model = model_in("Q4_K")
    (ours, before, _), (theirs, _, _) = read(model, 1), read(model, 1)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 96, (1, count), generator=generator)
    mask = torch.cat([before, before.new_ones((1, count))], 1)
    positions = (mask.cumsum(-1) - 1)[:, -count:]
    step = DecodeStep.of(model)
    assert step is not None and step.most_tokens > 40 and DecodeStep.of(model_of("llama")).most_tokens == 1
    with torch.inference_mode():
        logits = step(ids, positions, mask, ours, None)
        wanted = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **{cache_name(model): theirs}
        ).logits[:, -1]
    assert apart(logits, wanted) < 6e-5 and logits.shape == wanted.shape
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert apart(layer.keys, other.keys) < 6e-5 and apart(layer.values, other.values) < 6e-5


def test_a_whole_prompt_is_read_so():
    model, asked = model_in("Q4_K"), []
    real = DecodeStep.__call__

    def counted(self, ids, *given):
        asked.append(ids.shape[1])
        return real(self, ids, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeStep, "__call__", counted)
        GenerationBatch(model).begin([GenerationRow(list(range(5, 45)))])
        GenerationBatch(model).begin([GenerationRow(list(range(5, 45))) for _ in range(2)])
    assert asked == [40]
