"""What an adapter is made of: the rank of each layer, how it came to be, and what its numbers say. Loads no model.

The final ranks of an AdaLoRA run come from its metrics log, which lists the parts of a fused layer and the layers that
were left without a rank. Where the metrics log and the adapter file disagree, the file is right. A model that was
trained whole has no ranks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft_reader import CONFIG
from rankwise.adapters.formats.pickles import refuse_pickle
from rankwise.commands.inspect_adapter import AdapterFacts, adapter_facts
from rankwise.config.adapters import LoraConfig
from rankwise.methods.artifact import is_adapter, recorded_base, recorded_lineage
from rankwise.methods.method import Contents
from rankwise.methods.registry import method_of
from rankwise.runs.directory import find_run
from rankwise.runs.integrity import Integrity, check_folder, check_result
from rankwise.runs.lineage import Round
from rankwise.runs.metrics_log import read_history
from rankwise.runs.records import Callback, RankRecord, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot


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
            "parameters": self.parameters, "bytes": self.bytes, "history": [asdict(record) for record in self.history],
            "integrity": None if self.integrity is None else self.integrity.summary(),
            "adapter": None if self.adapter is None else self.adapter.summary(),
            "lineage": [one.model_dump() for one in self.lineage],
        }  # fmt: skip


def inspect(name: str, *, force_result: bool = False, callback: Callback = silent) -> Inspected:
    """A finished run by its name or folder, or an adapter by its folder or file, in any format that is read."""
    if find_run(name) is None and is_adapter(name):
        return _adapter(Path(name), callback)
    refuse_pickle(name)
    run = RunSnapshot.finished(name)
    integrity = check_result(run, callback, force=force_result)
    contents = method_of(run.experiment.adapter).contents(run.result)
    metrics = run.directory.metrics
    history = read_history(metrics).ranks if metrics.is_file() else []
    inspected = _inspected(str(run.folder), contents, history, run.experiment.adapter.label, integrity)
    facts = _facts(run.result, callback) if (run.result / CONFIG).is_file() else None
    return replace(inspected, adapter=facts, lineage=run.manifest.lineage)


def _adapter(path: Path, callback: Callback) -> Inspected:
    integrity, contents = check_folder(path, callback), method_of(LoraConfig()).contents(path)
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
    return Inspected(name, ranks, contents.parameters, contents.bytes, history, label, integrity)


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
