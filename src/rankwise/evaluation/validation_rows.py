"""The rows that a finished run's loss is measured on: those it held out, those of its validation source, or others.

They are read and encoded as in training, by the template that the run keeps. Rows that may have been trained on since,
because a file is another now, are refused, and so is the very file that was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.data.preparing import Writing, prepare, refuse_fatal
from rankwise.data.sequences import evenly
from rankwise.errors import DataError
from rankwise.methods.artifact import Artifact
from rankwise.models.loaded import LoadedModel
from rankwise.runs.data_report import PartFacts
from rankwise.runs.directory import RunDirectory
from rankwise.runs.records import Callback
from rankwise.text.tokenize import Tokens

OF_TRAINING = (
    "path", "sources", "validation", "held_out", "held_out_order", "group", "split", "subset", "revision", "rows",
    "licence", "packing",
)  # fmt: skip
"""What is said of the rows that were trained on, and of no others."""


@dataclass(frozen=True)
class Measurable:
    documents: Sequence[Tokens]
    about: str
    own: bool = False
    """Whether the run measured on them itself as it trained."""

    def spread(self, most: int) -> Measurable:
        """So many of them at most."""
        many = len(self.documents)
        if many <= most:
            return self
        of = self.about if self.about.startswith("the ") else f"the {many:,} documents of {self.about}"
        return replace(self, documents=evenly(self.documents, most), about=f"{most:,} of {of}")


def rows_to_measure(artifact: Artifact, model: LoadedModel, data: str | None, callback: Callback) -> Measurable:
    """`data` is a file, folder or hub data set; without it the run's own rows. `model` has the run's template."""
    writing, run = Writing(model.tokenizer, model.template, model.source.name, model.context_length), artifact.run
    if run is None:
        return _of_folder(artifact, data, writing, callback)
    spec = run.experiment().data
    if data is None:
        return _own(run, spec, writing, callback)
    if spec.validation is not None and data == spec.validation.path:
        refuse_training_files(run, {file.sha256: file.name for file in _parted(run)[1]})
        return _own(run, spec, writing, callback)
    return _others(run, spec, data, writing, callback)


def _of_folder(artifact: Artifact, data: str | None, writing: Writing, callback: Callback) -> Measurable:
    """An adapter's folder holds no rows. Those that it was trained on are known where rankwise wrote it, unless rows of
    an validation source are listed among them."""
    if data is None:
        raise DataError(f"{artifact.folder} has no validation rows. Give rows that it was not trained on: --data FILE.")
    prepared, data_report = prepare(DataConfig(path=data), writing, callback), artifact.data_report
    refuse_fatal(prepared.data_report)
    if data_report is not None and data_report.validation is None:
        _refuse_trained({file.sha256: file.name for file in data_report.files},
                        {file.sha256: file.name for file in prepared.data_report.files})  # fmt: skip
    return Measurable(prepared.trained_rows, data)


def _others(run: RunDirectory, spec: DataConfig, data: str, writing: Writing, callback: Callback) -> Measurable:
    """Read as the run's own were, but for their form and columns, which are found anew."""
    said = {
        name: getattr(spec, name) for name in spec.model_fields_set if name not in (*OF_TRAINING, "format", "columns")
    }
    prepared = prepare(DataConfig(**said, path=data), writing, callback)
    refuse_fatal(prepared.data_report)
    refuse_training_files(run, {file.sha256: file.name for file in prepared.data_report.files})
    return Measurable(prepared.trained_rows, data)


def refuse_training_files(run: RunDirectory, files: Mapping[str, str]) -> None:
    """`files` are names by SHA-256. What a model has learned by heart says nothing of what it can do."""
    _refuse_trained(_trained(run), files)


def _refuse_trained(trained: Mapping[str, str], files: Mapping[str, str]) -> None:
    for identity, name in files.items():
        if identity in trained:
            raise DataError(f"{name}: is among the data of the run ({trained[identity]}). Give other rows.")


def _trained(run: RunDirectory) -> dict[str, str]:
    """Names by SHA-256."""
    return {file.sha256: file.name for file in _parted(run)[0]}


def _parted(run: RunDirectory) -> tuple[list[PartFacts], list[PartFacts]]:
    """The files that were trained on, and those of the validation source, which the data report names last. One that is
    both is named twice."""
    files, apart = list(run.data_report().files), run.experiment().data.validation
    measured: dict[str, PartFacts] = {}
    while apart is not None and files and _is_of(files[-1].name, apart.path) and files[-1].name not in measured:
        measured[files[-1].name] = files.pop()
    return files, list(measured.values())


def _is_of(name: str, path: str) -> bool:
    path = os.path.expanduser(path)  # noqa: PTH111
    return name == path or name.startswith(path.rstrip("/") + "/")


def _own(run: RunDirectory, spec: DataConfig, writing: Writing, callback: Callback) -> Measurable:
    if not spec.held_out and spec.validation is None:
        raise DataError(
            f"{run.folder} held no rows out to measure with. Give some that it was not trained on: --data FILE."
        )
    here = DataConfig(**_from_where_it_ran(spec.model_dump(exclude_unset=True), run))
    prepared = prepare(here, writing, callback)
    refuse_fatal(prepared.data_report)
    before, after = ([file.sha256 for file in one.files] for one in (run.data_report(), prepared.data_report))
    if before != after:
        raise DataError(
            f"the files that {run.folder} was trained on are others now, so that nobody knows which rows it held out. "
            "Give some that it was not trained on: --data FILE."
        )
    about = spec.validation.path if spec.validation is not None else f"the {len(prepared.measured)} documents held out"
    return Measurable(prepared.measured_rows, about, own=True)


def _from_where_it_ran(said: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    """A relative path was written from the folder that holds `runs/`, which may not be the one we are in."""

    def found(rows: dict[str, Any]) -> dict[str, Any]:
        path = rows.get("path")
        if path is None or os.path.exists(path):  # noqa: PTH110
            return rows
        beside_runs = os.path.join(run.folder.absolute().parent.parent, path)  # noqa: PTH118
        return rows | {"path": beside_runs} if os.path.exists(beside_runs) else rows  # noqa: PTH110

    said = found(said)
    if said.get("sources"):
        said = said | {"sources": [found(source) for source in said["sources"]]}
    return said | {"validation": found(said["validation"])} if said.get("validation") else said
