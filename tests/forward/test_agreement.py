"""A fast form is given up for another formula, or for rounding more than the plain one; not for rounding less."""

from __future__ import annotations

import sys
from dataclasses import replace

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import tiny_model
from kit.fast_forms import faults_of, plant
from kit.gguf_models import SETTINGS
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward import agreement as comparison
from rankwise.forward.agreement import agreement
from rankwise.forward.fused import FusedLoss, first_blocks
from rankwise.forward.reference import SupervisedLogits
from rankwise.kernels.regions import REGIONS
from rankwise.methods.inject import inject

SHORT = torch.bfloat16


@pytest.fixture
def model(monkeypatch):
    """In bfloat16, where rounding is made out to explain nothing."""
    usual = comparison._limits
    monkeypatch.setattr(comparison, "_limits", lambda dtype: (1e-9, 1e-9) if dtype == SHORT else usual(dtype))
    return tiny_model("llama").to(SHORT)


def noisy(x, share):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x)
    return x + share * x.detach().std() * noise if x.dtype == SHORT else x


def rough_plain(model, share):
    """A plain form that rounds more than this one does."""
    plain = SupervisedLogits(model)
    return lambda batch: noisy(plain(batch), share)


def rough_fast(monkeypatch, share):
    hidden = FusedLoss.hidden
    monkeypatch.setattr(FusedLoss, "hidden", lambda self, *given: noisy(hidden(self, *given), share))


def test_the_form_that_rounds_less_is_taken(model):
    adapters = inject(model, LoraConfig(rank=3))
    found = agreement(model, adapters.parameters(), rough_plain(model, 0.3))
    assert found.agrees and "the fused backend differs from float32 in logits by " in found.why


def test_the_form_that_rounds_more_is_given_up_and_the_distances_are_told(model, monkeypatch):
    adapters = inject(model, LoraConfig(rank=3))
    rough_fast(monkeypatch, 0.3)
    found = agreement(model, adapters.parameters(), SupervisedLogits(model))
    assert not found.agrees and not found.failed
    shares = [float(word.rstrip("%,")) for word in found.why.split() if word.rstrip(",").endswith("%")]
    ours, theirs = shares[0], shares[2]
    assert ours > 10 > theirs


def rough_gradients(monkeypatch, model, share, of):
    """Make the kernels' gradients in bfloat16 larger by a share, in parameters whose names have one of these words."""
    by_kernels = comparison._by_kernels
    learned = [(name, one.numel()) for name, one in model.named_parameters() if one.requires_grad]
    factors = torch.cat([torch.full((count,), 1 + share * any(word in name for word in of)) for name, count in learned])

    def rough(module, *given):
        computed = by_kernels(module, *given)
        return replace(computed, gradients=computed.gradients * factors) if is_short(module) else computed

    monkeypatch.setattr(comparison, "_by_kernels", rough)


def is_short(module):
    return next(module.parameters()).dtype == SHORT


def test_gradients_alone_decide_too(model, monkeypatch):
    adapters = inject(model, LoraConfig(rank=3))
    rough_gradients(monkeypatch, model, 0.5, [""])
    assert not agreement(model, adapters.parameters(), rough_plain(model, 0.05)).agrees


@pytest.fixture
def deep(monkeypatch):
    """Five blocks in bfloat16, where rounding explains a difference of gradients of 3 % and none of logits."""
    usual = comparison._limits
    monkeypatch.setattr(comparison, "_limits", lambda dtype: (1e-9, 0.03) if dtype == SHORT else usual(dtype))
    return tiny_model("llama", layers=5).to(SHORT)


@pytest.mark.parametrize(("share", "blocks", "agrees"), [
    (5.0, (0,), True), (5.0, (0, 1), True), (0.5, (0, 2, 4), False), (float("nan"), (0,), False),
])  # fmt: skip
def test_gradients_are_judged_in_the_median_block(deep, share, blocks, agrees, monkeypatch):
    """In a first block the rounding of all others adds up, and one token can make the most of it in either backend."""
    adapters = inject(deep, AdaLoraConfig(budget=3))
    rough_gradients(monkeypatch, deep, share, [f"layers.{block}." for block in blocks])
    found = agreement(deep, adapters.parameters(), rough_plain(deep, 0.3))
    assert found.agrees == agrees and "in the median block" in found.why


