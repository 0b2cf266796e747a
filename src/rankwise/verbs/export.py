"""A finished run's adapter as a folder for others, rewritten from its files alone and read back before it is said done.

peft       each layer with its own rank, as the run holds it: the smallest, for PEFT and what reads its patterns
portable   one rank and one alpha for all layers, zeros where one has less: for engines that read nothing else
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rankwise.adapters.peft_factors import WEIGHTS
from rankwise.adapters.stored import check_alike, read_stored
from rankwise.errors import RunError, SpecError, did_you_mean
from rankwise.run.directory import open_run
from rankwise.run.receipt import RECEIPT
from rankwise.run.writing import need_space, told_when_full
from rankwise.spec.adapters import ExportFormat

FORMATS: tuple[str, ...] = get_args(ExportFormat)


@dataclass(frozen=True)
class Exported:
    run: str
    to: str
    format: str
    rank: int
    """The largest of all layers, and in `portable` that of each."""
    bytes: int

    def summary(self) -> dict[str, Any]:
        """What `rankwise export --json` prints."""
        return asdict(self)


def export(run_name: str, to: Path | str, format: str = "peft") -> Exported:
    """Write the adapter of a run as the folder `to`, which must not be there yet."""
    if format not in FORMATS:
        raise SpecError([f'there is no format "{format}".{did_you_mean(format, FORMATS)} Known: {", ".join(FORMATS)}.'])
    run, folder = open_run(run_name), Path(to)
    if os.path.lexists(folder):
        raise RunError(f"{folder} is there already and is not overwritten. Choose another --to.")
    receipt = run.receipt()
    held = read_stored(run.adapter)
    written = held.portable() if format == "portable" else held
    check_alike(written, held, folder)
    with told_when_full(folder):
        need_space(folder.absolute(), sum(part.A.nbytes + part.B.nbytes for part in written.factors.values()))
        written.write(folder, {RECEIPT: receipt.model_dump(mode="json")})
    size = (folder / WEIGHTS).stat().st_size
    return Exported(str(run.folder), str(folder), format, written.rank, size)
