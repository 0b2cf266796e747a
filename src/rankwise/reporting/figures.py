"""Drawing primitives of all charts: matplotlib with a common look, in two widths, as inline SVG.

Each chart is drawn for wide and for narrow screens, and the style sheet shows the one that fits, because scaled-down
text is unreadable. Text is never parsed as a formula, and a drawing does not depend on the date, the machine or the
process. Charts are drawn in placeholder colours, one for each role, and only known elements and attributes are taken
over, each placeholder as a class of the style sheet. So charts follow the page's dark mode, contain no styles of their
own and refer to no other file.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from matplotlib.transforms import Transform

from rankwise.reporting.markup import Markup, element, joined, shown

ROLES = {
    "ink": "#010101", "quiet": "#010102", "rule": "#010103", "tuned": "#010104", "base": "#010105", "paper": "#010106",
    "good": "#010107", "bad": "#010108", "third": "#010109", "fourth": "#01010a",
}  # fmt: skip
"""Roles of colours, with their placeholder colours."""
OF_COLOUR = {colour: role for role, colour in ROLES.items()}
ELEMENTS = frozenset({"svg", "g", "path", "use", "defs", "text"})
ATTRIBUTES = ("d", "x", "y", "transform", "id", "href")
STYLES = (
    "opacity", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "fill-opacity",
    "stroke-opacity", "font-size", "font-weight", "text-anchor",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_IDLE = re.compile(r"rotate\(-?0(?:\.0)? [^)]*\)")


def inline(drawing: str, name: str, label: str, variant: str) -> Markup:
    """Convert a drawing; `name` makes its internal references unique on the page."""
    tree = ElementTree.fromstring(drawing)
    children = [_cleaned(child, name) for child in tree]
    return element(
        "svg", children, class_=f"chart {variant}", viewBox=tree.get("viewBox"), role="img", aria_label=label
    )


def _cleaned(node: ElementTree.Element, name: str) -> Markup:
    tag = _local(node.tag)
    if tag not in ELEMENTS:
        return Markup("")
    children = [_cleaned(child, name) for child in node]
    if tag in ("g", "defs") and not node.attrib.keys() - {"id"}:  # drop groups that only have an id
        return Markup("".join(children)) if tag == "g" else element("defs", children)
    attributes = _attributes(node, name)
    return element(tag, node.text or "" if tag == "text" else "", children, **attributes)


def _attributes(node: ElementTree.Element, name: str) -> dict[str, str]:
    named = {_local(key): value for key, value in node.attrib.items()}
    attributes = {key: _short(_own(key, value, name)) for key, value in named.items() if key in ATTRIBUTES}
    styles = _styles(named.get("style", ""))
    classes = [
        f"{prefix}-{role}"
        for style, prefix in (("fill", "f"), ("stroke", "s"))
        if (role := OF_COLOUR.get(styles.get(style, "")))
    ]
    if styles.get("fill") == "none":
        classes.append("f-none")
    attributes["class"] = " ".join(classes)
    return {key: value for key, value in attributes.items() if value} | {
        style: _short(styles[style].removesuffix("px")) for style in STYLES if style in styles
    }


def _styles(written: str) -> dict[str, str]:
    pairs = (entry.partition(":") for entry in written.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}" if value.startswith("#") else ""
    return _IDLE.sub("", value) if key == "transform" else value


def _short(value: str) -> str:
    """Round numbers to a hundredth of a pixel."""
    return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


WIDTHS = {"wide": 760, "narrow": 358}
PER_INCH = 72
GAP = 6
"""Pixels between an axis and the numbers beside it."""
TO = {"start": "left", "middle": "center", "end": "right"}
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "rankwise", "text.parse_math": False, "font.size": 11,
            "axes.unicode_minus": True, "path.simplify": True, "font.family": ["DejaVu Sans"]}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One pair of axes on a sheet."""

    axes: Axes
    narrow: bool
    left: float
    """Pixels to its left on the sheet."""
    width: float
    height: float

    def line(
        self, xs: Sequence[float], ys: Sequence[float], role: str, *, width: float = 1.8, opacity: float = 1.0,
        dashed: bool = False, stepped: bool = False,
    ) -> None:  # fmt: skip
        self.axes.plot(
            xs, ys, color=ROLES[role], linewidth=width, alpha=opacity, linestyle=(0, (4, 3)) if dashed else "-",
            drawstyle="steps-post" if stepped else "default", clip_on=False, solid_capstyle="round",
            solid_joinstyle="round", zorder=3,
        )  # fmt: skip

    def dots(
        self, xs: Sequence[float], ys: Sequence[float], role: str, *, size: float = 6, hollow: bool = False
    ) -> None:
        self.axes.plot(
            xs, ys, "o", markersize=size, markerfacecolor=ROLES["paper" if hollow else role], clip_on=False,
            markeredgecolor=ROLES[role], markeredgewidth=1.6 if hollow else 0, zorder=5,
        )  # fmt: skip

    def span(self, x: tuple[float, float], y: tuple[float, float], role: str, *, width: float = 1.6) -> None:
        """Draw an interval from one end to the other."""
        self.axes.plot(x, y, color=ROLES[role], linewidth=width, solid_capstyle="butt", clip_on=False, zorder=4)

    def cell(self, x: float, y: float, role: str, opacity: float, gap: float = 0.06) -> None:
        """Draw a unit square around a point."""
        side = 1 - 2 * gap
        self.axes.add_patch(
            Rectangle((x - side / 2, y - side / 2), side, side, facecolor=ROLES[role], alpha=opacity, linewidth=0)
        )

    def word(
        self, x: float, y: float, words: str, role: str = "ink", *, to: str = "middle",
        beside: tuple[float, float] = (0, 0), size: float = 11, bold: bool = False,
    ) -> None:  # fmt: skip
        """Write text whose start, middle or end (`to`) is at a point, moved by `beside` pixels."""
        self.axes.annotate(
            " ".join(shown(words).split()), (x, y), xytext=beside, textcoords="offset points", annotation_clip=False,
            fontsize=size, ha=TO[to], va="center_baseline", color=ROLES[role],
            weight="bold" if bold else "normal", zorder=6,
        )  # fmt: skip

    def headed(self, words: str) -> None:
        """Write the label of the vertical axis above the axes instead of along them."""
        self.axes.annotate(
            shown(words), (0, 1), xycoords="axes fraction", xytext=(-self.left, 14), textcoords="offset points",
            ha="left", va="baseline", fontsize=11, color=ROLES["quiet"], annotation_clip=False,
        )  # fmt: skip

    def across(self, low: float, high: float, *, whole: bool = True, under: str = "") -> None:
        """Set up the horizontal axis; `under` is written below its right end."""
        self.axes.set_xlim(low, high if high > low else low + 1)
        locator = MaxNLocator(4 if self.narrow else 8, integer=whole, steps=[1, 2, 5, 10])
        below = self.axes.get_xaxis_transform()
        for x in _within(locator, self.axes.get_xlim()):
            self._label(x, -GAP / self.height, _tick(x), below, "center", "top")
        self._label(1, -32 / self.height, shown(under), self.axes.transAxes, "right", "baseline")

    def upwards(self, low: float, high: float, *, log: bool = False, ticks: int = 5) -> None:
        """Set up the vertical axis, with a line across the panel at each tick."""
        locator: Locator = MaxNLocator(ticks, steps=[1, 2, 5, 10])
        if log:
            self.axes.set_yscale("log")
            locator = LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0), numticks=9)
        self.axes.set_ylim(low, high if high > low else low + 1)
        levels, beside = _within(locator, self.axes.get_ylim()), self.axes.get_yaxis_transform()
        self.axes.hlines(levels, 0, 1, transform=beside, color=ROLES["rule"], linewidth=1, zorder=0, clip_on=False)
        for y in levels:
            self._label(-GAP / self.width, y, _tick(y), beside, "right", "center_baseline")

    def _label(self, x: float, y: float, words: str, transform: Transform, across: Any, up: Any) -> None:
        self.axes.text(x, y, words, transform=transform, ha=across, va=up, fontsize=11, color=ROLES["quiet"])

    def bare(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Remove all scales, for maps."""
        self.axes.set_xlim(*x)
        self.axes.set_ylim(*y)
        self.axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class Sheet:
    figure: Figure
    width: float
    height: float

    @property
    def narrow(self) -> bool:
        return self.width < 500

    def panel(self, left: float, top: float, right: float, bottom: float) -> Panel:
        """Add axes with margins of so many pixels."""
        axes = self.figure.add_axes((
            left / self.width, bottom / self.height, (self.width - left - right) / self.width,
            (self.height - top - bottom) / self.height,
        ))  # fmt: skip
        axes.set_facecolor("none")
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.spines["bottom"].set(color=ROLES["rule"], linewidth=1)
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)
        return Panel(axes, self.narrow, left, self.width - left - right, self.height - top - bottom)


def chart(name: str, label: str, draw: Callable[[Sheet], None], heights: tuple[float, float]) -> Markup:
    """Draw a chart in both widths; `heights` belong to the wide and the narrow drawing, `label` describes it in
    words."""
    drawings = zip(WIDTHS, heights, strict=True)
    return joined([drawn(name, label, draw, height, variant) for variant, height in drawings])


def drawn(name: str, label: str, draw: Callable[[Sheet], None], height: float, variant: str) -> Markup:
    """Draw a chart in the width of one variant only."""
    width = WIDTHS[variant]
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without some letter: the reader's own has it
        figure = Figure(figsize=(width / PER_INCH, height / PER_INCH), facecolor="none")
        FigureCanvasSVG(figure)
        draw(Sheet(figure, width, height))
        written = io.StringIO()
        figure.savefig(written, format="svg", dpi=PER_INCH, metadata={"Date": None})
    return inline(written.getvalue(), f"{name}-{variant}", label, variant)


def _within(locator: Locator, limits: tuple[float, float]) -> list[float]:
    """The ticks inside the limits of an axis. Drawing them is several times faster than matplotlib's axes are."""
    low, high = limits
    slack = 1e-9 * (high - low)
    return [float(tick) for tick in locator.tick_values(low, high) if low - slack <= tick <= high + slack]


def _tick(value: float) -> str:
    size = abs(value)
    text = f"{value:.0e}" if size and (size < 1e-4 or size >= 1e7) else f"{value:,.10g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "\u2212")
