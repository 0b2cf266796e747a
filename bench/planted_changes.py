"""How often `rankwise inspect` points at a layer of an honest adapter, and how often it finds a planted direction.

    python bench/planted_changes.py ADAPTER ADAPTER … [--draws 200] [--json] [--out bench/results/TITLE]

Each ADAPTER is the folder of a trained adapter. A false alarm is an adapter, or a layer, that is pointed out as it was
trained. Then a random direction u v^T of k times the largest singular value of a random layer is added to that layer
alone, and it counts as found where `planted` names that layer first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from telling import parser_of, tell

from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.spectrum import THRESHOLD, Spectrum, planted, scores_of, spectra_of, spectrum_of
from rankwise.adapters.weights import AdapterWeights, Factors

STRENGTHS = (1.0, 2.0, 3.0, 5.0, 8.0)
THRESHOLDS = (3.0, 4.0, 5.0, 6.0, 8.0)


def with_direction(part: Factors, size: float, generator: torch.Generator) -> Factors:
    """One random direction more, of the singular value `size`."""
    u, v = (torch.randn(length, generator=generator) for length in (part.B.shape[0], part.A[0].numel()))
    A = torch.cat([part.A.float().flatten(1), (v / v.norm()).view(1, -1)])
    B = torch.cat([part.B.float().flatten(1), (u / u.norm()).view(-1, 1) * size / part.scale], 1)
    return replace(part, A=A, B=B)


def found(
    weights: AdapterWeights, spectra: dict[str, Spectrum], strength: float, draws: int, generator: torch.Generator
) -> dict[str, int]:
    """By threshold, in how many of the draws the layer with the planted direction is named first."""
    hits = dict.fromkeys(map(str, THRESHOLDS), 0)
    paths = [path for path, one in spectra.items() if one.dominance is not None]
    for _ in range(draws):
        path = paths[int(torch.randint(len(paths), (1,), generator=generator))]
        changed = with_direction(weights.factors[path], strength * spectra[path].values[0], generator)
        altered = {**spectra, path: spectrum_of(changed)}
        for threshold in THRESHOLDS:
            named = planted(altered, threshold)
            hits[str(threshold)] += bool(named) and named[0].path == path
    return hits


def measured(folders: list[str], draws: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(26)
    rows = []
    for folder in folders:
        weights = read_weights(Path(folder))
        spectra = spectra_of(weights)
        scores = list(scores_of(spectra).values())
        rows.append({
            "adapter": Path(folder).parent.name, "layers": len(scores), "rank": weights.rank,
            "largest_score": max(scores, default=0.0),
            "layers_above": {str(one): sum(score > one for score in scores) for one in THRESHOLDS},
            "found": {str(strength): found(weights, spectra, strength, draws, generator) for strength in STRENGTHS},
        })  # fmt: skip
    layers = sum(row["layers"] for row in rows)
    return {
        "threshold": THRESHOLD, "adapters": rows, "draws": draws,
        "false_alarms": {
            str(one): {"adapters": sum(row["layers_above"][str(one)] > 0 for row in rows), "of_adapters": len(rows),
                       "layers": sum(row["layers_above"][str(one)] for row in rows), "of_layers": layers}
            for one in THRESHOLDS
        },
        "found": {
            str(strength): {str(one): sum(row["found"][str(strength)][str(one)] for row in rows) / (draws * len(rows))
                            for one in THRESHOLDS}
            for strength in STRENGTHS
        },
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    for row in result["adapters"]:
        largest = f"largest score {row['largest_score']:.2f}"
        print(f"{row['adapter']:>12} {row['layers']:4} layers, rank {row['rank']:3}, {largest}")
    for one, alarms in result["false_alarms"].items():
        rates = ", ".join(f"{strength} x: {rates[one]:.0%}" for strength, rates in result["found"].items())
        print(
            f"threshold {one}: false alarms in {alarms['adapters']} of {alarms['of_adapters']} adapters "
            f"({alarms['layers']} of {alarms['of_layers']} layers); planted and found: {rates}"
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    tell(options, measured(options.adapters, options.draws), show)


if __name__ == "__main__":
    main()
