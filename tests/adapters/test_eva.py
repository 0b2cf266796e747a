"""EVA's laws: A is what the SVD of a layer's real inputs says, the ranks add up, and the base is untouched."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from peft.tuners.lora.eva import get_eva_state_dict
from torch import nn
from transformers import AutoModelForCausalLM

from conftest import tiny_model
from kit.sampling import draws
from rankwise.adapters import eva
from rankwise.adapters.eva import Sketch, eva_choices, give_out, leading
from rankwise.commands.train import train
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.training import TrainingConfig
from rankwise.errors import ConfigError, TargetError
from rankwise.methods.inject import add_adapter, inject
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.records import RankRecord, StatusMessage

EVA = LoraConfig(rank=4, alpha=8, start="eva")


def batches(count=3, seed=0, shape=(3, 20)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 96, shape, generator=generator) for _ in range(count)]


def running(model, ids, masks=None):
    def run_batches(real):
        for index, one in enumerate(ids):
            real(None if masks is None else masks[index])
            model(input_ids=one)

    return run_batches


def inputs_of(model, ids, masks=None):
    """Each linear layer's input, all batches below each other, in float64."""
    caught, hooks = {}, []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            hooks.append(module.register_forward_pre_hook(
                lambda _, given, path=path: caught.setdefault(path, []).append(given[0])
            ))  # fmt: skip
    with torch.no_grad():
        for one in ids:
            model(input_ids=one)
    for hook in hooks:
        hook.remove()
    every = [torch.ones(one.shape, dtype=torch.bool) for one in ids] if masks is None else masks
    return {
        path: torch.cat([x[mask] for x, mask in zip(xs, every, strict=True)]).double() for path, xs in caught.items()
    }


