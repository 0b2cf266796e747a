"""Which triplets live on: decided between steps, exactly to the budget, and at last for good.

Call `penalise` after the backward pass and before clipping, `stepped` after the optimizer step and before gradients are
zeroed. The trainer does; a loop of your own may too. Plain LoRA has `FixedRanks`, which decides nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rankwise.adapters.adalora import AdaLoRA, FusedAdaLoRA
from rankwise.adapters.budget import Schedule
from rankwise.adapters.dora import DoRA
from rankwise.adapters.held import Held, order_of
from rankwise.adapters.importance import Importance
from rankwise.adapters.keeping import keep_best, keep_worth
from rankwise.adapters.lora import LoRA
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.triplets import Triplets
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.budget import Budget, budget_of
from rankwise.errors import RunError, TrainingError
from rankwise.runs.records import RankRecord


class Allocator(Protocol):
    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameters for an optimizer; `rate` is by how much each group's learning rate differs."""
        ...

    def plan(self) -> str | None:
        """A sentence for whoever starts a run, where ranks will change."""
        ...

    def penalise(self) -> None: ...

    def before_step(self) -> None: ...

    def stepped(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        """`step` counts from 0. A plan where one was made that is worth telling."""
        ...

    def idle(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Paths of layers that never got a gradient."""
        ...

    def state(self) -> Held:
        """All that must survive a pause between two steps. The tensors are the live ones."""
        ...

    def load(self, held: Held, optimizer: torch.optim.Optimizer) -> None:
        """Over freshly injected adapters, before the optimizer's own state."""
        ...


class Undecided:
    """What an allocator does that decides nothing."""

    def plan(self) -> None:
        return None

    def penalise(self) -> None:
        pass

    def before_step(self) -> None:
        pass

    def stepped(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        return None


class FixedRanks(Undecided):
    """Plain LoRA, and DoRA.

    `b_rate` is LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of B as a multiple of A's. Of an
    embedding it is A's: started at zero, A is what the correction grows by, and B the random frame that A is elsewhere.
    """

    def __init__(self, adapters: AdapterSet, name: str = "default", b_rate: float = 1.0) -> None:
        self._parts = adapters.adapters(name)
        self._parameters = adapters.parameters(name)
        self._b_rate = b_rate

    @property
    def groups(self) -> list[dict[str, Any]]:
        """A magnitude that decayed would take the base with it."""
        parts = self._parts.values()
        faster = [part.grown for part in parts if isinstance(part, LoRA)] if self._b_rate != 1 else []
        magnitudes = [part.magnitude for part in parts if isinstance(part, DoRA)]
        apart = {id(parameter) for parameter in faster + magnitudes}
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in self._parameters if id(parameter) not in apart], "rate": 1.0},
            {"params": faster, "rate": self._b_rate},
            {"params": magnitudes, "rate": 1.0, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def idle(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [
            path
            for path, part in self._parts.items()
            if not any(parameter in optimizer.state for parameter in part.parameters())
        ]

    def state(self) -> Held:
        return Held(self._factors, {"order": self._order})

    def load(self, held: Held, optimizer: torch.optim.Optimizer) -> None:
        held.check_order(self._order)
        held.fill(self._factors)

    @property
    def _factors(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}": factor.detach()
            for path, part in self._parts.items()
            for name, factor in part.named_parameters()
        }

    @property
    def _order(self) -> str:
        return order_of((name, tuple(factor.shape)) for name, factor in self._factors.items())


class RankAllocator:
    """AdaLoRA's: warm-up with all triplets, then fewer and fewer by importance, then the final ones alone."""

    def __init__(
        self, adapters: AdapterSet, spec: AdaLoraConfig, steps: int, name: str = "default",
        told: int = 50,
    ) -> None:  # fmt: skip
        """`told` is about how many plans of a run are worth telling: each makes the host wait for the device."""
        self.adapters, self.spec, self.name = adapters, spec, name
        self.labels, parts = parts_of(adapters, name)
        self.triplets = Triplets(parts)
        self._order = order_of(
            (label, (part.rank, part.P.shape[1], part.Q.shape[1]))
            for label, part in zip(self.labels, parts, strict=True)
        )
        costs, ranks, layers = [part.cost for part in parts], self.triplets.ranks, _layers_of(adapters, name)
        self.budget: Budget = budget_of(spec, costs, layers, list(adapters.adapters(name)))
        self.costs = self.triplets.costs
        self._layers = torch.tensor(layers).repeat_interleave(torch.tensor(ranks)).to(self.costs.device)
        self._entries = torch.tensor(self.budget.entries, device=self.costs.device)
        dearest = sum(cost * rank for cost, rank in zip(costs, ranks, strict=True)) + sum(self.budget.entries)
        first = dearest if self.budget.by_cost else len(self.triplets)
        self.schedule = Schedule.of(spec, first, min(self.budget.last, first), steps)
        self.importance = Importance.of(self.triplets, spec.beta1, spec.beta2)
        self.kept = torch.ones(len(self.triplets), dtype=torch.bool, device=self.costs.device)
        self.final = False
        self._telling = max(1, steps // told)

    @property
    def groups(self) -> list[dict[str, Any]]:
        rate = self.spec.strength_rate
        return [
            {"params": [self.triplets.vectors], "rate": 1.0},
            {"params": [self.triplets.strengths], "rate": rate},
        ]

    def plan(self) -> str:
        schedule, unit, in_unit = self.schedule, self.budget.unit, self.budget.in_unit
        line = (
            f"AdaLoRA begins with {in_unit(schedule.first):,} {unit}, retires from step {schedule.warmup + 2} "
            f"on, and has {in_unit(schedule.last):,} left after step {schedule.decided + 1}"
        )
        if self.budget.last > schedule.first:
            line += f"; the budget of {in_unit(self.budget.last):,} is more than these layers hold"
        return line

    def penalise(self) -> None:
        self.triplets.check_views()
        self.triplets.add_penalty(self.spec.orthogonality, self.spec.penalty)

    def before_step(self) -> None:
        """For importance="before": the order of the paper's algorithm."""
        if self.spec.importance == "before" and not self.final:
            self.importance.observe(self.triplets)

    def stepped(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        self.triplets.check_views()
        if self.final:
            self._hold()
            return None
        if step >= self.schedule.decided:
            return self._decide_at_last(step, optimizer)
        if self.spec.importance == "after":
            self.importance.observe(self.triplets)
        if not self.schedule.is_due(step):
            return None
        self._decide(step)
        return self._plan(step) if step % self._telling == 0 else None

    def idle(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """What never got a gradient has averages of zero in the optimizer."""
        squares = optimizer.state.get(self.triplets.strengths, {}).get("exp_avg_sq")
        if squares is None:
            return list(self.labels)
        parts = zip(self.labels, squares.split(self.triplets.ranks), strict=True)
        return [label for label, square in parts if square.numel() and not bool(square.any())]

    def state(self) -> Held:
        return Held(self._tensors, {"order": self._order, "ranks": self.triplets.ranks, "final": self.final})

    def load(self, held: Held, optimizer: torch.optim.Optimizer) -> None:
        """After the shrink fewer rows are held: which of the fresh ones make way for them does not matter."""
        held.check_order(self._order)
        if held.facts["final"]:
            self._finish(self._first(held.facts["ranks"]), optimizer)
        held.fill(self._tensors)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        flat = {"vectors": self.triplets.vectors.data, "strengths": self.triplets.strengths.data}
        averages = {} if self.final else {
            f"{kind}.{name}": value
            for kind, pair in (("averages", self.importance.averages), ("uncertainties", self.importance.uncertainties))
            for name, value in zip(flat, pair, strict=True)
        }  # fmt: skip
        return flat | {"kept": self.kept} | averages

    def _first(self, ranks: list[int]) -> Tensor:
        """(b,) so many of each part."""
        now = self.triplets.ranks
        if len(ranks) != len(now) or not all(0 <= rank <= most for rank, most in zip(ranks, now, strict=True)):
            raise RunError(f"the checkpoint does not fit these adapters: its ranks are {ranks[:8]}.")
        masks = [torch.arange(most) < rank for rank, most in zip(ranks, now, strict=True)]
        return torch.cat(masks).to(self.kept.device)

    def check_final(self) -> None:
        if not self.final:
            raise TrainingError(
                f"the ranks were never decided: step {self.schedule.decided} of {self.schedule.steps} was not reached."
            )

    def _decide(self, step: int) -> None:
        scores, budget = self.importance.scores(self.triplets), self.schedule.budget(step)
        if self.budget.by_cost:
            self.kept = keep_worth(scores, self.costs, budget, self._layers, self._entries)
        else:
            self.kept = keep_best(scores, budget)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(self.kept, 0)  # equal gradients give equal scores; this makes sure of it
        self.triplets.retire(self.kept)

    def _decide_at_last(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord:
        if step == 0 and self.spec.importance == "after":  # nothing else would tell the triplets of one step apart
            self.importance.observe(self.triplets)
        self._decide(step)
        plan = replace(self._plan(step), final=True)
        self._finish(self.kept, optimizer)
        return plan

    def _finish(self, kept: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """From here on the ranks stay."""
        self.final = True
        for part in self.triplets.parts:
            part.decided = True
        if self.spec.shrink:
            self.triplets.shrink(kept, optimizer)
            self.costs, self.kept = self.costs[kept], kept[kept]
            self.adapters.discard_empty(self.name)
        nothing = (self.costs[:0], self.costs[:0])
        self.importance = Importance(0, 0, nothing, nothing)  # no longer needed

    def _hold(self) -> None:
        if not self.spec.shrink:
            self.triplets.retire(self.kept)

    def _plan(self, step: int) -> RankRecord:
        """The one place where the host waits for the device: only what is told needs it."""
        alive = [int(mask.sum()) for mask in self.kept.cpu().split(self.triplets.ranks)]
        ranks = dict(zip(self.labels, alive, strict=True))
        budget, first = self.budget.in_unit(self.schedule.budget(step)), self.budget.in_unit(self.schedule.first)
        return RankRecord(step + 1, budget, first, ranks, final=False, unit=self.budget.unit)


def _layers_of(adapters: AdapterSet, name: str) -> list[int]:
    """In which adapted layer each part is."""
    found = enumerate(adapters.adapters(name).values())
    return [layer for layer, adapter in found if isinstance(adapter, AdaLoRA | FusedAdaLoRA) for _ in adapter.parts]


def parts_of(adapters: AdapterSet, name: str) -> tuple[list[str], list[AdaLoRA]]:
    """Every set of triplets, and its path; for parts of a fused layer its path and part."""
    found: list[tuple[str, AdaLoRA]] = []
    for path, adapter in adapters.adapters(name).items():
        if isinstance(adapter, FusedAdaLoRA):
            found += [(f"{path}.{label}", part) for label, part in zip(adapter.names, adapter.parts, strict=True)]
        elif isinstance(adapter, AdaLoRA):
            found.append((path, adapter))
    return [path for path, _ in found], [part for _, part in found]
