"""What published or own evidence would have a training do otherwise; nothing where there is none.

    bits that the rows hold      1 for each supervised token of one pass (a loss of 0.69 nats a token; Schulman et al.)
    bits that an adapter holds   2 for each parameter that learns
    tokens of a model made anew  20 for each parameter (Hoffmann et al. 2022)

An advice is data: what to do, the arithmetic, where it comes from and the setting that would do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rankwise.config.data import DataConfig
from rankwise.config.method import MethodConfig
from rankwise.config.training import TrainingConfig
from rankwise.planning.rows import PlannedRows

SCHULMAN = 'Schulman et al. 2025, "LoRA Without Regret", thinkingmachines.ai/blog/lora'
BIDERMAN = 'Biderman et al. 2024, "LoRA Learns Less and Forgets Less", arXiv 2405.09673'
CHINCHILLA = "Hoffmann et al. 2022, arXiv 2203.15556"
ADALORA = "Zhang et al. 2023 (AdaLoRA), arXiv 2303.10512, Table 14"
REPEATED = 'Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", arXiv 2305.16264'
OWN = "lab/adalora.md"
BITS_OF_TOKEN, BITS_OF_PARAMETER, TOKENS_OF_PARAMETER = 1, 2, 20
AMPLE, LEAST_RANK = 1000, 8
"""How many times what the rows hold an adapter may hold before a smaller one is named, and the smallest that is: on E2E
rank 2 held fifty times its rows and was yet 0.02 nats worse than rank 8 (lab/adalora.md)."""
HIGH, LOW, HIGH_FOR_WHOLE = 8.0, 0.25, 10.0
"""Times `auto`. At width 576 1.6e-2 was worse than 8e-3 in every sweep and 5e-4 was the worst rate of all sweeps that
had it (lab/adalora.md); ten times is what adapters want more than whole models."""
LARGE_BATCH, SHORT_RUN, MANY_EPOCHS, LARGE_RANK = 32, 100, 4, 256
"""A rank of 256 was as good as the whole model on sets of instructions (Schulman et al.)."""


@dataclass(frozen=True)
class Advice:
    text: str
    why: str
    """The arithmetic, or what was found."""
    source: str
    change: tuple[str, str] | None = None
    """A setting, as `--set` takes it, and its value."""


@dataclass(frozen=True)
class Facts:
    """A training as it was asked for, with what a plan found of it."""

    adapter: MethodConfig
    training: TrainingConfig
    data: DataConfig
    rows: PlannedRows
    width: int
    parameters: int
    """Of the model."""
    trainable: int
    ends: int
    """Inputs and outputs of all linear layers but the head: parameters of rank 1 over all of them."""
    ranks: Mapping[str, float]
    """Of the adapted layers, by their paths; none where the whole model learns."""
    context: int | None = None

    @property
    def adapts(self) -> bool:
        return not self.adapter.trains_base

    @property
    def bits(self) -> float:
        return self.rows.supervised.likely * BITS_OF_TOKEN * min(1.0, self.passes)

    @property
    def rank_for_rows(self) -> int:
        """That holds what the rows do, over all linear layers."""
        return max(1, math.ceil(self.bits / (BITS_OF_PARAMETER * self.ends)))

    @property
    def passes(self) -> float:
        documents = max(1.0, self.rows.documents.likely)
        rows = self.training.rows_per_step(round(documents))
        return self.rows.steps(self.training) * rows / documents


def advise(facts: Facts) -> list[Advice]:
    found = (rule(facts) for rule in RULES)
    return [advice for advice in found if advice is not None]


def _capacity(facts: Facts) -> Advice | None:
    holds = BITS_OF_PARAMETER * facts.trainable
    sums = (
        f"{facts.rows.supervised.likely:,.0f} loss tokens contain about {facts.bits / 1e6:,.2f} Mbit of information, "
        f"and {facts.trainable:,} trainable parameters can store about {holds / 1e6:,.2f} Mbit"
    )
    if facts.adapter.smaller is None or facts.adapter.start_from is not None or not facts.ranks:
        return None
    setting, _ = facts.adapter.smaller
    rank = sum(facts.ranks.values()) / len(facts.ranks)
    if holds < facts.bits:
        wanted = min(4096, math.ceil(rank * facts.bits / holds))
        text = f"The adapter is too small to learn all that these rows contain; a rank of {wanted} would be enough."
        return Advice(text, sums, SCHULMAN, (setting, str(wanted)))
    enough = max(LEAST_RANK, math.ceil(rank * facts.bits / holds))
    if holds > AMPLE * facts.bits and enough < rank:
        text = f"A rank of {enough} is enough for these rows; a higher rank learns about as well and costs more."
        return Advice(text, sums, f"{SCHULMAN}; {OWN}", (setting, str(enough)))
    return None


def _whole_model(facts: Facts) -> Advice | None:
    """Where everything learns from few rows."""
    tokens = facts.rows.tokens.likely
    few = tokens < TOKENS_OF_PARAMETER * facts.parameters and facts.rank_for_rows <= LARGE_RANK
    if facts.adapts or not few:
        return None
    holds = BITS_OF_PARAMETER * facts.ends * facts.rank_for_rows
    sums = (
        f"{tokens:,.0f} tokens are {tokens / facts.parameters:.2g} per parameter, while training from scratch needs "
        f"about {TOKENS_OF_PARAMETER}; LoRA of rank {facts.rank_for_rows} can store {holds / 1e6:,.2f} Mbit, and these "
        f"rows contain {facts.bits / 1e6:,.2f} Mbit of information"
    )
    text = "An adapter learns so few rows as well as full fine-tuning does, with less memory and time."
    return Advice(text, sums, f"{CHINCHILLA}; {SCHULMAN}", ("adapter.method", "lora"))


def _rate(facts: Facts) -> Advice | None:
    given = facts.training.learning_rate
    if isinstance(given, str):
        return None
    auto = TrainingConfig().highest_rate(facts.width, facts.adapter.auto_rate)
    change = ("training.learning_rate", "auto")
    sums = f"{given:g} is {given / auto:.2g} times the rate of auto at hidden size {facts.width:,}, {auto:.2g}"
    if facts.adapts and given >= HIGH * auto:
        found = "in every sweep, 8 times the rate of auto was worse than 4 times, and LoRA of rank 8 diverged"
        return Advice("The learning rate is high for an adapter.", f"{sums}; {found}", OWN, change)
    if facts.adapts and given <= LOW * auto:
        text = "The learning rate is low for an adapter: adapters need about ten times the rate of full fine-tuning."
        found = "a quarter of the rate of auto was the worst in every sweep that included it"
        return Advice(text, f"{sums}; {found}", f"{SCHULMAN}; {OWN}", change)
    if not facts.adapts and given >= HIGH_FOR_WHOLE * auto:
        text = "The learning rate would suit an adapter; full fine-tuning works best with about a tenth of it."
        return Advice(text, sums, f"{SCHULMAN}; {BIDERMAN}", change)
    return None


def _short(facts: Facts) -> Advice | None:
    steps = facts.rows.steps(facts.training)
    if not facts.adapts or steps >= SHORT_RUN or facts.training.learning_rate != "auto":
        return None
    rate = 1.5 * facts.training.highest_rate(facts.width, facts.adapter.auto_rate)
    sums = (
        f"{steps} steps; the best rate of LoRA was 15 times that of full fine-tuning below about 100 steps, and 10 "
        "times above"
    )
    text = f"In such a short run, a higher learning rate may work better, such as {rate:.2g}."
    return Advice(text, sums, SCHULMAN, ("training.learning_rate", f"{rate:.2g}"))


def _targets(facts: Facts) -> Advice | None:
    if not facts.ranks or not all("att" in path.lower() for path in facts.ranks):
        return None
    rank = max(1, facts.trainable // facts.ends)
    sums = (
        "with the same number of parameters, adapters on all matrices were better than on queries and values alone, on "
        "all eight GLUE tasks (MNLI 90.30 against 89.80, CoLA 68.71 against 67.04); on all linear layers, rank "
        f"{rank} has as many parameters as now"
    )
    text = "Adapt all linear layers with a lower rank, instead of the attention layers alone."
    return Advice(text, sums, f"{ADALORA}; {SCHULMAN}", ("adapter.targets", "all-linear"))


def _batch(facts: Facts) -> Advice | None:
    size = facts.training.rows_per_step(max(1, round(facts.rows.documents.likely)))
    if not facts.adapts or size <= LARGE_BATCH:
        return None
    text = f"Use at most {LARGE_BATCH} rows per step: large batches hurt adapters more than full fine-tuning."
    sums = f"{size} rows per step; at 32 the difference from full fine-tuning was small at every rank"
    return Advice(text, sums, SCHULMAN, ("training.batch_size", str(LARGE_BATCH)))


def _epochs(facts: Facts) -> Advice | None:
    if facts.passes <= MANY_EPOCHS:
        return None
    text = f"After {MANY_EPOCHS} passes, further ones improve the model less and less; more rows would help more."
    sums = (
        f"{facts.passes:.1f} passes; in pretraining, up to four passes were as good as new rows, and the benefit of "
        "further passes fell to zero"
    )
    return Advice(text, sums, REPEATED, None)


def _too_long(facts: Facts) -> Advice | None:
    limit, longest = facts.data.max_length, facts.rows.longest_found
    room = facts.context if facts.context is not None else longest
    if facts.data.too_long != "drop" or facts.rows.too_long < 1 or limit >= room:
        return None
    wanted = min(room, -(-longest // 64) * 64)
    text = f"Raise the limit to {wanted:,} tokens to keep the rows that are longer than {limit:,}, if memory allows."
    sums = f"about {facts.rows.too_long:,.0f} rows are left out; the longest row of the sample has {longest:,} tokens"
    return Advice(text, sums, "the rows themselves", ("data.max_length", str(wanted)))


RULES: tuple[Callable[[Facts], Advice | None], ...] = (
    _capacity, _whole_model, _rate, _short, _targets, _batch, _epochs, _too_long,
)  # fmt: skip
