"""The losses of a run as a matplotlib figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CURVES = (("step", "training", "-"), ("validation", "validation", "o-"))
"""The kind of record, its label, and how it is drawn."""


class LossPlot(Figure):
    """A figure that a notebook draws as it is, without pyplot and without a choice of backend."""

    def _repr_svg_(self) -> str:
        drawn = io.StringIO()
        self.savefig(drawn, format="svg", bbox_inches="tight")
        return drawn.getvalue()


def loss_plot(metrics: Sequence[dict[str, Any]], title: str) -> LossPlot:
    """The loss of each training step, and the validation loss where it was measured."""
    figure = LossPlot(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, label, style in CURVES:
        rows = [row for row in metrics if row.get("kind") == kind]
        if rows:
            axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], style, label=label)
    axes.set(xlabel="step", ylabel="loss (nats)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure
