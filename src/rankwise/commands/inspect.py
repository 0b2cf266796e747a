"""What an adapter is made of: the rank of each layer, how it came to be, and what its numbers say. Loads no model.

The final ranks of an AdaLoRA run come from its metrics log, which lists the parts of a fused layer and the layers that
were left without a rank. Where the metrics log and the adapter file disagree, the file is right. A model that was
trained whole has no ranks.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.formats.tensors import refuse_pickle
from rankwise.adapters.spectrum import ERRORS, Done, Planted, Spectrum, kind_of_layer, planted, spectra_of
from rankwise.adapters.weights import AdapterWeights, missing_blocks, oddities
from rankwise.config.adapters import LoraConfig
from rankwise.exporting.engine_rules import NEAR, factors_by_layer, verdicts
from rankwise.methods.artifact import BaseFacts, is_adapter, recorded_base, recorded_lineage
from rankwise.methods.loading import Contents, result_of
from rankwise.runs.directory import find_run
from rankwise.runs.integrity import Integrity, check_folder, check_result
from rankwise.runs.lineage import Round
from rankwise.runs.metrics_log import read_history
from rankwise.runs.records import Callback, ProgressUpdate, RankRecord, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot

QUIET_SECONDS = 3
"""Shorter work tells no progress."""
DECLARED = (
    "peft_type", "r", "init_r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern",
    "alpha_pattern", "target_parameters", "modules_to_save", "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class Inspected:
    run: str
    ranks: dict[str, int]
    """By the path of the layer; of a fused one by path and part."""
    parameters: int
    bytes: int
    history: list[RankRecord]
    label: str
    """The method in a few words."""
    integrity: Integrity | None = None
    """None for an adapter that is of no run."""
    adapter: AdapterFacts | None = None
    """None for a model that was trained whole."""
    lineage: tuple[Round, ...] = ()
    """The rounds before this one, where its training began with an adapter."""

    @property
    def total_rank(self) -> int:
        return sum(self.ranks.values())

    @property
    def mean_rank(self) -> float:
        return self.total_rank / max(1, len(self.ranks))

    def summary(self) -> dict[str, Any]:
        """What `rankwise inspect --json` prints."""
        return {
            "run": self.run, "label": self.label, "ranks": self.ranks, "mean_rank": self.mean_rank,
            "total_rank": self.total_rank,
            "parameters": self.parameters, "bytes": self.bytes, "history": self.history,
            "integrity": None if self.integrity is None else asdict(self.integrity),
            "adapter": None if self.adapter is None else self.adapter.summary(),
            "lineage": self.lineage,
        }  # fmt: skip


def inspect(name: str | os.PathLike[str], *, force_result: bool = False, callback: Callback = silent) -> Inspected:
    """Inspect a finished run (name or folder) or an adapter (folder or file, in any supported format)."""
    name = os.fspath(name)
    if find_run(name) is None and is_adapter(name):
        return _adapter(Path(name), callback)
    refuse_pickle(name)
    run = RunSnapshot.finished(name)
    integrity = check_result(run, callback, force=force_result)
    contents = result_of(run.experiment.adapter).contents(run.result)
    metrics = run.directory.metrics
    history = read_history(metrics).ranks if metrics.is_file() else []
    inspected = _inspected(str(run.folder), contents, history, run.experiment.adapter.label, integrity)
    facts = _facts(run.result, callback) if (run.result / CONFIG).is_file() else None
    return replace(inspected, adapter=facts, lineage=run.manifest.lineage)


def _adapter(path: Path, callback: Callback) -> Inspected:
    integrity, contents = check_folder(path, callback), result_of(LoraConfig()).contents(path)
    for note in contents.notes:
        callback(StatusMessage(note))
    inspected = _inspected(str(path), contents, [], f"an adapter of {contents.dialect}", integrity)
    return replace(inspected, adapter=_facts(path, callback), lineage=recorded_lineage(path))


def _facts(path: Path, callback: Callback) -> AdapterFacts:
    return adapter_facts(read_adapter(path), recorded_base(path), callback)


def _inspected(
    name: str, contents: Contents, history: list[RankRecord], label: str, integrity: Integrity | None
) -> Inspected:
    ranks = {path: contents.ranks[path] for path in sorted(contents.ranks, key=natural)}
    last = history[-1] if history else None
    if last is not None and last.final and _agree(last.ranks, ranks):
        ranks = last.ranks
    return Inspected(
        run=name, ranks=ranks, parameters=contents.parameters, bytes=contents.bytes, history=history, label=label,
        integrity=integrity,
    )  # fmt: skip


def _agree(decided: dict[str, int], stored: dict[str, int]) -> bool:
    """Whether every layer of the file was decided on and has room for what it was left."""
    left: dict[str, int] = {}
    for label, rank in decided.items():
        outer = label.rpartition(".")[0]
        path = label if label in stored else outer if outer in stored else label
        left[path] = left.get(path, 0) + rank
    fits = all(rank <= stored.get(path, 0) for path, rank in left.items()) and min(decided.values(), default=0) >= 0
    return fits and left.keys() >= stored.keys()


def natural(path: str) -> list[tuple[int, int, str]]:
    """An order in which layer 10 comes after layer 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.split(".")]


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
        ranks = {error: [spectrum.rank_at(error) for spectrum in self.spectra.values()] for error in ERRORS}
        return {error: (sum(several), max(several, default=0)) for error, several in ranks.items()}

    @property
    def total_used(self) -> int:
        return sum(spectrum.used for spectrum in self.spectra.values())

    def summary(self) -> dict[str, Any]:
        """What `rankwise inspect --json` prints as `adapter`."""
        layers = {
            path: {"scale": self.scales[path], "norm": spectrum.norm, "used_rank": spectrum.used,
                   "dominance": spectrum.dominance, "singular_values": list(spectrum.values),
                   "rank_at_error": {f"{error:g}": spectrum.rank_at(error) for error in ERRORS}}
            for path, spectrum in self.spectra.items()
        }  # fmt: skip
        return {
            "declared": self.declared, "kinds": self.kinds, "missing_blocks": self.missing, "heads": self.heads,
            "engines": self.engines, "engine_factors": self.engine_factors, "layers": layers,
            "used_rank": self.total_used,
            "rank_at_error": {f"{error:g}": total for error, (total, _) in self.ranks_at.items()},
            "planted": self.planted,
            "base": {"name": self.base, "revision": self.revision, "recorded": self.base_recorded},
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