def assert_same_up_to_sign(A, expected, tolerance=1e-4):
    assert (A.double() @ expected.T).abs().diagonal().min() > 1 - tolerance


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_a_is_the_exact_svd_of_all_inputs_where_the_sketch_holds_everything(architecture):
    # rho so large that no direction is ever cut away
    model, ids = tiny_model(architecture), batches()
    inputs = inputs_of(model, ids)
    choices = eva_choices(model, LoraConfig(rank=4, start="eva", eva_rho=64), running(model, ids))
    assert choices
    for choice in choices:
        A, X = choice.A, inputs[choice.path]
        torch.testing.assert_close(A @ A.T, torch.eye(choice.rank), atol=1e-5, rtol=0)
        _, S, V = torch.linalg.svd(X, full_matrices=False)
        gaps = (S[:-1] - S[1:]) > 1e-3 * S[0]  # a vector is only defined where its value stands apart
        apart = [i for i in range(choice.rank) if gaps[i] and (i == 0 or gaps[i - 1])]
        assert apart
        assert_same_up_to_sign(A[apart], V[apart])
        held = (X @ A.double().T).square().sum()  # all together, whatever stands close to each other
        assert held == pytest.approx(S[: choice.rank].square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_ranks_are_those_that_the_exact_spectra_give(architecture):
    model, ids = tiny_model(architecture), batches()
    inputs = inputs_of(model, ids)
    spec = LoraConfig(rank=4, alpha=8, start="eva", eva_rho=3)
    found = {choice.path: choice for choice in eva_choices(model, spec, running(model, ids))}
    paths = list(inject(tiny_model(architecture), LoraConfig(rank=4)).layers)
    costs = {path: sum(model.get_submodule(path).weight.shape) for path in paths}
    shares = [
        (values[i].item() / values.sum().item(), path)
        for path in paths
        for values in [torch.linalg.svdvals(inputs[path]).square()]
        for i in range(12)
    ]
    budget, best = 4 * sum(costs[path] for path in paths), []
    for _, path in sorted(shares, key=lambda share: -share[0]):
        if sum(costs[one] for one in [*best, path]) > budget:
            break
        best.append(path)
    exact = {path: best.count(path) for path in paths}
    # the sketch may mistake directions that are worth nearly the same
    assert sum(abs(exact[path] - (found[path].rank if path in found else 0)) for path in paths) <= 2
    spent = sum(choice.rank * costs[choice.path] for choice in found.values())
    assert budget - max(costs.values()) < spent <= budget
    assert all(choice.rank <= 12 for choice in found.values())
    assert all(choice.scale == 2 for choice in found.values())


def test_a_truncated_sketch_of_many_rows_is_nearly_the_svd():
    generator = torch.Generator().manual_seed(0)
    decay = torch.diag(0.9 ** torch.arange(200))
    X = torch.randn(3000, 200, generator=generator) @ decay
    sketch = None
    for rows in X.split(250):
        sketch = Sketch.plus(sketch, rows, 20, seed=0)
    assert sketch is not None and sketch.vectors.shape == (20, 200)
    S = torch.linalg.svdvals(X)
    kept = (X @ sketch.vectors[:10].T).square().sum() / S[:10].square().sum()
    assert kept > 0.999
    torch.testing.assert_close(sketch.values[:10], S[:10], rtol=2e-2, atol=0)
    assert sketch.size == pytest.approx(X.square().sum().item(), rel=1e-5)
    assert sketch.worth(20).sum() < 1
    assert torch.equal(leading(X, 20, 0)[1], leading(X, 20, 0)[1])
    assert not torch.equal(leading(X, 20, 0)[1], leading(X, 20, 1)[1])  # the path that is not exact was taken


@given(
    layers=st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), max_size=6).map(lambda v: sorted(v, reverse=True)),
            st.integers(1, 9),
        ),
        min_size=1, max_size=8,
    ),
    budget=st.integers(0, 300),
)  # fmt: skip
def test_the_best_get_a_rank_until_one_would_exceed_the_budget_and_ties_go_to_the_earlier_layer(layers, budget):
    tensors, costs = [torch.tensor(one, dtype=torch.float64) for one, _ in layers], [cost for _, cost in layers]
    ranks = give_out(tensors, costs, budget)
    assert ranks == give_out(tensors, costs, budget)
    # the same by hand: in order of worth, then of layer; what a layer keeps is the head of its list
    order, best, spent = sorted((-value, layer) for layer, (one, _) in enumerate(layers) for value in one), [], 0
    for _, layer in order:
        spent += costs[layer]
        if spent > budget:
            break
        best.append(layer)
    assert ranks == [best.count(index) for index in range(len(layers))]


@settings(max_examples=draws(20), deadline=None)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 6), rho=st.floats(1, 4))
def test_a_model_gets_no_more_parameters_than_without_eva_and_nearly_as_many(seed, rank, rho):
    model = tiny_model("llama", seed=seed)
    choices = eva_choices(model, LoraConfig(rank=rank, start="eva", eva_rho=rho), running(model, batches(seed=seed)))
    costs = {
        path: sum(layer.base_layer.weight.shape) for path, layer in inject(model, LoraConfig(rank=1)).layers.items()
    }
    spent, budget = sum(choice.rank * costs[choice.path] for choice in choices), rank * sum(costs.values())
    assert budget - max(costs.values()) < spent <= budget
    assert all(1 <= choice.rank <= round(rank * rho) for choice in choices)


def test_rho_of_one_gives_every_layer_what_was_asked():
    model = tiny_model("llama")
    spec = LoraConfig(rank=4, start="eva", eva_rho=1, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 5})
    choices = eva_choices(model, spec, running(model, batches()))
    assert [c.rank for c in choices] == [2 if "q_proj" in c.path else 4 for c in choices] and len(choices) == 14
    assert {c.scale for c in choices if "q_proj" in c.path} == {2.5}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_untrained_is_the_base_bit_for_bit(architecture):
    model = tiny_model(architecture)
    (ids,) = batches(1)
    base = model(input_ids=ids).logits
    choices = eva_choices(model, EVA, running(model, batches()))
    assert not any(module._forward_pre_hooks for module in model.modules())
    adapters = inject(model, EVA, choices=choices)
    for choice in choices:
        A, B = adapters.adapters()[choice.path].factors()
        assert choice.A is not None and torch.equal(A, choice.A) and not B.any() and A.requires_grad
        assert adapters.adapters()[choice.path].scale == pytest.approx(2)
    assert torch.equal(model(input_ids=ids).logits, base)
    assert set(adapters.layers) == {choice.path for choice in choices}


