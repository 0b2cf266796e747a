"""What learns: an adapter over the base model, with its rank, its scale and its layers; or the whole model."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rankwise.config.base import Config, Number, PositiveInt
from rankwise.errors import ConfigError

Rank = Annotated[int, Field(ge=1, le=4096, strict=True)]
Alpha = Annotated[Number, Field(gt=0, le=1e6)]
ExportFormat = Literal["peft", "portable", "merged"]


class AdapterConfig(Config):
    """What LoRA and AdaLoRA share. A target and a pattern's key are matched alike: a word of letters, digits, `_`, `.`
    and `-` is the end of a module's path; anything else is a regular expression for the whole path or its end after a
    dot.
    """

    result: ClassVar[str] = "adapter"
    """The folder of a finished run that holds what was learned."""
    dropout: Number = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("all-linear",)
    """`all-linear`: every linear layer but the output head; or names and regular expressions."""
    layers: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None
    """Block numbers to keep, written 0-3,7 or [0, 1, 2, 3, 7]."""

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_as_list(cls, value: object) -> object:
        if isinstance(value, str):
            value = _split_names(value)
        if isinstance(value, list | tuple) and (not value or not all(value)):
            raise ValueError("name at least one layer, or all-linear")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_numbers(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        return _parse_layers(value) if isinstance(value, str) else value


class LoraConfig(AdapterConfig):
    """delta W = (alpha / rank) B A, and variants of it.

    The defaults follow Schulman et al. 2025 ("LoRA Without Regret"): every linear layer, alpha 32.
    """

    method: Literal["lora"] = "lora"
    rank: Rank = 16
    alpha: Alpha = 32.0
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)
    start: Literal["uniform", "eva"] = "uniform"
    """Of A. `eva` (Paischer et al. 2024): the main directions of each layer's inputs on the training rows, and more
    rank where they hold more of the input; all together have no more parameters than without."""
    eva_rho: Number = Field(2.0, ge=1)
    """The most that one layer's rank may become, as a multiple of what it would be; 1 for equal ranks."""
    eva_batches: PositiveInt = 8
    """How many micro-batches of the training rows are looked at, one pass at most. They come in the order of
    training."""

    scaling: Literal["rank", "sqrt-rank"] = "rank"
    """What alpha is divided by; `sqrt-rank` is rank-stabilised LoRA (arXiv 2312.03732)."""
    b_rate: Number = Field(1.0, gt=0, le=1e3)
    """LoRA+ (arXiv 2402.12354): learning rate of B, which starts at zero, as a multiple of A's; for an embedding A
    starts at zero and is the faster."""
    dora: bool = False
    """DoRA (arXiv 2402.09353): learn the length of each output's weights apart from their direction. Linear layers and
    Conv1D only, and no other adapter beside it."""

    @model_validator(mode="after")
    def _eva_alone(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in ("eva_rho", "eva_batches") if getattr(self, name) != fields[name].default]
        if self.start != "eva" and idle:
            raise ValueError(f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect without start eva")
        return self


class AdaLoraConfig(AdapterConfig):
    """delta W = scale P^T diag(strength) Q, with ranks that go where they pay (Zhang et al. 2023).

    Phases are shares of the run, whatever its length. `compat: reference` takes the authors' choices for what is not
    said: no shrinking, their penalty, their start, one learning rate.
    """

    method: Literal["adalora"] = "adalora"
    budget: str = "8"
    """What is left at the end: a mean rank (8), `1680 triplets`, `600k parameters`, or the size of the written adapter
    (`2MB`)."""
    initial: Number = Field(1.5, ge=1, le=16)
    """How many times the budget it starts with."""
    scale: Number = Field(2.0, gt=0, le=1e4)
    """What alpha / rank is for LoRA; the same for all layers, and constant."""
    warmup: Number = Field(0.1, ge=0, lt=1)
    """Share of the steps before the first triplet is retired."""
    final: Number = Field(0.4, ge=0, lt=1)
    """Share of the steps that are left when the ranks are decided for good."""
    interval: PositiveInt | Literal["auto"] = "auto"
    """Steps between two decisions; `auto` is a two-hundredth of the run, 100 at most."""
    beta1: Number = Field(0.85, gt=0, lt=1)
    """Of the average of sensitivities."""
    beta2: Number = Field(0.85, gt=0, lt=1)
    """Of the average of their uncertainty."""
    orthogonality: Number = Field(0.001, ge=0)
    """Weight of the penalty that keeps the rows of P and of Q orthonormal. It is in no loss that is told. This much
    kept them within 2 % of it on the starter; the authors' 0.1 made a worse model (lab/adalora.md)."""
    penalty: Literal["paper", "reference"] = "paper"
    """`paper`: the squared norm, summed; `reference`: the norm, averaged, as the authors' code has it."""
    importance: Literal["after", "before"] = "after"
    """Whether it is taken after the optimizer step, as in the authors' code, or before, as in the paper."""
    strength_rate: Number = Field(32.0, gt=0, le=1e3)
    """Learning rate of the strengths, as a multiple of the others'."""
    budget_unit: Literal["triplets", "parameters"] = "triplets"
    """`parameters`: score for each parameter, so that a rank of a narrow layer is cheaper than one of a wide one. A
    budget of parameters or bytes is always spent so."""
    start: Literal["orthonormal", "gaussian"] = "orthonormal"
    """Of P and Q; `gaussian` has the authors' standard deviation of 0.02."""
    shrink: bool = True
    """Take retired triplets out for good when the ranks are decided; without it they are set to zero at each step."""

    @model_validator(mode="before")
    @classmethod
    def _compat(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "compat" not in value:
            return value
        given = dict(value)
        if given.pop("compat") != "reference":
            raise ValueError("compat is reference, or left out")
        return REFERENCE | given

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_as_text(cls, value: object) -> object:
        text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value
        if isinstance(text, str):
            _parse_budget(text)
        return text

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.warmup + self.final >= 1:
            raise ValueError("warmup and final leave no steps between them, in which ranks would be decided")
        return self

    @property
    def asked(self) -> tuple[BudgetKind, float]:
        return _parse_budget(self.budget)


class FullConfig(Config):
    """Every weight of the model learns, in float32: what an adapter is measured against."""

    result: ClassVar[str] = "model"
    method: Literal["full"] = "full"


AdaLora = AdaLoraConfig
"""As it is named from Python: `rankwise.AdaLora(budget=8)`."""
BudgetKind = Literal["rank", "triplets", "parameters", "bytes"]
UNITS: dict[str, BudgetKind] = {
    "": "rank", "rank": "rank", "triplet": "triplets", "triplets": "triplets", "parameter": "parameters",
    "parameters": "parameters", "params": "parameters", "b": "bytes",
}  # fmt: skip
LARGEST_BUDGET = 1e13
LARGEST_STRENGTH = 10.0
TIMES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
REFERENCE: dict[str, Any] = {
    "penalty": "reference", "orthogonality": 0.1, "strength_rate": 1.0, "start": "gaussian", "shrink": False,
    "importance": "after",
}  # fmt: skip


def _parse_budget(text: str) -> tuple[BudgetKind, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)\s*(b|rank|triplets?|parameters?|params|)", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError("a budget is a mean rank (8), 1680 triplets, 600k parameters, or a size (2MB)")
    kind, amount = UNITS[found[3]], float(found[1]) * TIMES[found[2]]
    if kind == "rank" and not 0 < amount <= 4096:
        raise ValueError("a mean rank is at most 4096; write a size as 2MB, parameters as 600k parameters")
    if amount > LARGEST_BUDGET:
        raise ValueError("a budget is at most 1e13, which no adapter needs")
    return kind, amount


def check_strength(strength: float) -> None:
    """How many times its own change an adapter makes."""
    if not 0 <= strength <= LARGEST_STRENGTH:  # so that NaN is refused too
        raise ConfigError(
            [f"a strength is from 0, the base, over 1, as it was trained, to {LARGEST_STRENGTH:g}; not {strength:g}."]
        )


def _split_names(text: str) -> list[str]:
    """`q_proj,(k|v)_proj` is two targets; a comma inside brackets belongs to an expression."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parse_layers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError("write block numbers as 0-3,7")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high - low > 10_000:
            raise ValueError(f"{part.strip()} is no range of blocks")
        numbers.extend(range(low, high + 1))
    return tuple(sorted(set(numbers)))
