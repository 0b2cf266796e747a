"""A comparison of two runs: settings, costs, and differences of scores on the same items.

`b` is compared with `a`, so differences are b minus a.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from rankwise.config.base import Config
from rankwise.runs.evaluations import Forgetting
from rankwise.runs.measured import Difference, Measured, Verdict


class Differing(Config):
    """A recorded value that differs between two runs; None if a run does not have it."""

    key: str
    a: Any = None
    b: Any = None

    @property
    def one_sided(self) -> bool:
        """True for a setting that only one of the two methods has."""
        return self.a is None or self.b is None


class ComparedTask(Config):
    """Scores of both runs on one task. `differences` has the common metrics, unless `unpaired` says why items cannot be
    paired."""

    task: str
    n_a: int
    n_b: int
    a: dict[str, Measured]
    b: dict[str, Measured]
    differences: dict[str, Difference]
    unpaired: str | None = None
    set_apart: dict[str, str] = Field(default_factory=dict)
    """Reasons, by metric, why scores cannot be compared although the items are the same."""
    settings: list[Differing] = Field(default_factory=list)
    """Evaluation settings that differ."""


class ComparedForgetting(Config):
    """Forgetting of both runs. `verdict` is better if b moved less than a, judged by common blocks of text, or by
    whether the intervals are disjoint if a file has no blocks."""

    a: Forgetting | None
    b: Forgetting | None
    verdict: Verdict | None
    incomparable: str | None = None
    differences: dict[str, Difference] = Field(default_factory=dict)
    """Paired differences of `kl` and `delta_nll` over blocks."""


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
    """Tasks that only one of the two was evaluated on."""
    forgetting: ComparedForgetting | None


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to values by dotted names."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in leaves(part, f"{path}.{name}" if path else name).items()
    }


def differing(a: Any, b: Any, but: Collection[str] = ()) -> list[Differing]:
    """List the values in which two nested dictionaries differ, in the order of a and then b."""
    one, other = leaves(a), leaves(b)
    return [
        Differing(key=key, a=one.get(key), b=other.get(key))
        for key in one | other
        if key not in but and one.get(key) != other.get(key)
    ]