def test_padding_does_not_count():
    model = tiny_model("llama")
    lengths = [17, 5, 11]
    (ids,) = batches(1)
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    alone = eva_choices(model, EVA, running(model, [ids[i : i + 1, :length] for i, length in enumerate(lengths)]))
    masked = eva_choices(model, EVA, running(model, [ids], [mask]))
    other = torch.where(mask, ids, 7)
    assert_equal(eva_choices(model, EVA, running(model, [other], [mask])), masked)
    assert [choice.rank for choice in masked] == [choice.rank for choice in alone]
    whole = eva_choices(model, EVA, running(model, [ids]))
    assert not all(torch.equal(a.A[:1], b.A[:1]) for a, b in zip(whole, masked, strict=False))


def assert_equal(first, second):
    assert first == second and all(torch.equal(a.A, b.A) for a, b in zip(first, second, strict=True))


def test_the_same_seed_gives_the_same_choices():
    once, again = (
        eva_choices(m, EVA, running(m, batches()), seed=3) for m in (tiny_model("llama"), tiny_model("llama"))
    )
    assert_equal(once, again)


def test_layers_that_share_an_input_share_the_work(monkeypatch):
    calls = []
    plus = Sketch.plus
    monkeypatch.setattr(Sketch, "plus", lambda *given: calls.append(1) or plus(*given))
    model = tiny_model("llama")
    eva_choices(model, EVA, running(model, batches(3)))
    assert len(calls) == 3 * 2 * 4  # of each block: q k v, o, gate up, down
    model = tiny_model("gptj")
    calls.clear()
    eva_choices(model, EVA, running(model, batches(3)))
    assert len(calls) == 3 * 2 * 3  # q k v fc_in, out_proj, fc_out: not called one after another


class Reusing(nn.Module):
    """One layer used twice beside another that has its first input, and one whose input is changed in place."""

    def __init__(self):
        super().__init__()
        self.twice, self.once, self.late, self.unused = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = x.clone()
        y = self.twice(self.twice(x)) + self.once(x)
        x += 1
        return y + self.late(x)


def test_only_what_is_the_same_input_is_shared():
    torch.manual_seed(0)
    model, x = Reusing(), torch.randn(50, 6)
    spec = LoraConfig(rank=3, start="eva", targets=("twice", "once", "late", "unused"))
    found = {c.path: c for c in eva_choices(model, spec, lambda real: [model(x), model(2 * x)])}
    with torch.no_grad():
        seen = {
            "twice": torch.cat([x, model.twice(x), 2 * x, model.twice(2 * x)]),
            "once": torch.cat([x, 2 * x]),
            "late": torch.cat([x + 1, 2 * x + 1]),
        }
    assert set(found) == set(seen), "a layer that saw nothing is left out"
    for path, choice in found.items():
        _, _, V = torch.linalg.svd(seen[path], full_matrices=False)
        assert_same_up_to_sign(choice.A, V[: choice.rank].double())


def test_directions_that_no_input_has_get_no_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    x = torch.randn(30, 2) @ torch.randn(2, 16)
    (choice,) = eva_choices(model, LoraConfig(rank=5, start="eva", targets="0"), lambda real: model(x))
    assert choice.rank == 2
    with pytest.raises(TargetError, match="cannot compute initial values"):
        eva_choices(model, LoraConfig(start="eva", targets="0"), lambda real: model(0 * x))
    with pytest.raises(TargetError, match="cannot compute initial values"):
        eva_choices(model, LoraConfig(start="eva", targets="0"), lambda real: None)
    with pytest.raises(TargetError, match="NaN or infinity"):
        eva_choices(model, LoraConfig(start="eva", targets="0"), lambda real: model(x / 0))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv, self.linear = nn.Embedding(5, 4), nn.Conv2d(3, 4, 2), nn.Linear(4, 4)


