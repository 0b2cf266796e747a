"""The fronts of lab/keeping.py as a picture: what a way loses on unseen rows, and how far it moves from its base.

    python lab/keeping_picture.py [CELLS PICTURE]   by default of lab/keeping/keeping.jsonl, as docs/keeping.svg

Seed 0, a panel for each task. A line joins one adapter at its strengths. Nearer to the lower
left is better.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keeping import ROWS, Cell, loss_of
from stored_cells import done_in

WAYS = {
    "plain": ("LoRA", "#333333", "o"), "anchor-0.3": ("with --anchor 0.3", "#56b4e9", "o"),
    "anchor": ("with --anchor 1", "#0072b2", "o"), "anchor-code": ("with --anchor 1 and code", "#5a3fc0", "o"),
    "anchor-3": ("with --anchor 3", "#004466", "o"),
    "replay": ("with --replay 0.2", "#e69f00", "s"), "half-rate": ("at half the rate", "#009e73", "^"),
    "quarter-rate": ("at a quarter of the rate", "#66c2a5", "^"), "mlp": ("on the MLPs alone", "#cc79a7", "v"),
    "decay": ("with weight decay 0.3", "#999999", "v"), "full": ("all weights", "#d55e00", "*"),
    "full-half-rate": ("all weights at half the rate", "#f0a070", "*"),
}  # fmt: skip
"""Their names, colours and marks."""
TEXT = "wikitext"
HERE = Path(__file__).parents[1]


def points(done: dict[Cell, dict[str, Any]], task: str, way: str) -> list[tuple[float, float]]:
    """Nats of loss above plain LoRA's, and of divergence, by falling strength."""
    row, plain = done.get((task, way, 0)), done[task, "plain", 0]
    measured = {} if row is None else row["measured"]
    return [(loss_of(row or {}, at) - loss_of(plain), one["kl"][TEXT]) for at, one in measured.items()]


def draw(done: dict[Cell, dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "keeping"
    figure, panels = pyplot.subplots(1, len(ROWS), figsize=(3.1 * len(ROWS), 3.9), layout="constrained", sharey=True)
    lines: dict[str, Any] = {}
    for panel, task in zip(panels, ROWS, strict=True):
        for way, (name, colour, mark) in WAYS.items():
            if front := points(done, task, way):
                (lines[name],) = panel.plot(
                    *zip(*front, strict=True), color=colour, marker=mark, markersize=9 if mark == "*" else 5
                )
        panel.set_title(task)
        panel.set_xscale("symlog", linthresh=0.02)
        panel.set_xticks([-0.01, 0, 0.01, 0.05, 0.2], ["-0.01", "0", "0.01", "0.05", "0.2"])
        panel.set_yscale("log")
        panel.set_yticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2], ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("divergence from the base on WikiText-2\n(nats per token)")
    figure.supxlabel("loss on unseen rows above that of LoRA (nats per answer token)", fontsize=10)
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, nargs="?", default=HERE / "lab/keeping/keeping.jsonl")
    parser.add_argument("to", type=Path, nargs="?", default=HERE / "docs/keeping.svg")
    given = parser.parse_args()
    draw(done_in(given.cells), given.to)


if __name__ == "__main__":
    main()
