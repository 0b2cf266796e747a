"""What a result says it was trained by, and what differs now: the base, or a row of the data.

A row is known by its hash, and the n-th of several equal rows by n; where rows of then and of now stand in the same
place between rows that are the same, they were changed. Of a run of this folder all settings are taken. Any other
folder may be somebody else's: nothing that it names is read, loaded, fetched or run here.
"""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from os.path import isdir
from pathlib import Path

from rankwise.base.sources import Source
from rankwise.base.starters import STARTERS
from rankwise.config.base import JsonObject
from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment, places_in
from rankwise.errors import ConfigError, RunError
from rankwise.methods.artifact import recorded_training
from rankwise.rows.files.hub import Part
from rankwise.rows.report.raw_rows import ROW_HASH, RawReport
from rankwise.rows.sources import open_source, raw_records
from rankwise.runs.data_report import DATA_REPORT, DataReport, PartFacts
from rankwise.runs.directory import find_run
from rankwise.runs.manifest import TRAINING, TrainingFacts
from rankwise.runs.own_files import read_json
from rankwise.runs.snapshot import RunSnapshot

MOST_NAMED = 8
"""Rows of a file."""
SAME_ROWS = "has the same rows, written otherwise"


def result_of(name: str) -> tuple[Path, RunSnapshot | None]:
    """The folder of a run's result, and the run, or the folder of this name."""
    if find_run(name) is not None:
        run = RunSnapshot.finished(name)
        return run.result, run
    if not isdir(name):  # noqa: PTH112  is_dir raises where a name is too long
        raise RunError(f"{name} is neither a run nor a folder.")
    return Path(name), None


@dataclass(frozen=True)
class Recorded:
    folder: Path
    facts: TrainingFacts
    data_report: DataReport
    run: RunSnapshot | None
    """The run of this folder that it is the result of."""

    @classmethod
    def of(cls, name: str) -> Recorded:
        folder, run = result_of(name)
        if (facts := recorded_training(folder)) is None:
            raise RunError(f"{folder} has no {TRAINING}, which says how it was trained. Earlier versions wrote none.")
        own = run if run is not None and run.folder == Path("runs") / Path(name).name else None
        return cls(folder, facts, read_json(folder / DATA_REPORT, DataReport), own)

    def settings(self, data: Sequence[str]) -> JsonObject:
        """The settings of the training over the given rows, of which validation rows that are apart come last. No
        tracker is named in them, and no code is trusted."""
        try:
            experiment = self.run.experiment if self.run is not None else Experiment(**self.facts.settings)
        except (ConfigError, TypeError) as error:
            raise RunError(f"{self.folder / TRAINING} is damaged: {error}") from None
        settings = experiment.model_dump(mode="json")
        rows, model = settings["data"], settings["model"]
        sources = [one for one in (*(rows["sources"] or [rows]), rows["validation"]) if one]
        problems = [f"{self.folder} was trained on {len(sources)} files or folders of rows. Name each with --data, in "
                    "their order; validation rows that are apart come last."] * (len(sources) != len(data))  # fmt: skip
        if self.run is None:
            given = {(id(model), "name"), *((id(one), "path") for one in sources)}
            named = [key for part, key in places_in(settings) if (id(part), key) not in given]
            problems += [f'{self.folder / TRAINING}: the setting "{key}" names something that lies elsewhere, which is '
                         "not taken from somebody else's folder." for key in named]  # fmt: skip
        if problems:
            raise ConfigError(problems)
        for source, path in zip(sources, data, strict=True):
            source["path"] = path
        return settings | {"tracking": {}, "model": model | {"trust_code": None}}

    def base_named(self, base_model: str | None) -> JsonObject:
        """The settings of the base that the user names, or of the run's own, or of a starter."""
        name = self.facts.base_model.name
        if base_model is None and self.run is None and name not in STARTERS:
            raise ConfigError([f'{self.folder} was trained on "{name}". Say where this model is with --base-model.'])
        return {} if base_model is None else {"name": base_model, "revision": None}

    def base_change(self, source: Source) -> list[str]:
        """A sentence where the base differs."""
        then, now = self.facts.base_model, f"the base model {source.name} from {source.where}"
        changed = source.fingerprint != then.fingerprint
        return [then.refusal(str(self.folder), now, *source.fingerprints)] if changed else []

    def row_changes(self, config: DataConfig) -> list[str]:
        """A phrase for each row that differs in these files."""
        readings = [open_source(config, one) for one in filter(None, (*config.all_sources, config.measured_source))]
        raw, then = [RawReport(reading) for reading in readings], self.data_report.files
        parts = [(report, part) for report in raw for part in report.reading.parts]
        if len(parts) != len(then):
            return [f"{self.folder} was trained on {len(then)} files of rows, and {len(parts)} are given"]
        others = [(file, *one) for file, one in zip(then, parts, strict=True) if one[1].identity() != file.sha256]
        for report in raw if others else ():
            for _ in report.reading.chunks(report.add):
                pass  # the rows are hashed as they are read
        return [line for file, report, part in others for line in _changes(file, part, report.counts[part.name].hashes)]


def _changes(file: PartFacts, part: Part, hashes: bytearray) -> list[str]:
    then, now = b64decode(file.row_hashes), bytes(hashes)
    if then == now or not then:
        return [f"{part.name} {SAME_ROWS}" if then else f"{part.name} is another file; its rows have no hashes"]
    where, lines = [place for place, _ in raw_records(part)], list[str]()
    for what, begin, end, first, stop in SequenceMatcher(None, _known(then), _known(now), False).get_opcodes():
        if what != "equal":
            both = min(end - begin, stop - first)
            lines += [f"{where[row]} was {'changed' if row < first + both else 'added'}" for row in range(first, stop)]
            lines += [f"row {row + 1:,} of {file.name} is missing" for row in range(begin + both, end)]
    more = len(lines) - MOST_NAMED
    return lines[:MOST_NAMED] + [f"{more:,} more rows of {part.name} differ"] * (more > 0)


def _known(hashes: bytes) -> list[tuple[bytes, int]]:
    """Each row by its hash, and by how many equal ones are before it."""
    seen, known = Counter[bytes](), list[tuple[bytes, int]]()
    for at in range(0, len(hashes), ROW_HASH):
        known.append((hashes[at : at + ROW_HASH], seen[hashes[at : at + ROW_HASH]]))
        seen[known[-1][0]] += 1
    return known