def test_what_has_no_vectors_as_input_is_refused_by_name():
    spec = LoraConfig(start="eva", targets=("table", "conv", "linear"))
    with pytest.raises(TargetError, match=r'"table" \(Embedding\), "conv" \(Conv2d\)\. Leave them out'):
        eva_choices(Pictures(), spec, lambda real: None)


def test_a_layer_whose_padding_cannot_be_told_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))

    def run_batches(real):
        real(torch.tensor([[True, False], [True, True]]))
        model(torch.randn(3, 4))

    with pytest.raises(TargetError, match="which of its rows are padding"):
        eva_choices(model, LoraConfig(start="eva", targets="0"), run_batches)
    assert not model[0]._forward_pre_hooks


def test_what_was_in_training_mode_is_again_and_dropout_was_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)).train()
    x = torch.ones(9, 4)
    (choice,) = eva_choices(model, LoraConfig(rank=1, start="eva", targets="1"), lambda real: model(x))
    torch.testing.assert_close(choice.A, torch.full((1, 4), 0.5))
    assert model.training and model[0].training and not torch.is_inference(choice.A)


def test_a_second_adapter_starts_from_what_the_hosts_see():
    model = tiny_model("llama")
    plain = eva_choices(model, EVA, running(model, batches()))
    adapters = inject(model, LoraConfig(rank=2), name="first")
    choices = eva_choices(model, EVA, running(model, batches()))
    assert_equal(plain, choices)
    add_adapter(adapters, EVA, "second", choices=choices)
    assert adapters.active == ("second",)


def test_choices_and_the_start_belong_together():
    model = tiny_model("llama")
    choices = eva_choices(model, EVA, running(model, batches()))
    for spec, given_choices in ((EVA, None), (LoraConfig(), choices), (AdaLoraConfig(), choices)):
        with pytest.raises(TargetError, match="eva_choices"):
            inject(model, spec, choices=given_choices)


@pytest.mark.parametrize(
    "asked",
    [
        {"eva_rho": 3.0},
        {"eva_batches": 4},
        {"start": "uniform", "eva_rho": 1.0},
        {"start": "eva", "eva_rho": 0.9},
        {"start": "eva", "eva_batches": 0},
        {"start": "evil"},
    ],
)
def test_settings_that_mean_nothing_are_refused(asked):
    with pytest.raises(ConfigError):
        LoraConfig(**asked)


def test_the_subspace_is_that_of_peft_s_eva_where_inputs_have_no_mean():
    # peft subtracts the mean; here there is none, so both look for the same vectors
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 12))
    x = torch.randn(400, 24) * 0.7 ** torch.arange(24)
    x = torch.cat([x, -x])
    (ours,) = eva_choices(model, LoraConfig(rank=4, start="eva", eva_rho=2, targets="0"), lambda real: model(x))
    theirs = get_eva_state_dict(
        model, [x], PeftLoraConfig(r=4, target_modules=["0"], init_lora_weights="eva"),
        forward_fn=lambda module, batch: module(batch), prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )["0"]  # fmt: skip
    assert ours.rank == len(theirs) == 4
    assert_same_up_to_sign(ours.A, theirs.double(), 1e-3)