@pytest.mark.parametrize(("rough", "agrees"), [({0}, True), ({0, 2}, True), ({0, 1, 2}, False), (set(range(5)), False)])
def test_values_that_one_backend_rounds_badly_by_chance_do_not_decide(deep, rough, agrees, monkeypatch):
    """The fused backend is refused where it is farther from float32 in most of five comparisons."""
    adapters = inject(deep, LoraConfig(rank=3))
    by_kernels, calls = comparison._by_kernels, []

    def sometimes_rough(module, *given):
        computed = by_kernels(module, *given)
        if not is_short(module):
            return computed
        calls.append(len(calls))
        return replace(computed, gradients=computed.gradients * (1.5 if calls[-1] in rough else 1))

    monkeypatch.setattr(comparison, "_by_kernels", sometimes_rough)
    before = [one.clone() for one in adapters.parameters()]
    found = agreement(deep, adapters.parameters(), rough_plain(deep, 0.05))
    assert found.agrees == agrees and "comparisons" in found.why
    assert all(torch.equal(one, two) for one, two in zip(before, adapters.parameters(), strict=True))


@pytest.mark.parametrize(("logits", "gradients", "agrees"), [(1.2, 1.2, True), (1.3, 1.0, False), (1.0, 1.3, False)])
def test_a_backend_may_be_a_quarter_farther_by_chance(deep, logits, gradients, agrees):
    eager = comparison.Distance(0.04, 0.5)
    fused = comparison.Distance(logits * eager.logits, gradients * eager.gradients)
    assert comparison._nearer(deep, [comparison.Roundings(fused, eager)]).agrees == agrees


@pytest.mark.parametrize("fault", faults_of())
def test_a_formula_that_differs_is_found_however_roughly_the_plain_form_rounds(model, fault, monkeypatch):
    adapters = inject(model, LoraConfig(rank=3, alpha=30))
    plant(monkeypatch, *faults_of()[fault])
    found = agreement(model, adapters.parameters(), rough_plain(model, 10.0))
    assert not found.agrees and (found.failed or "in float32 they differ too" in found.why)


def test_where_memory_is_short_nothing_is_computed_in_float32(model, monkeypatch):
    adapters = inject(model, LoraConfig(rank=3))
    monkeypatch.setattr(comparison, "available_memory", lambda: 1000)
    found = agreement(model, adapters.parameters(), rough_plain(model, 0.3))
    assert not found.agrees and "0.0 GB are free" in found.why


def test_what_the_passes_left_behind_is_given_back_before_free_memory_is_asked_for(model, monkeypatch):
    """A process that keeps what it frees would seem to have no memory left."""
    adapters, free = inject(model, LoraConfig(rank=3)), [1000]
    monkeypatch.setattr(comparison, "give_back", lambda: free.append(10**12))
    monkeypatch.setattr(comparison, "available_memory", lambda: free[-1])
    assert "GB are free" not in agreement(model, adapters.parameters(), rough_plain(model, 0.3)).why


def test_the_model_is_left_as_it_was(model):
    adapters = inject(model, LoraConfig(rank=3))
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (value.dtype, value.data_ptr(), value.clone()) for name, value in everything.items()}
    agreement(model, adapters.parameters(), rough_plain(model, 0.3))
    for name, (dtype, place, value) in before.items():
        now = everything[name]
        assert now.dtype == dtype and now.data_ptr() == place and torch.equal(now, value), name


def test_in_float32_there_is_nothing_more_exact_to_ask(monkeypatch):
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(rank=3))
    rough_fast(monkeypatch, 0.0)
    plain = SupervisedLogits(model)
    found = agreement(model, adapters.parameters(), lambda batch: 1.1 * plain(batch))
    assert not found.agrees and found.why.startswith("in float32, the fused and the eager backend differ in logits by ")


