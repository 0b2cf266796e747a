"""What lab/claims.py has measured, as tables and a picture for lab/claims.md.

    python lab/claims_page.py FOLDER PICTURE.svg

Rates: the loss by which a rate was chosen, and loss and KL at the end. Curves: KL at losses that a run passes on its
way, read as `forgets_less` reads it; with the best rate (all seeds), and with whichever rate forgets least there (one
seed). A dash is a loss that was not reached.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean, mean

from claims_answers import Curve, curve, equal_loss, kl_at
from claims_records import CellResult

METHODS = {"lora": "#0072b2", "adalora": "#d55e00", "full": "#333333"}
LEVELS = (0.0, 0.05, 0.1, 0.2)
"""Nats per token above the lowest loss that all runs at the best rates have reached."""

Rates = dict[float, list[CellResult]]
Cells = dict[tuple[str, int], dict[str, Rates]]


def read(file: Path) -> Cells:
    """By task and number of rows, method and rate; the first seed first."""
    found: Cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    for row in sorted(lines, key=lambda row: row["cell"]["seed"]):
        cell, result = row["cell"], CellResult(**row["result"])
        if cell["method"] in METHODS and result.failed is None:
            found[cell["task"], cell["rows"]][cell["method"]][cell["rate"]].append(result)
    return found


def best(rates: Rates) -> float:
    return min(rates, key=lambda rate: rates[rate][0].choosing_loss)


def rate_rows(methods: dict[str, Rates]) -> Iterator[str]:
    for method in METHODS:
        for rate, runs in sorted(methods.get(method, {}).items()):
            mark = " (best)" if rate == best(methods[method]) else ""
            ends = [run.points[-1] for run in runs]
            yield (
                f"| {method} | {rate:g}{mark} | {len(runs)} | {runs[0].choosing_loss:.4f} "
                f"| {mean(end.loss for end in ends):.4f} | {mean(end.kl for end in ends):.4f} "
                f"| {mean(run.seconds for run in runs):.0f} |"
            )


def curve_rows(methods: dict[str, Rates]) -> Iterator[str]:
    chosen = {method: [curve(run) for run in rates[best(rates)]] for method, rates in methods.items()}
    lowest = equal_loss([one for each in chosen.values() for one in each])
    if lowest is None:
        return
    for level in (lowest + above for above in LEVELS):
        for method in METHODS:
            every = [curve(run) for runs in methods.get(method, {}).values() for run in runs[:1]]
            yield f"| {level:.3f} | {method} | {_kl(chosen.get(method, []), level)} | {_least(every, level)} |"


def _kl(curves: Sequence[Curve], level: float) -> str:
    reached = [kl_at(one, level) for one in curves if min(loss for loss, _ in one) <= level]
    return f"{geometric_mean(reached):.4f}" if reached and len(reached) == len(curves) else "-"


def _least(curves: Sequence[Curve], level: float) -> str:
    reached = [kl_at(one, level) for one in curves if min(loss for loss, _ in one) <= level]
    return f"{min(reached):.4f}" if reached else "-"


def draw(cells: Cells, file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "claims"
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, len(cells), figsize=(3.4 * len(cells), 3.2), squeeze=False)
    for place, ((task, rows), methods) in zip(places[0], sorted(cells.items()), strict=True):
        for method, colour in METHODS.items():
            for rate, runs in methods.get(method, {}).items():
                chosen = rate == best(methods[method])
                for run in runs:
                    losses, kls = zip(*curve(run)[1:], strict=True)
                    place.plot(losses, kls, color=colour, lw=1.4 if chosen else 0.6, alpha=0.9 if chosen else 0.4,
                               marker=".", ms=3, label=method if chosen and run is runs[0] else None)  # fmt: skip
        place.set(title=f"{task}, {rows} rows", xlabel="loss on the task, nats per token", yscale="log")
        place.invert_xaxis()
    places[0][0].set_ylabel("KL from the base, other text")
    places[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    cells = read(options.folder / "cells.jsonl")
    for (task, rows), methods in sorted(cells.items()):
        print(f"\n### {task}, {rows} rows\n")
        print("| method | rate | seeds | loss, to choose by | loss at the end | KL at the end | seconds |")
        print("|---|---|---|---|---|---|---|", *rate_rows(methods), sep="\n")
        print("\n| at a loss of | method | KL, best rate | KL, least of all rates (first seed) |")
        print("|---|---|---|---|", *curve_rows(methods), sep="\n")
    draw(cells, options.picture)


if __name__ == "__main__":
    main()