@pytest.fixture
def home(tmp_path):
    rows = [{"prompt": f"What is the capital of land {n}?", "completion": f"It is town {n}."} for n in range(15)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.chdir(tmp_path):
        yield tmp_path


def experiment(model, name="eva", **adapter):
    return Experiment(
        model=ModelConfig(name=str(model), dtype="float32"), data=DataConfig(path="rows.jsonl"), run=name,
        adapter=LoraConfig(**{"rank": 4, "alpha": 8, "start": "eva"} | adapter),
        training=TrainingConfig(steps=12, batch_size=4, learning_rate=0.02, max_batch_tokens=128),
    )  # fmt: skip


def test_a_run_with_eva_gives_an_adapter_that_peft_loads(home, tiny_folder):
    heard = []
    trained = train(experiment(tiny_folder), callback=heard.append)
    adapter = Path(trained.result)
    parts = trained.trainable.adapters.adapters()
    written = sum(parameter.numel() for part in parts.values() for parameter in part.parameters())
    costs = [sum(layer.base_layer.weight.shape) for layer in trained.trainable.adapters.layers.values()]
    assert max(part.rank for part in parts.values()) > 4 >= min(part.rank for part in parts.values())
    (told,) = [event for event in heard if isinstance(event, RankRecord)]
    assert {path: rank for path, rank in told.ranks.items() if rank} == {p: part.rank for p, part in parts.items()}
    assert (len(told.ranks), told.of, told.final, told.step) == (14, 2 * told.budget, True, 0)
    assert told.budget - max(costs) < written <= told.budget
    (said,) = [event.text for event in heard if isinstance(event, StatusMessage) and event.text.startswith("EVA read")]
    assert f"{len(parts)} of 14 layers have ranks" in said and f"{sum(told.ranks.values())} in all" in said
    assert said.endswith(f"{written:,} of {told.budget:,} parameters")
    metrics_log = read_metrics_log(trained.run.metrics)
    assert metrics_log[0]["kind"] == "ranks" and metrics_log[0]["ranks"] == told.ranks
    losses = [row["loss"] for row in metrics_log if row["kind"] == "step"]
    assert losses[-1] < losses[0]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), adapter).eval()
    layers = {
        path.removeprefix("base_model.model."): module
        for path, module in theirs.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {path: layer.r["default"] for path, layer in layers.items()} == {p: part.rank for p, part in parts.items()}
    assert all(layer.scaling["default"] == pytest.approx(2) for layer in layers.values())
    ids = torch.randint(3, 90, (1, 12))
    torch.testing.assert_close(theirs(input_ids=ids).logits, trained.model.module(input_ids=ids).logits)


def test_a_run_again_is_the_same_bytes(home, tiny_folder):
    first, second = (train(experiment(tiny_folder, name)).result for name in ("one", "two"))
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_as_many_micro_batches_are_looked_at_as_asked_and_never_more_than_a_pass(home, tiny_folder, monkeypatch):
    from rankwise.methods import lora

    seen = []
    look = lora.eva_choices
    monkeypatch.setattr(
        lora, "eva_choices",
        lambda model, spec, run, seed: look(model, spec, lambda real: run(lambda m: seen.append(m) or real(m)), seed),
    )  # fmt: skip
    train(experiment(tiny_folder, "two", eva_batches=2))
    assert len(seen) == 2
    seen.clear()
    train(experiment(tiny_folder, "all", eva_batches=1000))
    assert 15 <= sum(len(mask) for mask in seen) <= 16  # 15 rows, the last step of 4 filled up


def test_a_run_whose_targets_eva_cannot_take_leaves_nothing(home, tiny_folder):
    with pytest.raises(TargetError, match="embed_tokens"):
        train(experiment(tiny_folder, targets=("q_proj", "embed_tokens")))
    assert not list((home / "runs").rglob("adapter")) and not list((home / "runs").rglob("manifest.json"))


def test_rows_are_cut_into_pieces_that_fit(monkeypatch):
    torch.manual_seed(0)
    X = torch.randn(100, 8)
    whole = Sketch.plus(None, X, 8, 0)
    monkeypatch.setattr(eva, "ROWS_AT_ONCE", 7)
    pieces = Sketch.plus(None, X, 8, 0)
    torch.testing.assert_close(pieces.values, whole.values)
    assert_same_up_to_sign(pieces.vectors, whole.vectors.double())