def test_a_form_that_cannot_be_computed_is_told_as_that(model, monkeypatch):
    def broken(self, *given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(FusedLoss, "hidden", broken)
    found = agreement(model, inject(model, LoraConfig(rank=3)).parameters(), SupervisedLogits(model))
    assert found.failed and not found.agrees and "no such kernel" in found.why


def test_compiled_regions_are_not_compiled_for_float32_too(model, monkeypatch):
    seen = set()
    for region in REGIONS:
        monkeypatch.setattr(
            region, "compiled", lambda *given, plain=region.plain: seen.add(given[0].dtype) or plain(*given)
        )
    before = [region.compiled for region in REGIONS]
    found = agreement(model, inject(model, LoraConfig(rank=3)).parameters(), rough_plain(model, 0.3))
    assert found.agrees and seen == {SHORT} and [region.compiled for region in REGIONS] == before


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that was made inside, of each number format."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.found[one.dtype] = max(self.found.get(one.dtype, 0), one.numel())
        return made


@pytest.fixture
def wide(model, monkeypatch):
    monkeypatch.setattr(comparison, "LOGITS", 2**14)
    monkeypatch.setattr(comparison, "EXACT", 2**10)
    return tiny_model("llama", vocab=1024).to(SHORT)


def test_with_a_large_vocabulary_the_comparison_stays_small(wide):
    adapters = inject(wide, LoraConfig(rank=3))
    with Largest() as largest:
        agreement(wide, adapters.parameters(), rough_plain(wide, 0.3))
    assert largest.found[torch.float64] == 2**10
    assert max(largest.found[torch.float32], largest.found[SHORT]) < sum(comparison.PROBED) * 1024 / 2


@pytest.mark.parametrize("fault", [*faults_of()][::3])
def test_with_a_large_vocabulary_a_formula_that_differs_is_still_found(wide, fault, monkeypatch):
    adapters = inject(wide, LoraConfig(rank=3, alpha=30))
    plant(monkeypatch, *faults_of()[fault])
    assert not agreement(wide, adapters.parameters(), rough_plain(wide, 10.0)).agrees


def test_positions_are_of_every_document_and_the_last_of_all(wide):
    batch = comparison.probe(wide, comparison.PROBED, torch.Generator())
    chosen = comparison._at_fewer_positions(wide, batch).loss_mask[0]
    assert chosen.sum() == 16 and chosen[-1]
    assert all(part.any() for part in chosen.split(batch.lengths))


@pytest.mark.skipif(sys.platform != "linux", reason="no such memory to give back")
def test_the_float32_copy_is_no_memory_of_the_process_afterwards():
    """Of 160 MB in parts that are small enough for the allocator to keep them."""
    many = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000, bias=False).to(SHORT) for _ in range(40)))
    torch.empty(8_000_000)  # from here on the allocator keeps what is smaller
    before = psutil.Process().memory_info().rss
    with comparison._in_float32(many):
        beside = torch.ones(1_000_000)  # lies behind it
    assert psutil.Process().memory_info().rss - before < 40e6 and len(beside)


@pytest.mark.parametrize("spoiled", [None, float("nan"), float("inf")])
def test_a_distance_in_parts_is_the_distance(spoiled):
    numbers = torch.Generator().manual_seed(0)
    found, other = (torch.randn(3, comparison.EXACT // 2, generator=numbers) for _ in range(2))
    if spoiled is not None:
        found[2, 5] = spoiled
    share = comparison.share(found, other)
    expected = (found.double() - other.double()).norm().item() / other.double().norm().item()
    assert share == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("fault", faults_of().values(), ids=faults_of())
def test_a_wrong_formula_is_found_on_the_first_blocks_too(fault, monkeypatch):
    model = tiny_model("llama", layers=5)
    every = inject(model, LoraConfig(rank=3)).parameters()
    with first_blocks(model):
        learned = [one for one in every if one in set(model.parameters())]
        assert len(learned) == len(every) * 2 / 5 and len(model.model.layers) == 2
        assert agreement(model, learned, SupervisedLogits(model)).agrees
        plant(monkeypatch, *fault)
        assert not agreement(model, learned, SupervisedLogits(model)).agrees
    assert [*model.model.layers._modules] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("targets", "blocks"), [("all-linear", 6), (r"model\.layers\.6\.mlp\.up_proj", 7)], ids=["first full", "adapted"]
)
def test_the_first_blocks_have_one_of_each_kind(targets, blocks):
    settings = SETTINGS["gemma3_text"] | {"vocab_size": 96, "layer_types": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **settings))
    inject(model, LoraConfig(rank=3, targets=targets))
    assert [one.self_attn.is_sliding for one in model.model.layers] == [True] * 5 + [False, True]
    with first_blocks(model):
        assert len(model.model.layers) == blocks
    assert len(model.model.layers) == 7
