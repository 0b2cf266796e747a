"""What a sweep varies: `--over KEY=VALUES`, where the values are a list (4,8,16) or a range (1e-4..1e-2).

A range of numbers above 0 whose ends are far apart is logarithmic. In a grid, a range is POINTS values at equal
distances; with a number of trials, any value in it may be tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from rankwise.config.reading import Setting, parse_setting
from rankwise.errors import ConfigError

POINTS, FAR = 5, 8
"""Values of a range in a grid, and the ratio of its ends from which it is logarithmic."""
Number = int | float


@dataclass(frozen=True)
class Axis:
    """`values` where they were listed, and otherwise the ends of a range."""

    key: str
    values: tuple[Any, ...] = ()
    low: Number = 0
    high: Number = 0

    @property
    def is_range(self) -> bool:
        return not self.values

    @property
    def integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        return self.low > 0 and self.high / self.low >= FAR

    @property
    def points(self) -> tuple[Any, ...]:
        """The values of a grid."""
        if not self.is_range:
            return self.values
        shares = [at / (POINTS - 1) for at in range(POINTS)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            found = [self.low + (self.high - self.low) * share for share in shares]
        return tuple(dict.fromkeys(round(one) if self.integer else float(f"{one:.4g}") for one in found))

    def describe(self) -> str:
        return f"{self.low:g} to {self.high:g}" if self.is_range else ", ".join(map(str, self.values))


def parse_axis(text: str) -> Axis:
    """Parse the `a.b=1,2` or `a.b=1e-4..1e-2` of --over."""
    key, equals, values = text.partition("=")
    if not equals or not values or not all(key.split(".")):
        raise _wrong(text, "is not of the form key=values")
    first, dots, last = values.partition("..")
    given = (first, last) if dots else tuple(values.split(","))
    parsed = [parse_setting(f"{key}={_as_yaml(one)}").value for one in given]
    if not dots:
        if len(set(map(str, parsed))) < len(parsed):
            raise _wrong(text, "names a value twice")
        return Axis(key.strip(), tuple(parsed))
    low, high = parsed
    numbers = [one for one in (low, high) if isinstance(one, Number) and not isinstance(one, bool)]
    if len(numbers) < 2 or not low < high:
        raise _wrong(text, "is a range that does not go from a number to a higher one")
    return Axis(key.strip(), (), low, high)


def settings_of(values: dict[str, Any]) -> list[Setting]:
    return [Setting(key, value, f"--over {key}") for key, value in values.items()]


def grid(axes: list[Axis]) -> list[dict[str, Any]]:
    """Every combination, the last axis fastest."""
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in product(*(axis.points for axis in axes))]


def _as_yaml(text: str) -> str:
    """YAML takes 1e-4 for text, which people mean as a number."""
    try:
        number = float(text)
    except ValueError:
        return text
    return text if text.strip().lstrip("+-").isdigit() else repr(number)


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError([
        f'--over "{text}" {why}. Give a list (--over adapter.rank=4,8,16) or a range (--over '
        "training.learning_rate=1e-4..1e-2)."
    ])  # fmt: skip
