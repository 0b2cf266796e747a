"""AdaLoRA as a method: a budget of triplets that falls while it trains, given to the layers where they matter most.

Which triplets live on is decided between steps, exactly to the budget, and at last for good: all triplets first, then
fewer and fewer by importance, then the final ones alone (adapters/importance.py). A loop of your own calls it as
`Trainable` says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters.adalora import AdaLoRA, FusedAdaLoRA
from rankwise.adapters.importance import Importance, Schedule, keep_best, keep_worth
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.triplets import Triplets
from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import AdaLoraConfig
from rankwise.config.parameters import Budget, budget_of
from rankwise.errors import RunError
from rankwise.methods.adapter import AdapterMethod, AdapterTrainable
from rankwise.methods.inject import add_layers
from rankwise.methods.method import Setup
from rankwise.methods.trainable import TrainableState, layout_of
from rankwise.runs.records import RankRecord


class TrainableAdaLora(AdapterTrainable):
    """An AdaLoRA adapter in training: call `after_step` after every step, so that ranks are pruned."""

    def __init__(
        self, adapters: AdapterSet, config: AdaLoraConfig, steps: int, name: str = "default", reports: int = 50
    ) -> None:
        """`reports` is about how many decisions of a run are reported: each makes the host wait for the device."""
        super().__init__(adapters, name)
        self.config = config
        self.labels, parts = parts_of(adapters, name)
        self.triplets = Triplets(parts)
        self._layout = layout_of(
            (label, (part.rank, part.P.shape[1], part.Q.shape[1]))
            for label, part in zip(self.labels, parts, strict=True)
        )
        costs, ranks, layers = [part.cost for part in parts], self.triplets.ranks, _layers_of(adapters, name)
        self.budget: Budget = budget_of(config, costs, layers, list(adapters.adapters(name)))
        self.costs = self.triplets.costs
        self._layers = torch.tensor(layers).repeat_interleave(torch.tensor(ranks)).to(self.costs.device)
        self._entries = torch.tensor(self.budget.entries, device=self.costs.device)
        dearest = sum(cost * rank for cost, rank in zip(costs, ranks, strict=True)) + sum(self.budget.entries)
        first = dearest if self.budget.by_cost else len(self.triplets)
        self.schedule = Schedule.of(config, first, min(self.budget.last, first), steps)
        self.importance = Importance.of(self.triplets, config.beta1, config.beta2)
        self.alive = torch.ones(len(self.triplets), dtype=torch.bool, device=self.costs.device)
        self.final = False
        self._unrelated: tuple[Tensor, Tensor] | None = None
        self._report_every = max(1, steps // reports)

    @property
    def first_final_step(self) -> int:
        return self.schedule.decided + 1

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.triplets.vectors], "rate": 1.0},
            {"params": [self.triplets.strengths], "rate": self.config.strength_rate},
            *self.head_groups(),
        ]

    def describe(self) -> str:
        schedule, in_unit = self.schedule, self.budget.in_unit
        line = (
            f"AdaLoRA starts with {in_unit(schedule.first):,} {self.budget.unit}, prunes from step "
            f"{schedule.warmup + 2} on, and has {in_unit(schedule.last):,} left after step {schedule.decided + 1}"
        )
        if self.budget.last > schedule.first:
            line += f"; the budget of {in_unit(self.budget.last):,} is more than these layers can use"
        return line

    def add_penalty(self) -> None:
        self.triplets.check_views()
        self.triplets.add_penalty(self.config.orthogonality, self.config.penalty)

    @property
    def sets_apart(self) -> bool:
        """Ranks go where the rows need them. What holds the model to its base needs them everywhere."""
        return not self.final

    def set_apart(self) -> list[Tensor]:
        if self.final:
            return []
        vectors, strengths = self.triplets.vectors.grad, self.triplets.strengths.grad
        assert vectors is not None and strengths is not None, "gradients are views, and there from the beginning"
        self._unrelated = vectors.clone(), strengths.clone()
        return [*self._unrelated]

    def before_step(self, clipped: float = 1.0) -> None:
        """For importance="before": the order of the paper's algorithm."""
        if self._unrelated is not None:
            self._unrelated = self._unrelated[0].mul_(clipped), self._unrelated[1].mul_(clipped)
        if self.config.importance == "before" and not self.final:
            self.importance.observe(self.triplets, self._unrelated)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        self.triplets.check_views()
        if self.final:
            if not self.config.shrink:
                self.triplets.retire(self.alive)
            return None
        if step >= self.schedule.decided:
            return self._decide_at_last(step, optimizer)
        if self.config.importance == "after":
            self.importance.observe(self.triplets, self._unrelated)
        if not self.schedule.is_due(step):
            return None
        self._decide(step)
        return self._plan(step) if step % self._report_every == 0 else None

    def end_early(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord | None:
        if self.final:
            return None
        plan = replace(self._plan(step), final=True)
        self._end_allocation(self.alive, optimizer)
        return plan

    def without_gradient(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """What never got a gradient has averages of zero in the optimizer. Where P or Q starts at zero, the first
        gradient of a strength is zero too, but that matrix has moved."""
        squares = optimizer.state.get(self.triplets.strengths, {}).get("exp_avg_sq")
        if squares is None:
            return [*self.labels, *self.idle_heads(optimizer)]
        parts = zip(self.labels, self.triplets.parts, squares.split(self.triplets.ranks), strict=True)
        idle = [label for label, part, square in parts if part.rank and not (square.any() or self._has_grown(part))]
        return idle + self.idle_heads(optimizer)

    def _has_grown(self, part: AdaLoRA) -> bool:
        return self.config.start == "zero" and bool(part.P.any() and part.Q.any())

    def state_dict(self) -> TrainableState:
        facts = {"order": self._layout, "ranks": self.triplets.ranks, "final": self.final, "start": self.config.start}
        return TrainableState(self._tensors, facts)

    def load_state_dict(self, state: TrainableState, optimizer: torch.optim.Optimizer) -> None:
        """After the shrink there are fewer rows: which of the fresh ones make way for them does not matter."""
        state.check_layout(self._layout)
        if self.config.start == "zero" and "start" not in state.facts:
            raise RunError(
                "the checkpoint is of an earlier version, whose AdaLoRA started with singular values of zero and had "
                "another rate for them. Go on with that version, or train anew (--restart)."
            )
        if state.facts["final"]:
            self._end_allocation(self._first(state.facts["ranks"]), optimizer)
        state.copy_into(self._tensors)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        flat = {"vectors": self.triplets.vectors.data, "strengths": self.triplets.strengths.data}
        averages = {} if self.final else {
            f"{kind}.{name}": value
            for kind, pair in (("averages", self.importance.averages), ("uncertainties", self.importance.uncertainties))
            for name, value in zip(flat, pair, strict=True)
        }  # fmt: skip
        heads = {f"head.{name}": value.detach() for name, value in self.head_parameters().items()}
        return flat | {"kept": self.alive} | averages | heads

    def _first(self, ranks: list[int]) -> Tensor:
        """(b,) so many of each part."""
        now = self.triplets.ranks
        if len(ranks) != len(now) or not all(0 <= rank <= most for rank, most in zip(ranks, now, strict=True)):
            raise RunError(f"the checkpoint does not fit these adapters: its ranks are {ranks[:8]}.")
        masks = [torch.arange(most) < rank for rank, most in zip(ranks, now, strict=True)]
        return torch.cat(masks).to(self.alive.device)

    def _decide(self, step: int) -> None:
        scores, budget = self.importance.scores(self.triplets), self.schedule.budget(step)
        if self.budget.by_cost:
            self.alive = keep_worth(scores, self.costs, budget, self._layers, self._entries)
        else:
            self.alive = keep_best(scores, budget)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(self.alive, 0)  # equal gradients give equal scores; this makes sure of it
        self.triplets.retire(self.alive)

    def _decide_at_last(self, step: int, optimizer: torch.optim.Optimizer) -> RankRecord:
        if step == 0 and self.config.importance == "after":  # nothing else would tell the triplets of one step apart
            self.importance.observe(self.triplets, self._unrelated)
        self._decide(step)
        plan = replace(self._plan(step), final=True)
        self._end_allocation(self.alive, optimizer)
        return plan

    def _end_allocation(self, alive: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """From here on the ranks stay."""
        self.final, self._unrelated = True, None
        for part in self.triplets.parts:
            part.decided = True
        if self.config.shrink:
            self.triplets.shrink(alive, optimizer)
            self.costs, self.alive = self.costs[alive], alive[alive]
            self.adapters.discard_empty(self.name)
        nothing = (self.costs[:0], self.costs[:0])
        self.importance = Importance(0, 0, nothing, nothing)  # no longer needed

    def _plan(self, step: int) -> RankRecord:
        """The one place where the host waits for the device: only what is told needs it."""
        alive = [int(mask.sum()) for mask in self.alive.cpu().split(self.triplets.ranks)]
        ranks = dict(zip(self.labels, alive, strict=True))
        budget, first = self.budget.in_unit(self.schedule.budget(step)), self.budget.in_unit(self.schedule.first)
        return RankRecord(step + 1, budget, first, ranks, final=False, unit=self.budget.unit)


def _layers_of(adapters: AdapterSet, name: str) -> list[int]:
    """In which adapted layer each part is."""
    adapted = enumerate(adapters.adapters(name).values())
    return [layer for layer, adapter in adapted if isinstance(adapter, AdaLoRA | FusedAdaLoRA) for _ in adapter.parts]


def parts_of(adapters: AdapterSet, name: str) -> tuple[list[str], list[AdaLoRA]]:
    """Every set of triplets, and its path; for parts of a fused layer its path and part."""
    parts: list[tuple[str, AdaLoRA]] = []
    for path, adapter in adapters.adapters(name).items():
        if isinstance(adapter, FusedAdaLoRA):
            parts += [(f"{path}.{label}", part) for label, part in zip(adapter.names, adapter.parts, strict=True)]
        elif isinstance(adapter, AdaLoRA):
            parts.append((path, adapter))
    return [path for path, _ in parts], [part for _, part in parts]


class AdaLoraMethod(AdapterMethod[AdaLoraConfig]):
    """Attaches triplets, and leaves plain LoRA whose ranks went where they pay."""

    def attach_to(self, adapters: AdapterSet, model: LoadedModel, setup: Setup) -> TrainableAdaLora:
        add_layers(adapters, self.config, seed=setup.training.seed)
        return TrainableAdaLora(adapters, self.config, setup.steps)
