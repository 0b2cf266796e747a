"""What is inside an adapter, from its numbers alone: no base model is loaded, and any format that is read will do.

Declared and present layers, the scale that each engine would apply (exporting/engine_rules.py), the rank that is really
used, and layers whose first direction stands out (adapters/spectrum.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rankwise.adapters.oddities import missing_blocks, oddities
from rankwise.adapters.spectrum import ERRORS, Done, Planted, Spectrum, kind_of_layer, planted, spectra_of
from rankwise.adapters.weights import AdapterWeights
from rankwise.exporting.engine_rules import NEAR, factors_by_layer, verdicts
from rankwise.methods.base import BaseFacts
from rankwise.runs.records import Callback, ProgressUpdate

QUIET_SECONDS = 3
"""Shorter work tells no progress."""
DECLARED = (
    "peft_type", "r", "init_r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern",
    "alpha_pattern", "target_parameters", "modules_to_save", "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterFacts:
    declared: dict[str, Any]
    """The settings that say what the factors mean, as they stand in adapter_config.json."""
    kinds: dict[str, int]
    """How many layers of each kind have factors, such as `model.layers.self_attn.q_proj`."""
    missing: dict[str, list[int]]
    """By kind, blocks without factors between blocks that have some."""
    heads: list[str]
    """Fully trained weights beside the factors."""
    scales: dict[str, float]
    """The scale of each layer and expert that was trained."""
    engines: dict[str, str | None]
    """By engine, None where it applies the trained change, or a sentence why not."""
    engine_factors: dict[str, dict[str, float]]
    """By engine and layer, how many times the trained change it applies, where that is not once."""
    spectra: dict[str, Spectrum]
    planted: list[Planted]
    base: str | None
    revision: str | None
    base_recorded: BaseFacts | None
    """What was recorded of the base model's weights; None where only its name is known."""
    warnings: list[str]

    @property
    def right(self) -> list[str]:
        return [name for name, verdict in self.engines.items() if verdict is None]

    @property
    def ranks_at(self) -> dict[float, tuple[int, int]]:
        """By error, the sum of the ranks that suffice in each layer, and the largest of them."""
        return {error: (self.total_at(error), self.largest_at(error)) for error in ERRORS}

    def total_at(self, error: float) -> int:
        """The sum of the ranks that suffice for an error in each layer."""
        return sum(spectrum.rank_at(error) for spectrum in self.spectra.values())

    @property
    def total_used(self) -> int:
        return sum(spectrum.used for spectrum in self.spectra.values())

    def largest_at(self, error: float) -> int:
        return max((spectrum.rank_at(error) for spectrum in self.spectra.values()), default=0)

    def summary(self) -> dict[str, Any]:
        """What `rankwise inspect --json` prints as `adapter`."""
        layers = {
            path: {"scale": self.scales[path], "norm": spectrum.norm, "used_rank": spectrum.used,
                   "dominance": spectrum.dominance, "singular_values": list(spectrum.values),
                   "rank_at_error": {f"{error:g}": spectrum.rank_at(error) for error in ERRORS}}
            for path, spectrum in self.spectra.items()
        }  # fmt: skip
        recorded = None if self.base_recorded is None else self.base_recorded.model_dump(mode="json")
        return {
            "declared": self.declared, "kinds": self.kinds, "missing_blocks": self.missing, "heads": self.heads,
            "engines": self.engines, "engine_factors": self.engine_factors, "layers": layers,
            "used_rank": self.total_used,
            "rank_at_error": {f"{error:g}": self.total_at(error) for error in ERRORS},
            "planted": [asdict(one) for one in self.planted],
            "base": {"name": self.base, "revision": self.revision, "recorded": recorded},
            "warnings": self.warnings,
        }  # fmt: skip


def adapter_facts(weights: AdapterWeights, recorded: BaseFacts | None, callback: Callback) -> AdapterFacts:
    """Everything that `rankwise inspect` tells of an adapter. `recorded` is what lies beside it about its base."""
    settings = weights.settings
    spectra = spectra_of(weights, _progress(callback))
    engines = verdicts(weights)
    return AdapterFacts(
        declared={key: settings[key] for key in DECLARED if settings.get(key) not in (None, {}, [], False)},
        kinds=dict(Counter(kind_of_layer(path) for path in weights.factors)),
        missing={kind: blocks for kind, blocks in missing_blocks(weights).items() if blocks},
        heads=list(weights.heads),
        scales={path: part.scale for path, part in weights.each.items()},
        engines=engines,
        engine_factors={name: wrong for name in engines if (wrong := _wrong(factors_by_layer(name, weights)))},
        spectra=spectra,
        planted=planted(spectra),
        base=settings.get("base_model_name_or_path") or None,
        revision=settings.get("revision") or None,
        base_recorded=recorded,
        warnings=[*weights.warnings, *oddities(weights)],
    )


def _progress(callback: Callback) -> Done:
    """Progress of work that turns out to take longer than a glance."""
    began = time.monotonic()

    def tell(number: int, total: int) -> None:
        if time.monotonic() - began > QUIET_SECONDS:
            callback(ProgressUpdate("singular values", number, total, "layers"))

    return tell


def _wrong(factors: Mapping[str, float]) -> dict[str, float]:
    return {path: factor for path, factor in factors.items() if abs(factor - 1) > NEAR}
