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
from typing import Any

from rankwise.evaluation.claims import Curve, equal_loss, kl_at

METHODS = {"lora": "#0072b2", "adalora": "#d55e00", "full": "#333333"}
LEVELS = (0.0, 0.05, 0.1, 0.2)
"""Nats per token above the lowest loss that all runs at the best rates have reached."""

Cells = dict[tuple[str, int], dict[str, dict[float, list[dict[str, Any]]]]]


def read(file: Path) -> Cells:
    found: Cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cell = row["cell"]
        if cell["method"] in METHODS:
            found[cell["task"], cell["rows"]][cell["method"]][cell["rate"]].append({**row["result"], **cell})
    return found


def curve(result: dict[str, Any]) -> Curve:
    return [(point["loss"], point["kl"]) for point in result["points"]]


def best(rates: dict[float, list[dict[str, Any]]]) -> float:
    return min(rates, key=lambda rate: rates[rate][0]["choosing"])


def rate_rows(methods: dict[str, dict[float, list[dict[str, Any]]]]) -> Iterator[str]:
    for method in METHODS:
        for rate, runs in sorted(methods.get(method, {}).items()):
            mark = " (best)" if rate == best(methods[method]) else ""
            loss, kl = (mean(run["points"][-1][name] for run in runs) for name in ("loss", "kl"))
            seconds = mean(run["seconds"] for run in runs)
            yield (
                f"| {method} | {rate:g}{mark} | {len(runs)} | {runs[0]['choosing']:.4f} | {loss:.4f} | {kl:.4f} "
                f"| {seconds:.0f} |"
            )


def curve_rows(methods: dict[str, dict[float, list[dict[str, Any]]]]) -> Iterator[str]:
    chosen = {method: [curve(run) for run in rates[best(rates)]] for method, rates in methods.items()}
    lowest = equal_loss([one for each in chosen.values() for one in each])
    for above in LEVELS if lowest is not None else ():
        level = lowest + above
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
        print("\n| at a loss of | method | KL, best rate | KL, least of all rates |")
        print("|---|---|---|---|", *curve_rows(methods), sep="\n")
    draw(cells, options.picture)


if __name__ == "__main__":
    main()
