"""An anchor adds the divergence from the base on other text to a step's loss, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import tiny_model
from rankwise.adapters.set import AdapterSet
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.evaluation.text import Text
from rankwise.forward.reference import every_logits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.methods.trainable import Trainable
from rankwise.objectives.registry import objective_named
from rankwise.rows.encoded.batches import Batch
from rankwise.rows.text.tokenize import Tokens
from rankwise.training.backend import Eager, Fused
from rankwise.training.extras.anchor import Anchor, BaseOnText
from rankwise.training.losses import AnchoredBackend
from rankwise.training.state import TrainState, adamw
from rankwise.training.step import optimizer_step
from rankwise.training.workload import Workload

CPU = torch.device("cpu")
WEIGHT, LENGTH = 0.7, 12


def rows() -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 96, (length,), generator=generator).tolist() for length in (9, 17, 5, 12)]
    return [Tokens(tuple(row), tuple(place >= 3 for place in range(len(row)))) for row in ids]


def text(blocks: int = 5) -> Text:
    ids = torch.randint(0, 96, (blocks, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return Text(ids, "random", "0", ())


def anchor_of(trainable: Trainable, backend: AnchoredBackend, most: int, room: int, seed: int) -> Anchor:
    return Anchor(BaseOnText(text(), trainable, backend, room), WEIGHT, seed, most)


def adapted(method: str = "lora") -> tuple[torch.nn.Module, AdapterSet, Trainable]:
    """A model in float64 with an adapter that has moved away from its base."""
    model = tiny_model("llama").double()
    spec = LoraConfig(rank=3) if method == "lora" else AdaLoraConfig(budget=1, initial=3)
    adapters = inject(model, spec)
    for parameter in adapters.parameters():
        parameter.data = parameter.data.double()
    moved = TrainableLoRA(adapters) if isinstance(spec, LoraConfig) else TrainableAdaLora(adapters, spec, 20)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model, adapters, moved


def state_of(trainable: Trainable) -> TrainState:
    optimizer = adamw(trainable, TrainingConfig())
    optimizer.register_step_pre_hook(lambda *_: None)
    return TrainState(trainable, optimizer, lambda step: 0.0, 20, 1e9, CPU)


def step(
    backend: str, method: str = "lora", *, most: int = 1000, anchored: bool = True
) -> tuple[list[Tensor], float, float | None]:
    """The gradients of one step, its loss and the divergence."""
    model, _, trainable = adapted(method)
    work = Workload(model, trainable, objective_named("causal-lm"), longest=17)
    computing = Eager(replace(work, packing=True)) if backend == "packed" else Eager(work)
    computing = Fused(work) if backend == "fused" else computing
    state = state_of(trainable)
    seen: list[Tensor] = []
    state.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in state.parameters)
    )
    anchor = anchor_of(trainable, computing, most, 10**6, 0) if anchored else None
    with computing.active():
        record, _ = optimizer_step(state, computing.layout(rows(), 24), computing.loss, 0.0, anchor)
    return seen, record.loss, record.divergence


def plainly() -> tuple[list[Tensor], float, float]:
    """The same, written out: one row at a time, with all logits and autograd."""
    model, adapters, trainable = adapted()
    anchor = anchor_of(trainable, Eager(Workload(model, trainable, objective_named("causal-lm"))), 0, 0, 0)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for place in range(1, len(row.ids)):
            if row.loss_mask[place]:
                total, count = total - logits[place - 1, row.ids[place]], count + 1
    block = anchor.base.text.blocks[anchor.block(0)][:-1]
    with adapters.base():
        base = every_logits(model, block).softmax(-1)
    tuned = model(input_ids=block[None]).logits[0].log_softmax(-1)
    apart = F.kl_div(tuned, base, reduction="sum") / LENGTH
    loss = total / count
    found = torch.autograd.grad(loss + WEIGHT * apart, trainable.parameters())
    return list(found), loss.item(), apart.item()


def same(one: list[Tensor], other: list[Tensor], share: float) -> None:
    largest = max(value.abs().max() for value in other)
    assert largest > 1e-4
    assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) <= share * largest


@pytest.mark.parametrize(("backend", "most"), [("padded", 1), ("packed", 1000), ("fused", 1000), ("fused", 1)])
def test_every_backend_computes_what_is_written_out(backend: str, most: int) -> None:
    gradients, loss, divergence = step(backend, most=most)
    expected, expected_loss, apart = plainly()
    assert apart > 0.01, "the adapter must have moved"
    exact = 2e-6 if backend == "fused" else 1e-9  # the kernels turn by float32 angles
    same(gradients, expected, exact)
    assert divergence is not None
    assert abs(loss - expected_loss) <= exact * loss and abs(divergence - apart) <= exact * apart


def test_an_adapter_that_changes_nothing_has_no_divergence_and_no_gradient_from_it() -> None:
    model = tiny_model("llama").double()
    trainable = TrainableLoRA(inject(model, LoraConfig(rank=3)))
    computing = Fused(Workload(model, trainable, objective_named("causal-lm"), longest=17))
    anchor = anchor_of(trainable, computing, 1, 0, 0)
    with computing.active():
        _, apart = anchor.backward(None, 0, 1.0)
    assert apart == 0.0 and all(one.grad is None or not one.grad.any() for one in trainable.parameters())


def test_what_the_base_says_of_a_block_is_computed_once_where_there_is_room() -> None:
    model, _, trainable = adapted()
    computing = Eager(Workload(model, trainable, objective_named("causal-lm")))
    for room, expected in ((10**7, 5), (0, 15)):
        anchor = anchor_of(trainable, computing, 1, room, 0)
        calls = [0]

        def counted(batch: Batch, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return computing.base_rows(batch)

        anchor.base.backend = type(
            "Counted", (), {"base_rows": staticmethod(counted), "anchored": computing.anchored}
        )()  # pyright: ignore
        for number in range(15):
            anchor.backward(None, number, 1.0)
        assert calls[0] == expected


def test_blocks_follow_from_seed_and_step_alone_and_all_come_before_one_comes_again() -> None:
    model, _, trainable = adapted()
    computing = Eager(Workload(model, trainable, objective_named("causal-lm")))

    def drawn(seed: int) -> list[int]:
        anchor = anchor_of(trainable, computing, 1, 0, seed)
        return [anchor.block(number) for number in range(10)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert sorted(drawn(3)[:5]) == sorted(drawn(3)[5:]) == list(range(5)) and drawn(3)[:5] != drawn(3)[5:]


def test_kinds_of_text_take_turns_and_each_block_comes_once_before_one_comes_again() -> None:
    model, _, trainable = adapted()
    computing = Eager(Workload(model, trainable, objective_named("causal-lm")))
    anchor = Anchor(BaseOnText(replace(text(6), kinds=2), trainable, computing, 0), WEIGHT, 3, 1)
    drawn = [anchor.block(number) for number in range(12)]
    assert [block % 2 for block in drawn] == [0, 1] * 6
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6)) and drawn[:6] != drawn[6:]


@pytest.mark.parametrize("order", ["before", "after"])
def test_adalora_gives_ranks_by_what_the_rows_need_alone(order: str) -> None:
    """The averages after a step with an anchor are those after one without."""

    def averages(anchored: bool, clip: float) -> list[Tensor]:
        model = tiny_model("llama").double()
        spec = AdaLoraConfig(budget=1, initial=3, importance=order, start="orthonormal")
        adapters = inject(model, spec)
        for parameter in adapters.parameters():
            parameter.data = parameter.data.double()
        trainable = TrainableAdaLora(adapters, spec, 20)
        with torch.no_grad():
            trainable.triplets.strengths.add_(0.3)
        computing = Fused(Workload(model, trainable, objective_named("causal-lm"), longest=17))
        state = state_of(trainable)
        state.clip = clip
        anchor = anchor_of(trainable, computing, 1000, 10**6, 0) if anchored else None
        with computing.active():
            optimizer_step(state, computing.layout(rows(), 24), computing.loss, 0.0, anchor)
        return [*trainable.importance.averages]

    for one, other in zip(averages(True, 1e9), averages(False, 1e9), strict=True):
        assert other.abs().max() > 0 and (one - other).abs().max() <= 1e-9 * other.abs().max()
    clipped, whole = averages(True, 1e-3), averages(True, 1e9)  # clipping shortens all gradients alike
    ratios = [(one.sum() / other.sum()).item() for one, other in zip(clipped, whole, strict=True)]
    assert abs(ratios[0] / ratios[1] - 1) <= 1e-9 and ratios[0] < 0.5
