"""AdaLoRA's laws: what a triplet is, which ones live, and that nothing but the rank changes when the others go.

The numbers 1 to 15 are those of the acceptance list of the method's design.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import tiny_model
from kit.sampling import draws
from rankwise.adapters.adalora import AdaLoRA, FusedAdaLoRA
from rankwise.adapters.formats.peft import WEIGHTS, read_peft, rewrite, write_peft
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.importance import PASSES, Schedule, keep_best, keep_worth
from rankwise.adapters.lora import LoRA
from rankwise.adapters.triplets import Triplets
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.parameters import budget_of
from rankwise.errors import ConfigError, RunError, TrainingError
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject

RATE = 1e-2


class Net(nn.Module):
    """Layers of unequal widths, one of them used twice and one never."""

    def __init__(self):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        return self.down(torch.tanh(self.mid(torch.tanh(self.mid(torch.tanh(self.up(x)))))))


def net(seed=0):
    torch.manual_seed(seed)
    return Net().double()


def data(seed=0, rows=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def adapted(spec=None, *, model=None, steps=20):
    """In float64, with an optimizer that a trainer would use."""
    model = model or net()
    adapters = inject(model, spec or AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"]), seed=3)
    for adapter in adapters.adapters().values():
        adapter.double()
    trainable = TrainableAdaLora(adapters, adapters_spec(spec), steps)
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=RATE, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = RATE * group["rate"]
    return model, adapters, trainable, optimizer


def adapters_spec(spec):
    return spec or AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"])


def loss_of(model, seed):
    x, y = data(seed)
    return F.mse_loss(model(x), y)


def one_step(model, trainable, optimizer, step, *, batches=None):
    loss = sum((loss_of(model, seed) for seed in (batches or [step])), torch.zeros((), dtype=torch.float64))
    (loss / len(batches or [step])).backward()
    trainable.add_penalty()
    trainable.before_step()
    optimizer.step()
    plan = trainable.after_step(step, optimizer)
    optimizer.zero_grad(set_to_none=False)
    return loss.item(), plan


# 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "bert"])
@pytest.mark.parametrize("start", ["zero", "orthonormal", "gaussian"])
def test_injected_and_untrained_it_is_the_base_bit_for_bit(architecture, start):
    model = tiny_model(architecture)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=ids)[0]
    adapters = inject(model, AdaLoraConfig(budget=3, start=start))
    assert torch.equal(model(input_ids=ids)[0], before)
    assert all(not adapter.delta().any() for adapter in adapters.adapters().values())
    assert torch.equal(adapters.remove()(input_ids=ids)[0], before)


def test_started_at_zero_its_first_step_is_lora_s():
    """Of the LoRA whose A is Q."""
    torch.manual_seed(0)
    spec = AdaLoraConfig(budget=2, initial=1, targets=["up", "mid", "down"])
    model, adapters, trainable, optimizer = adapted(spec)
    twin = inject(net(), LoraConfig(rank=2, alpha=2 * spec.scale, targets=["up", "mid", "down"]))
    for path, lora in twin.adapters().items():
        lora.double()
        lora.A.data = adapters.adapters()[path].Q.detach().clone()
        assert (adapters.adapters()[path].delta() == 0).all()
    loss_of(twin.model, 0).backward()
    torch.optim.AdamW(twin.parameters(), lr=RATE, weight_decay=0.0).step()
    one_step(model, trainable, optimizer, 0)
    for path, lora in twin.adapters().items():
        assert lora.delta().any()
        torch.testing.assert_close(adapters.adapters()[path].delta(), lora.delta(), rtol=1e-5, atol=1e-9)


def test_a_checkpoint_of_the_earlier_start_is_refused():
    _, _, trainable, optimizer = adapted()
    state = trainable.state_dict()
    trainable.load_state_dict(state, optimizer)
    earlier = replace(state, facts={name: value for name, value in state.facts.items() if name != "start"})
    with pytest.raises(RunError, match="of an earlier version"):
        trainable.load_state_dict(earlier, optimizer)


@pytest.mark.parametrize("looked_up", [False, True])
def test_started_at_zero_its_rows_are_orthogonal_and_as_long_as_lora_s(looked_up):
    generator = torch.Generator().manual_seed(0)
    lora = LoRA(500, 400, 300, 1.0, 0.0, generator, looked_up=looked_up)
    triplets = AdaLoRA(500, 400, 300, 1.0, 0.0, generator, start="zero", looked_up=looked_up)
    rows, zero = (triplets.P, triplets.Q) if looked_up else (triplets.Q, triplets.P)
    gram = (rows @ rows.T).detach()
    lengths = (lora.B.T if looked_up else lora.A).detach().norm(dim=1)
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(300), rtol=1e-4, atol=1e-4 * gram[0, 0].item())
    assert gram[0, 0].sqrt().item() == pytest.approx(lengths.mean().item(), rel=0.01)
    assert not zero.any() and (triplets.strength == 1).all()


def test_a_table_starts_with_zeros_where_it_is_read():
    adapters = inject(tiny_model("llama"), AdaLoraConfig(budget=2, targets=["embed_tokens"]))
    (table,) = adapters.adapters().values()
    assert not table.Q.any() and table.P.any()


def test_a_penalty_where_rows_start_at_zero_is_refused():
    with pytest.raises(ConfigError, match=r"there is no penalty.*orthogonality is 0\.001.* set start to orthonormal"):
        AdaLoraConfig(orthogonality=0.001)
    with pytest.raises(ConfigError, match="penalty is reference"):
        AdaLoraConfig(penalty="reference")


# 2


def test_a_triplet_s_three_gradients_agree_along_themselves():
    model, _adapters, trainable, optimizer = adapted()
    for step in range(3):
        one_step(model, trainable, optimizer, step)
    loss_of(model, 9).backward()
    for part in trainable.triplets.parts:
        along_p = (part.P * part.P.grad).sum(1)
        along_q = (part.Q * part.Q.grad).sum(1)
        along_strength = part.strength * part.strength.grad
        assert along_strength.abs().max() > 0
        torch.testing.assert_close(along_p, along_strength)
        torch.testing.assert_close(along_q, along_strength)


# 3


@pytest.mark.parametrize("form", ["paper", "reference"])
@pytest.mark.parametrize("even", [True, False])
def test_the_penalty_s_gradient_is_autograd_s(form, even):
    generator = torch.Generator().manual_seed(0)
    ranks = [3, 3, 3] if even else [3, 0, 5]
    shapes = [(8, 16), (16, 16), (16, 4)]
    parts = [
        AdaLoRA(inside, outside, min(rank, outside), 1.0, 0.0, generator, start="gaussian").double()
        for (inside, outside), rank in zip(shapes, ranks, strict=True)
    ]
    for part in parts:
        part.P.data, part.Q.data = part.P.data * 20, part.Q.data * 20
    triplets = Triplets(parts)
    triplets.add_penalty(0.3, form)
    for part in parts:
        total = torch.zeros((), dtype=torch.float64)
        leaves = [part.P.detach().clone().requires_grad_(), part.Q.detach().clone().requires_grad_()]
        for matrix in leaves:
            excess = matrix @ matrix.T - torch.eye(len(matrix), dtype=torch.float64)
            squares = excess.square().sum()
            weight = 0.3 if form == "paper" else 0.3 / (2 * len(parts))
            total = total + weight * (squares if form == "paper" else squares.sqrt())
        if part.rank:
            for wanted, found in zip(torch.autograd.grad(total, leaves), (part.P.grad, part.Q.grad), strict=True):
                torch.testing.assert_close(found, wanted)


def test_at_exact_orthogonality_the_penalty_is_still():
    part = AdaLoRA(8, 16, 3, 1.0, 0.0, torch.Generator().manual_seed(0), start="orthonormal").double()
    for form in ("paper", "reference"):
        triplets = Triplets([part])
        triplets.add_penalty(1.0, form)
        assert triplets.vectors.grad.isfinite().all()
        assert form == "reference" or triplets.vectors.grad.abs().max() < 1e-5


# 4, 5


SCORES = st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0, 2.0, 5.0]), min_size=1, max_size=40)


@settings(max_examples=draws(200), deadline=None)
@given(scores=SCORES, share=st.floats(0, 1))
def test_exactly_the_budget_is_kept_whatever_is_equal(scores, share):
    budget = round(share * len(scores))
    values = torch.tensor(scores)
    kept = keep_best(values, budget)
    assert int(kept.sum()) == budget
    if 0 < budget < len(scores):
        assert values[kept].min() >= values[~kept].max()
    assert torch.equal(kept, keep_best(values, budget)), "equal scores are parted the same way each time"


@settings(max_examples=draws(200), deadline=None)
@given(
    scores=SCORES, costs=st.lists(st.integers(1, 50), min_size=40, max_size=40), share=st.floats(0, 1),
    layers=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    entries=st.lists(st.integers(0, 30), min_size=5, max_size=5),
)  # fmt: skip
def test_what_is_worth_most_for_its_cost_is_kept_within_the_budget(scores, costs, share, layers, entries):
    values, prices = torch.tensor(scores), torch.tensor(costs[: len(scores)], dtype=torch.float32)
    places, dues = torch.tensor(layers[: len(scores)]), torch.tensor(entries)
    budget = int(share * (float(prices.sum()) + sum(entries)))
    kept = keep_worth(values, prices, budget, places, dues)
    assert torch.equal(kept, keep_worth(values, prices, budget, places, dues))

    def spent(mask):
        return float(prices[mask].sum()) + sum(entries[layer] for layer in set(places[mask].tolist()))

    assert spent(kept) <= budget
    # the same one by one: what does not fit is passed over, what comes behind it may; so many gaps at most
    by_hand, gaps = torch.zeros_like(kept), 0
    for place in (values / prices).argsort(descending=True, stable=True).tolist():
        more = by_hand.clone()
        more[place] = True
        if spent(more) <= budget:
            by_hand = more
        else:
            gaps += 1
    if gaps < PASSES:
        assert torch.equal(kept, by_hand)
    if any(price + entries[layer] <= budget for price, layer in zip(prices.tolist(), places.tolist(), strict=True)):
        assert kept.any(), "a budget that one triplet fits in is not left unused"


@settings(max_examples=draws(100), deadline=None)
@given(
    steps=st.integers(1, 400), warmup=st.floats(0, 0.5), final=st.floats(0, 0.49), last=st.integers(1, 50),
    more=st.integers(0, 50), interval=st.one_of(st.just("auto"), st.integers(1, 20)),
)  # fmt: skip
def test_the_budget_starts_at_the_first_ends_at_the_last_and_never_rises(steps, warmup, final, last, more, interval):
    spec = AdaLoraConfig(warmup=warmup, final=final, interval=interval)
    schedule = Schedule.of(spec, last + more, last, steps)
    budgets = [schedule.budget(step) for step in range(steps)]
    assert all(later <= earlier for earlier, later in pairwise(budgets))
    assert budgets[-1] == last, "the run ends inside the final phase, however short it is"
    assert all(last <= budget <= last + more for budget in budgets)
    if schedule.decided > 0:
        assert budgets[0] == last + more
    assert not any(schedule.is_due(step) for step in range(steps) if step >= schedule.decided)


def test_the_budget_is_the_authors_and_not_the_paper_s_misprint():
    schedule = Schedule(first=216, last=144, warmup=100, final=300, steps=1000, interval=1)
    assert [schedule.budget(step) for step in (0, 100, 700, 999)] == [216, 216, 144, 144]
    assert schedule.budget(400) == int(144 + 72 * 0.5**3)


@pytest.mark.parametrize(
    ("budget", "initial", "targets"),
    [("2", 1, ["up", "mid", "down"]), ("3", 1.33, ["mid"]), ("1", 4, ["down"]), ("4 triplets", 3, ["up", "mid"]),
     ("1 triplets", 2, ["up", "mid", "down"])],
)  # fmt: skip
def test_at_the_end_exactly_the_budget_lives(budget, initial, targets):
    spec = AdaLoraConfig(budget=budget, initial=initial, targets=targets, warmup=0.2, final=0.3)
    model, adapters, trainable, optimizer = adapted(spec, steps=12)
    asked = trainable.schedule.last
    kind, amount = spec.parsed_budget
    assert asked == (round(amount * len(targets)) if kind == "rank" else amount)
    seen = []
    for step in range(12):
        _, plan = one_step(model, trainable, optimizer, step)
        if trainable.schedule.is_due(step):
            assert int(trainable.alive.sum()) == trainable.schedule.budget(step)
        seen.append(plan)
    assert trainable.final
    assert sum(adapter.rank for adapter in adapters.adapters().values()) == asked
    assert [plan.final for plan in seen if plan is not None][-1]


@pytest.mark.parametrize("budget", ["60 parameters", "100 parameters", "1.2k parameters"])
def test_a_budget_of_parameters_is_never_exceeded_and_nearly_spent(budget):
    spec = AdaLoraConfig(budget=budget, initial=3, targets=["up", "mid", "down"])
    model, adapters, trainable, optimizer = adapted(spec, steps=12)
    for step in range(12):
        one_step(model, trainable, optimizer, step)
    adapters.settle()
    spent = sum(parameter.numel() for parameter in adapters.parameters())
    limit = min(spec.parsed_budget[1], trainable.schedule.first)
    assert limit - 32 < spent <= limit


@pytest.mark.parametrize(
    ("budget", "targets", "least"),
    [
        ("0.2", ["down"], None), ("10 parameters", ["mid"], "parameters"), ("0.2kB", ["mid"], "bytes"),
        ("10B", ["mid"], "bytes"), ("0.2kB", ["up", "mid", "down"], "bytes"),
    ], ids=str,
)  # fmt: skip
def test_a_budget_that_is_not_one_triplet_is_refused_and_the_smallest_told(budget, targets, least):
    with pytest.raises(ConfigError, match=r"is less than one triplet for these [13] layers") as caught:
        inject(net(), AdaLoraConfig(budget=budget, targets=targets))
    if least is not None:
        size = str(caught.value).partition("the smallest triplet has ")[2].removesuffix(f" {least}.")
        enough = {"parameters": "{} parameters", "bytes": "{}B"}[least].format(int(size.replace(",", "")))
        spec = AdaLoraConfig(budget=enough, targets=targets)
        model, adapters, trainable, optimizer = adapted(spec, steps=3)
        for step in range(3):
            one_step(model, trainable, optimizer, step)
        assert sum(adapter.rank for adapter in adapters.adapters().values()) == 1


def test_a_budget_is_what_the_cheapest_layer_costs_and_no_mixture_of_several():
    path, name = "x" * 120, "a"
    with pytest.raises(ConfigError, match="the smallest triplet has"):
        budget_of(AdaLoraConfig(budget="536B"), [72, 68], [0, 1], [name, path])
    least = 4 * 72 + 64 + 228
    assert budget_of(AdaLoraConfig(budget=f"{least}B"), [72, 68], [0, 1], [name, path]).last == 72 + 57
    with pytest.raises(ConfigError, match=f"has {least} bytes"):
        budget_of(AdaLoraConfig(budget=f"{least - 1}B"), [72, 68], [0, 1], [name, path])


def test_a_run_of_one_step_tells_its_triplets_apart():
    spec = AdaLoraConfig(budget="4 triplets", initial=3, targets=["up", "mid", "down"])
    model, _, trainable, optimizer = adapted(spec, steps=1)
    before = [part.P.clone() for part in trainable.triplets.parts]
    _, plan = one_step(model, trainable, optimizer, 0)
    assert plan.final and sum(plan.ranks.values()) == 4
    first = [torch.equal(part.P, P[: part.rank]) for part, P in zip(trainable.triplets.parts, before, strict=True)]
    assert not all(first), "the order of layers did not decide"


@pytest.mark.parametrize("budget", ["0", "-1", "two", "3 GBs", "", "1e3", "5000", "9" * 400 + " triplets"])
def test_a_budget_that_is_none_is_told(budget):
    with pytest.raises(ConfigError, match=r'setting "budget" is .*: a'):
        AdaLoraConfig(budget=budget)


# 6


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["vectors", "strengths"])
def test_a_step_that_is_skipped_leaves_the_averages_as_they_were(bad, where):
    # a scaler skips the optimizer's step, and the loop calls `stepped` all the same
    model, _, trainable, optimizer = adapted()
    for step in range(3):
        one_step(model, trainable, optimizer, step)
    before = [value.clone() for value in (*trainable.importance.averages, *trainable.importance.uncertainties)]
    loss_of(model, 3).backward()
    getattr(trainable.triplets, where).grad[0] = bad
    trainable.after_step(3, optimizer)
    optimizer.zero_grad(set_to_none=False)
    after = (*trainable.importance.averages, *trainable.importance.uncertainties)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    one_step(model, trainable, optimizer, 4)
    assert all(value.isfinite().all() for value in after)
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("cut", ["model.zero_grad", "optimizer.zero_grad", "model.float"])
def test_gradients_that_were_cut_off_from_the_buffers_are_told_and_not_trained_on(cut):
    # elsewhere each step would go on with the gradient of the last one that arrived
    model, _, trainable, optimizer = adapted()
    one_step(model, trainable, optimizer, 0)
    match cut:
        case "model.zero_grad":
            model.zero_grad()
        case "optimizer.zero_grad":
            optimizer.zero_grad()
        case _:
            model.float().double()
    loss_of(model, 1).backward()
    with pytest.raises(TrainingError, match="zero_grad\\(set_to_none=False\\)"):
        trainable.add_penalty()


# 7


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_k_micro_batches_are_one_batch_for_scores_and_penalty(form):
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], penalty=form, start="gaussian")
    x = torch.cat([data(seed)[0] for seed in range(4)])
    y = torch.cat([data(seed)[1] for seed in range(4)])
    found = []
    for micro in (1, 4):
        model, _adapters, trainable, optimizer = adapted(spec)
        for step in range(8):
            for part_x, part_y in zip(x.chunk(micro), y.chunk(micro), strict=True):
                (F.mse_loss(model(part_x), part_y) / micro).backward()
            trainable.add_penalty()
            optimizer.step()
            trainable.after_step(step, optimizer)
            optimizer.zero_grad(set_to_none=False)
        found.append((trainable.importance.scores(trainable.triplets), trainable.alive))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


# 9


@pytest.mark.parametrize("missed", [0, 1, 5])
def test_the_ranks_are_decided_also_when_the_very_step_was_skipped(missed):
    model, adapters, trainable, optimizer = adapted(steps=20)
    for step in range(20):
        if trainable.schedule.decided <= step < trainable.schedule.decided + missed:
            continue
        one_step(model, trainable, optimizer, step)
    assert trainable.final
    assert sum(adapter.rank for adapter in adapters.adapters().values()) == 6


def test_without_a_final_phase_they_are_decided_at_the_last_step():
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], final=0)
    model, _adapters, trainable, optimizer = adapted(spec, steps=6)
    for step in range(6):
        assert not trainable.final
        one_step(model, trainable, optimizer, step)
    assert trainable.final


# 10


def masked_step(model, trainable, optimizer, step, frozen):
    """The plain form of a final phase: what is retired takes no part in anything."""
    loss_of(model, step).backward()
    for part, mask in zip(trainable.triplets.parts, frozen, strict=True):
        for matrix in (part.P, part.Q):
            rows = matrix.detach()[mask]
            if len(rows):
                excess = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)
                matrix.grad[mask] += 4 * trainable.config.orthogonality * excess @ rows
            matrix.grad[~mask] = 0
        part.strength.grad[~mask] = 0
    norm = torch.nn.utils.clip_grad_norm_([trainable.triplets.vectors, trainable.triplets.strengths], 0.05)
    optimizer.step()
    with torch.no_grad():
        for part, mask in zip(trainable.triplets.parts, frozen, strict=True):
            part.strength[~mask] = 0
    optimizer.zero_grad(set_to_none=False)
    return norm


def shrunk_step(model, trainable, optimizer, step):
    loss_of(model, step).backward()
    trainable.add_penalty()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
    trainable.before_step()
    optimizer.step()
    trainable.after_step(step, optimizer)
    optimizer.zero_grad(set_to_none=False)
    return norm


def test_training_after_the_shrink_is_masked_training():
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], shrink=True)
    wide = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], shrink=False)
    x, _ = data(99)
    shrunk, _, shrunk_trainable, shrunk_optimizer = adapted(spec, steps=20)
    masked, _, masked_trainable, masked_optimizer = adapted(wide, steps=20)
    for step in range(13):
        one_step(shrunk, shrunk_trainable, shrunk_optimizer, step)
        one_step(masked, masked_trainable, masked_optimizer, step)
    assert shrunk_trainable.final and masked_trainable.final
    assert len(shrunk_trainable.triplets) == 6 and len(masked_trainable.triplets) == 12
    assert torch.allclose(shrunk(x), masked(x), atol=1e-13)
    frozen = masked_trainable.alive.split(masked_trainable.triplets.ranks)
    with torch.no_grad():  # what is retired does not take part any more, its momentum neither
        for group in ("exp_avg", "exp_avg_sq"):
            masked_optimizer.state[masked_trainable.triplets.strengths][group].mul_(masked_trainable.alive)
            rows = masked_optimizer.state[masked_trainable.triplets.vectors][group]
            kept = masked_trainable.alive
            for view, mask in zip(masked_trainable.triplets.rows(rows), row_masks(masked_trainable, kept), strict=True):
                view.mul_(mask[:, None])
    for step in range(13, 20):
        one = shrunk_step(shrunk, shrunk_trainable, shrunk_optimizer, step)
        other = masked_step(masked, masked_trainable, masked_optimizer, step, frozen)
        torch.testing.assert_close(one, other)
        assert torch.allclose(shrunk(x), masked(x), atol=1e-12)


def row_masks(trainable, kept):
    triplets = trainable.triplets
    rows = torch.zeros(2 * len(triplets), dtype=torch.bool)
    rows[triplets._row_of_p], rows[triplets._row_of_q] = kept, kept
    return rows.split([len(view) for view in triplets.rows(triplets.vectors)])


def test_the_shrink_takes_the_same_rows_of_the_optimizer_s_averages():
    model, _adapters, trainable, optimizer = adapted(steps=20)
    for step in range(12):
        one_step(model, trainable, optimizer, step)
    state = optimizer.state[trainable.triplets.vectors]
    assert state["exp_avg"].numel() == trainable.triplets.vectors.numel()
    for parameter in (trainable.triplets.vectors, trainable.triplets.strengths):
        optimizer.state[parameter]["exp_avg_sq"].copy_(parameter.data)
    kept = torch.rand(len(trainable.triplets), generator=torch.Generator().manual_seed(0)) < 0.5
    copied = copy.deepcopy((trainable.triplets, optimizer))
    copied[0].shrink(kept, copied[1])
    for parameter in (copied[0].vectors, copied[0].strengths):
        assert torch.equal(copied[1].state[parameter]["exp_avg_sq"], parameter.data), "the very rows"
    before = [view.clone() for view in trainable.triplets.rows(state["exp_avg"])]
    step_before = state["step"].clone()
    one_step(model, trainable, optimizer, 12)
    assert trainable.final
    state = optimizer.state[trainable.triplets.vectors]
    after = trainable.triplets.rows(state["exp_avg"])
    assert [view.shape[1] for view in after] == [view.shape[1] for view in before]
    assert all(len(one) < len(other) for one, other in zip(after, before, strict=True))
    assert state["step"] == step_before + 1
    assert state["exp_avg"].numel() == trainable.triplets.vectors.numel() == state["exp_avg_sq"].numel()


# A retired triplet


def test_a_retired_triplet_can_come_back():
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], strength_rate=16, start="orthonormal")
    model, _adapters, trainable, optimizer = adapted(spec, steps=200)
    retired = torch.zeros(len(trainable.triplets), dtype=torch.bool)
    back = retired.clone()
    for step in range(110):
        before = trainable.alive
        one_step(model, trainable, optimizer, step)
        retired |= ~before
        back |= ~before & trainable.alive
    assert retired.any() and back.any()


def test_what_is_retired_has_strength_zero_and_its_vectors_stay():
    model, _adapters, trainable, optimizer = adapted(steps=20)
    for step in range(8):
        one_step(model, trainable, optimizer, step)
    assert int(trainable.alive.sum()) < len(trainable.triplets)
    assert torch.equal(trainable.triplets.strengths != 0, trainable.alive)
    assert all(part.P.abs().sum(1).min() > 0 for part in trainable.triplets.parts)


# A module that is never used


@pytest.mark.parametrize("start", ["zero", "orthonormal"])
def test_a_layer_without_gradients_has_no_importance_and_loses_its_ranks_first(start):
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "unused"], start=start, orthogonality=0)
    model, adapters, trainable, optimizer = adapted(spec, steps=20)
    for step in range(20):
        if step in (1, 12):
            assert trainable.without_gradient(optimizer) == ["unused"]
        one_step(model, trainable, optimizer, step)
    assert "unused" not in adapters.adapters()
    assert sum(adapter.rank for adapter in adapters.adapters().values()) == 6


# Fused layers


def test_a_fused_layer_gets_ranks_for_each_part_and_is_one_lora_at_the_end():
    for architecture, leaf in (("gpt2", "c_attn"), ("neox", "query_key_value")):
        model = tiny_model(architecture).double()
        adapters = inject(model, AdaLoraConfig(budget=2, initial=2, targets=[leaf]))
        [*fused] = adapters.adapters().values()
        assert all(isinstance(adapter, FusedAdaLoRA) and adapter.names == ("q", "k", "v") for adapter in fused)
        generator = torch.Generator().manual_seed(0)
        for adapter in fused:
            adapter.double()
            for part in adapter.parts:
                part.decided = True
                part.strength.data = torch.randn(part.rank, generator=generator, dtype=torch.float64)
        fused[0].parts[1].strength.data.zero_()
        ids = torch.randint(0, 96, (2, 9), generator=generator)
        live = model(input_ids=ids)[0]
        x = torch.randn(3, fused[0].parts[0].Q.shape[1], generator=generator, dtype=torch.float64)
        A, B = fused[0].factors()
        torch.testing.assert_close(fused[0](x), fused[0].scale * x @ A.T @ B.T)
        adapters.settle()
        torch.testing.assert_close(model(input_ids=ids)[0], live, rtol=1e-6, atol=1e-6)


def test_only_the_value_s_outputs_change_when_only_it_has_strength():
    model = tiny_model("neox")
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    adapters = inject(model, AdaLoraConfig(budget=2, targets=["query_key_value"], start="orthonormal"))
    adapter = next(iter(adapters.adapters().values()))
    adapter.parts[2].strength.data.fill_(1.0)
    changed = adapter(torch.randn(1, width)).view(heads, 3, width // heads)
    assert not changed[:, :2].any() and changed[:, 2].abs().min() > 0


@pytest.mark.parametrize("path", ["0", "model.layers.31.mlp.down_proj"])
def test_a_budget_of_bytes_has_room_for_the_header_of_one_wide_layer_too(path):
    # as safetensors writes it: the length, the JSON, and spaces up to a multiple of 8
    inside, outside, rank = 11_008, 4_096, 170
    first, last = 4 * rank * inside, 4 * rank * (inside + outside)
    header = {"__metadata__": {"format": "pt"}} | {
        f"base_model.model.{path}.lora_{part}.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        for part, shape, offsets in (("A", [rank, inside], [0, first]), ("B", [outside, rank], [first, last]))
    }
    written = 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + last
    for size in range(written - 8, written + 8):
        budget = budget_of(AdaLoraConfig(budget=f"{size}B"), [inside + outside], [0], [path])
        kept = (budget.last - budget.entries[0]) // (inside + outside)
        assert kept < rank or size >= written
    budget = budget_of(AdaLoraConfig(budget=f"{written + 400}B"), [inside + outside], [0], [path])
    assert (budget.last - budget.entries[0]) // (inside + outside) == rank


@pytest.mark.parametrize("name", ["GPTBigCode", "CodeGen"])
def test_a_fused_layer_of_another_layout_is_adapted_whole(name):
    import transformers

    sizes = {"n_embd": 36, "n_layer": 1, "n_head": 3, "n_positions": 32, "vocab_size": 50}
    more = {"multi_query": False} if name == "GPTBigCode" else {"n_ctx": 32, "rotary_dim": 4, "n_head": 4, "n_embd": 64}
    config = getattr(transformers, f"{name}Config")(**sizes | more)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    leaf = "c_attn" if name == "GPTBigCode" else "qkv_proj"
    [adapter] = inject(model, AdaLoraConfig(budget=2, targets=[leaf])).adapters().values()
    assert isinstance(adapter, AdaLoRA)


def test_bloom_s_fused_layer_is_parted_for_each_head():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=50))
    [adapter] = (
        inject(model, AdaLoraConfig(budget=2, targets=["query_key_value"], start="orthonormal")).adapters().values()
    )
    assert isinstance(adapter, FusedAdaLoRA)
    adapter.parts[1].strength.data.fill_(1.0)
    changed = adapter(torch.randn(1, 32)).view(4, 3, 8)
    assert not changed[:, [0, 2]].any() and changed[:, 1].abs().min() > 0


def test_phi_3_s_fused_layer_has_fewer_keys_and_values_than_queries():
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    model = Phi3ForCausalLM(Phi3Config(**sizes, num_hidden_layers=1, vocab_size=50, pad_token_id=0))
    [adapter] = inject(model, AdaLoraConfig(budget=2, targets=["qkv_proj"], start="orthonormal")).adapters().values()
    assert [part.P.shape[1] for part in adapter.parts] == [32, 16, 16]
    adapter.parts[1].strength.data.fill_(1.0)
    changed = adapter(torch.randn(1, 32))[0]
    assert not changed[:32].any() and not changed[48:].any() and changed[32:48].abs().min() > 0


@pytest.mark.parametrize("name", ["Mpt", "ModernBert"])
def test_a_fused_layer_in_thirds_is_parted_in_thirds(name):
    import transformers

    sizes = (
        {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 50}
        if name == "Mpt"
        else {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 48,
              "vocab_size": 50, "pad_token_id": 0}
    )  # fmt: skip
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))
    [adapter] = inject(model, AdaLoraConfig(budget=2, targets=["Wqkv"], start="orthonormal")).adapters().values()
    adapter.parts[2].strength.data.fill_(1.0)
    changed = adapter(torch.randn(1, 32))[0]
    assert not changed[:64].any() and changed[64:].abs().min() > 0


@pytest.mark.parametrize("beta", ["beta1", "beta2"])
def test_averages_that_forget_everything_score_nothing_and_are_refused(beta):
    # the uncertainty of what is its own average is zero, so all scores would be equal
    with pytest.raises(ConfigError, match=beta):
        AdaLoraConfig(**{beta: 0.0})


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("gpt2", "2kB"), ("llama", "3000B"), ("neox", "5kB"), ("gpt2", "12kB"), ("neox", "20kB")],
)
def test_a_budget_of_bytes_is_the_size_of_the_file(architecture, size, tmp_path):
    model = tiny_model(architecture)
    spec = AdaLoraConfig(budget=size, initial=2)
    adapters = inject(model, spec)
    trainable = TrainableAdaLora(adapters, spec, 6)
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=RATE)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    for step in range(6):
        model(input_ids=ids)[0].logsumexp(-1).mean().backward()
        trainable.add_penalty()
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
    write_peft(adapters, tmp_path / "adapter", base_model="tiny")
    written = (tmp_path / "adapter" / WEIGHTS).stat().st_size
    limit = spec.parsed_budget[1]
    cheapest = min(part.cost for part in trainable.triplets.parts)
    most = limit if trainable.budget.last < trainable.schedule.first else 4 * trainable.schedule.first
    assert most - 4 * cheapest - 64 * (1 + len(adapters.layers)) < written <= limit


# Convolutions


# 11


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("portable", [False, True])
def test_what_is_written_is_the_live_model(architecture, portable, tmp_path):
    model = tiny_model(architecture)
    spec = AdaLoraConfig(budget="9 triplets", initial=3)
    adapters = inject(model, spec)
    trainable = TrainableAdaLora(adapters, spec, 8)
    optimizer = torch.optim.AdamW(trainable.parameter_groups(), lr=5e-2)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    for step in range(8):
        F.cross_entropy(model(input_ids=ids)[0].flatten(0, 1), ids.flatten()).backward()
        trainable.add_penalty()
        optimizer.step()
        trainable.after_step(step, optimizer)
        optimizer.zero_grad(set_to_none=False)
    live = model(input_ids=ids)[0]
    left = adapters.adapters()
    write_peft(adapters, tmp_path / "adapter", base_model="tiny")
    if portable:
        rewrite(read_weights(tmp_path / "adapter").portable(), tmp_path / "portable", {})
    folder = tmp_path / ("portable" if portable else "adapter")
    base = adapters.remove()
    assert (live - base(input_ids=ids)[0]).abs().max() > 1e-3, "something was learned"
    again = read_peft(base, folder)
    assert again.adapters().keys() == left.keys(), "layers of rank 0 are left out"
    ranks = {path: adapter.rank for path, adapter in again.adapters().items()}
    most = max(adapter.rank for adapter in left.values())
    assert ranks == {path: most if portable else adapter.rank for path, adapter in left.items()}
    difference = (base(input_ids=ids)[0] - live).abs().max() / live.abs().max()
    assert difference < 1e-5
    again.remove()
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(base, folder)
    assert (theirs(input_ids=ids)[0] - live).abs().max() / live.abs().max() < 1e-5


def test_without_the_shrink_what_is_written_has_the_ranks_that_are_left(tmp_path):
    spec = AdaLoraConfig(budget=2, initial=2, targets=["up", "mid", "down"], shrink=False)
    model, adapters, trainable, optimizer = adapted(spec, steps=20)
    for step in range(20):
        one_step(model, trainable, optimizer, step)
    x, _ = data(99)
    live = model(x)
    assert len(trainable.triplets) == 12
    adapters.settle()
    assert sum(adapter.rank for adapter in adapters.adapters().values()) == 6
    torch.testing.assert_close(model(x), live, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act", ["settle", "write"])
def test_ranks_that_were_never_decided_are_not_passed_off_as_an_adapter(act, tmp_path):
    # elsewhere a loop that forgets to call it trains all ranks in silence
    model, adapters, trainable, optimizer = adapted(steps=20)
    for step in range(3):
        one_step(model, trainable, optimizer, step)
    with pytest.raises(TrainingError, match=r'has not decided the ranks of 3 layers yet, such as "up"'):
        adapters.settle() if act == "settle" else write_peft(adapters, tmp_path / "adapter", base_model="net")
    assert not (tmp_path / "adapter").exists()
