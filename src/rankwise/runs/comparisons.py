"""Two runs beside each other: what was asked of them, what it cost, and how they differ on the same items.

`a` is what `b` is compared with, so a difference is b minus a.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from rankwise.config.base import Config
from rankwise.runs.evaluations import Difference, Forgetting, Measured, Verdict


class Differing(Config):
    """One recorded value that is not the same; None where a side has none."""

    key: str
    a: Any = None
    b: Any = None

    @property
    def one_sided(self) -> bool:
        """Such as a setting that only one of two methods has."""
        return self.a is None or self.b is None


class ComparedTask(Config):
    """`differences` has the metrics that both sides have, unless `unpaired` says why no item can be held against its
    like."""

    task: str
    n_a: int
    n_b: int
    a: dict[str, Measured]
    b: dict[str, Measured]
    differences: dict[str, Difference]
    unpaired: str | None = None
    set_apart: dict[str, str] = Field(default_factory=dict)
    """Why no difference is given, by metric: where the items are the same, and what the metric counts is not."""
    settings: list[Differing] = Field(default_factory=list)
    """Of the evaluations, where they differ."""


class ComparedForgetting(Config):
    """`verdict` is of b, which is better where it moved less: by the blocks that both were measured on, or, where a
    file does not have them, by whether the intervals are apart."""

    a: Forgetting | None
    b: Forgetting | None
    verdict: Verdict | None
    incomparable: str | None = None
    differences: dict[str, Difference] = Field(default_factory=dict)
    """`kl` and `delta_nll`, block by block."""


class Comparison(Config):
    format: Literal[1] = 1
    a: str
    b: str
    settings: list[Differing]
    data: list[Differing]
    base_model: list[Differing]
    cost: list[Differing]
    made_with: list[Differing]
    """Versions and machine."""
    tasks: list[ComparedTask]
    only_a: list[str]
    only_b: list[str]
    """Tasks that one side alone was evaluated on."""
    forgetting: ComparedForgetting | None


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their dotted names."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in leaves(part, f"{path}.{name}" if path else name).items()
    }


def differing(a: Any, b: Any, but: Collection[str] = ()) -> list[Differing]:
    """The leaves that two nested dictionaries do not share, in a's order and then b's."""
    one, other = leaves(a), leaves(b)
    return [
        Differing(key=key, a=one.get(key), b=other.get(key))
        for key in one | other
        if key not in but and one.get(key) != other.get(key)
    ]
