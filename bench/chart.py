"""The bar chart of the README: tokens per second of every stack that train_step.py measured, and its peak memory.

python bench/chart.py bench/results/train-step-DATE.json docs/speed.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OURS, THEIRS = "#2f6f9f", "#b9b9b9"


def draw(rows: list[dict[str, Any]], to: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "rankwise"
    rows = sorted(rows, key=lambda row: row["tokens_per_second"])
    names = [row["stack"] for row in rows]
    colours = [OURS if name.startswith("rankwise") else THEIRS for name in names]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 0.4 * len(rows) + 1), sharey=True, layout="constrained")
    shown = (("tokens_per_second", 1.0, "tokens per second (more is better)", "{:,.0f}"),
             ("peak_rss_bytes", 1e9, "peak memory in GB (less is better)", "{:.1f}"))  # fmt: skip
    for panel, (key, unit, title, form) in zip(panels, shown, strict=True):
        values = [row[key] / unit for row in rows]
        bars = panel.barh(names, values, color=colours)
        panel.bar_label(bars, [form.format(value) for value in values], padding=3)
        panel.set_title(title, fontsize=10)
        panel.set_xlim(0, max(values) * 1.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("to", type=Path)
    asked = parser.parse_args()
    draw(json.loads(asked.results.read_text())["rows"], asked.to)


if __name__ == "__main__":
    main()
