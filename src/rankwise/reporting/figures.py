"""Drawing primitives of all charts, as inline SVG in two widths.

Each chart is drawn for wide and for narrow screens, and the style sheet shows the one that fits, because scaled-down
text is unreadable. Colours are roles, which are classes of the style sheet. So charts follow the page's dark mode,
contain no styles of their own and refer to no other file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rankwise.reporting.markup import Markup, element, joined, shown

WIDTHS = {"wide": 760, "narrow": 358}
GAP, SIZE = 6, 11
"""Pixels between an axis and the numbers beside it, and of the height of letters."""


@dataclass
class Panel:
    """One pair of axes on a sheet; everything drawn on it lies at values of these axes. Sizes are in pixels."""

    sheet: Sheet
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0, 1)
    """The ends of the horizontal axis, and in `y` those of the vertical one."""
    y: tuple[float, float] = (0, 1)
    log: bool = False
    """Whether the vertical axis is logarithmic."""

    def level(self, value: float) -> float:
        """The height of a value above the lower end."""
        low, high, value = (math.log(one) if self.log else one for one in (*self.y, value))
        return self.height * (value - low) / (high - low)

    def line(
        self, xs: Sequence[float], ys: Sequence[float], role: str, *, width: float = 1.8, opacity: float | None = None,
        dashed: bool = False, stepped: bool = False,
    ) -> None:  # fmt: skip
        points = list(map(self._at, xs, ys))
        lines = [f"H{x}V{y}" if stepped else f"L{x} {y}" for x, y in points[1:]]
        begin = [f"M{x} {y}" for x, y in points[:1]]
        self._add(
            "path", d="".join([*begin, *lines]), class_=f"f-none s-{role}", stroke_width=width, stroke_opacity=opacity,
            stroke_linecap="round", stroke_dasharray="4 3" if dashed else None,
        )  # fmt: skip

    def dots(
        self, xs: Sequence[float], ys: Sequence[float], role: str, *, size: float = 6, hollow: bool = False
    ) -> None:
        colours = f"f-paper s-{role}" if hollow else f"f-{role}"
        for x, y in map(self._at, xs, ys):
            self._add("circle", cx=x, cy=y, r=size / 2, class_=colours, stroke_width=1.6 if hollow else None)

    def span(self, x: tuple[float, float], y: tuple[float, float], role: str, *, width: float = 1.6) -> None:
        """Draw an interval from one end to the other."""
        (x1, y1), (x2, y2) = map(self._at, x, y)
        self._add("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=f"s-{role}", stroke_width=width)

    def word(
        self, x: float, y: float, words: str, role: str = "ink", *, to: str = "middle",
        offset: tuple[float, float] = (0, 0), bold: bool = False,
    ) -> None:  # fmt: skip
        """Write text whose start, middle or end (`to`) is at a point, moved by `offset` pixels to the right and up."""
        right, down = self._at(x, y)
        self._write(right + offset[0], down - offset[1] + 0.36 * SIZE, words, role, to, bold=bold)

    def headed(self, words: str) -> None:
        """Write the label of the vertical axis above the axes instead of along them."""
        self._write(0, self.top - 14, words, "quiet", "start")

    def across(
        self,
        low: float,
        high: float,
        *,
        integers: bool = True,
        under: str = "",
        marks: Mapping[float, str] | None = None,
    ) -> None:
        """Set up the horizontal axis; `under` is written below its right end. Without `marks` it has round numbers."""
        self.x = low, high if high > low else low + 1
        bottom, right = self.top + self.height, self.left + self.width
        self._add("line", x1=self.left, x2=right, y1=bottom, y2=bottom, class_="s-rule")
        for x, words in (
            marks or {x: _tick(x) for x in ticks(*self.x, 4 if self.sheet.narrow else 8, integers)}
        ).items():
            self._write(self._at(x, self.y[0])[0], bottom + GAP + 0.9 * SIZE, words, "quiet", "middle")
        self._write(right, bottom + 32, under, "quiet", "end")

    def upwards(self, low: float, high: float, *, log: bool = False, most: int = 5) -> None:
        """Set up the vertical axis, with a line across the panel at each tick."""
        self.y, self.log = (low, high if high > low else low + 1), log
        for y in decades(*self.y) if log else ticks(*self.y, most):
            down = self._at(0, y)[1]
            self._add("line", x1=self.left, x2=self.left + self.width, y1=down, y2=down, class_="s-rule")
            self._write(self.left - GAP, down + 0.36 * SIZE, _tick(y), "quiet", "end")

    def _at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.x
        right, up = self.width * (x - low) / (high - low), self.level(y)
        return round(self.left + right, 2), round(self.top + self.height - up, 2)

    def _write(self, x: float, y: float, words: str, role: str, to: str, *, bold: bool = False) -> None:
        self._add("text", " ".join(shown(words).split()), x=round(x, 2), y=round(y, 2), class_=f"f-{role}",
                  font_size=SIZE, text_anchor=to, font_weight="bold" if bold else None)  # fmt: skip

    def _add(self, tag: str, *words: str, **attributes: str | float | None) -> None:
        self.sheet.drawn.append(element(tag, *words, **attributes))


@dataclass(frozen=True)
class Sheet:
    """What a chart is drawn on, and what it has so far."""

    width: float
    height: float
    drawn: list[Markup] = field(default_factory=list)

    @property
    def narrow(self) -> bool:
        return self.width < 500

    def panel(self, left: float, top: float, right: float, bottom: float) -> Panel:
        """Add axes with margins of so many pixels."""
        return Panel(self, left, top, self.width - left - right, self.height - top - bottom)


def chart(label: str, draw: Callable[[Sheet], None], heights: tuple[float, float]) -> Markup:
    """Draw a chart in both widths; `heights` belong to the wide and the narrow drawing, `label` describes it in
    words."""
    drawings = zip(WIDTHS, heights, strict=True)
    return joined([drawn(label, draw, height, variant) for variant, height in drawings])


def drawn(label: str, draw: Callable[[Sheet], None], height: float, variant: str) -> Markup:
    """Draw a chart in the width of one variant only."""
    sheet = Sheet(WIDTHS[variant], height)
    draw(sheet)
    return element(
        "svg", sheet.drawn, class_=f"chart {variant}", viewBox=f"0 0 {sheet.width} {sheet.height}", role="img",
        aria_label=label,
    )  # fmt: skip


def ticks(low: float, high: float, most: int, integers: bool = False) -> list[float]:
    """Round numbers between the ends of an axis, one, two, five or ten times a power of ten apart."""
    rough = (high - low) / most
    if not 1e-300 < rough < 1e300:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))
    apart = max(1.0, apart) if integers else apart
    return [at * apart for at in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten between the ends of a logarithmic axis, and of a short one twice and five times these."""
    times = (1,) if high / low > 100 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [one * 10.0**power for power in powers for one in times if low <= one * 10.0**power <= high]


def _tick(value: float) -> str:
    size = abs(value)
    text = f"{value:.0e}" if size and (size < 1e-4 or size >= 1e7) else f"{value:,.10g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "\u2212")
