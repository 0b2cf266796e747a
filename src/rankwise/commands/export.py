"""A finished run as a folder for others, made beside its name and read back before it is said done.

peft       the adapter, each layer with its own rank, as the run holds it: the smallest, for what reads PEFT's patterns
portable   the adapter with one rank and alpha for all layers, zeros where one has less: for engines that read no more
merged     the whole model with the adapter in its weights: for engines that read no adapters (merging.py); all that
           there is of a run in which the whole model learned

At a strength other than 1 the change is so many times what was trained. In an adapter's files that goes into B, which
every engine reads, and into no setting.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from rankwise.adapters.formats.peft import rewrite
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.adapters.weights import AdapterWeights, check_same
from rankwise.config.adapters import ExportFormat, check_strength
from rankwise.errors import ConfigError, RunError, did_you_mean
from rankwise.exporting.arrival import arrived, refuse_unverifiable, served
from rankwise.exporting.engines import engine_meant_by, way_to
from rankwise.exporting.merge import DTYPES, Merged, beside, export_merged
from rankwise.exporting.verification import BY_DEFAULT, NOT_VERIFIED, Export, Verification, Verifying
from rankwise.methods.adapter_folder import filled_by_export
from rankwise.methods.artifact import Artifact, open_artifact
from rankwise.methods.registry import method_of
from rankwise.models.sources import LOCAL
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback, silent
from rankwise.system.files import need_space, told_when_full
from rankwise.system.hub import could_be_hub_id

FORMATS: tuple[str, ...] = get_args(ExportFormat)


@dataclass(frozen=True)
class Exported:
    run: str
    to: str
    format: str
    bytes: int
    """Of the tensors' files."""
    rank: int | None = None
    """The largest of all layers, and in `portable` that of each."""
    strength: float = 1.0
    merged: Merged | None = None
    outputs: int | None = None
    """The number of a classifier's classes, or 1 for a number."""
    images: bool = False
    """Whether a classifier reads images."""
    files: tuple[str, ...] = ()
    verification: Verification = NOT_VERIFIED

    def summary(self) -> dict[str, Any]:
        """What `rankwise export --json` prints."""
        facts = {key: getattr(self, key) for key in ("run", "to", "format", "strength", "bytes")}
        facts |= {"files": list(self.files)}
        facts |= {"rank": self.rank} if self.merged is None else asdict(self.merged)
        return facts | self.verification.summary()


def export(
    run_name: str, to: Path | str, format: str = "peft", *, strength: float = 1.0, dtype: str | None = None,
    force_base: bool = False, force_result: bool = False, base_model: str | None = None,
    verifying: Verifying = BY_DEFAULT, callback: Callback = silent,
) -> Exported:  # fmt: skip
    """Write what a run trained, or an adapter's folder holds, as the folder `to`, which must not be there yet, with its
    change times `strength`. `dtype` is what a merged model is held in, `float32`, `bfloat16` or `float16`; otherwise it
    is that of the base model's files, or of a full run's own. An exported adapter names `base_model` as its base.

    What was written is opened by the engines at hand and compared with the trained model (exporting/verification.py).
    With the address of a server, `to` must be there already, and only the server is compared."""
    folder = Path(to)
    _check(format, dtype, strength, force_base=force_base)
    refuse_unverifiable(verifying, folder)
    if verifying.url is None:
        _check_free(folder)
    artifact = open_artifact(run_name, callback, force_result=force_result, base_model=base_model)
    if verifying.url is not None:
        verification = served(artifact, Export(str(folder), format, strength=strength), verifying, callback)
        return Exported(
            str(artifact.folder), str(folder), format, _size(folder), files=_files(folder), verification=verification
        )  # fmt: skip
    exported = _written(artifact, folder, format, strength, dtype, base_model, callback, force_base=force_base)
    number_format = "float32" if exported.merged is None else exported.merged.dtype
    written = Export(str(folder), format, number_format, strength, force_base)
    verification = arrived(artifact, written, verifying, callback)
    return replace(exported, verification=verification, bytes=_size(folder), files=_files(folder))


def _written(
    artifact: Artifact, folder: Path, format: str, strength: float, dtype: str | None, base_model: str | None,
    callback: Callback, *, force_base: bool,
) -> Exported:  # fmt: skip
    """Write one format, whole or not at all."""
    outputs = None if artifact.targets is None else artifact.targets.outputs
    images = artifact.data_report is not None and artifact.data_report.image_processing is not None
    if outputs is not None and strength != 1:
        raise ConfigError([
            f"--strength {strength:g}: {artifact.described} is a classifier, whose new head has no base to scale its "
            "change from. Leave out --strength."
        ])  # fmt: skip
    if format == "merged":
        merged = export_merged(artifact, folder, callback, dtype, strength, force_base=force_base)
        return Exported(
            str(artifact.folder),
            str(folder),
            format,
            _size(folder),
            strength=strength,
            merged=merged,
            outputs=outputs,
            images=images,
        )
    method_of(artifact.config).check_export(format, artifact.folder)
    artifact = replace(artifact, trained_on=_renamed(artifact.trained_on, base_model))
    files = beside(artifact, strength)
    stored = _with_base(read_weights(artifact.result), base_model)
    scaled = stored.scaled(strength)
    written = scaled.portable() if format == "portable" else scaled
    check_same(written, _with_scale(stored, strength), folder)
    with told_when_full(folder):
        need_space(folder.absolute(), sum(value.nbytes for part in written.factors.values() for value in part.values))
        rewrite(written, folder, files, filled_by_export(artifact, written, _change(format, strength), callback))
    return Exported(
        str(artifact.folder),
        str(folder),
        format,
        _size(folder),
        written.rank,
        strength=strength,
        outputs=outputs,
        images=images,
    )


def _change(format: str, strength: float) -> str:
    """What the model card says of how this adapter differs from the run's own."""
    uniform = "It was exported with one rank and one alpha for all layers." if format == "portable" else ""
    turned = f"It was exported at strength {strength:g}: the trained change is multiplied by this number."
    return " ".join(filter(None, (uniform, turned if strength != 1 else "")))


def _renamed(facts: BaseModelFacts | None, base_model: str | None) -> BaseModelFacts | None:
    """What is recorded of the base, under the name that it is given: the old one may be a path of this machine."""
    if facts is None or base_model is None:
        return facts
    on_hub = could_be_hub_id(base_model) and not os.path.exists(base_model)  # noqa: PTH110  it may be no path
    return facts.model_copy(update={"name": base_model, "source": "hub, as named at export" if on_hub else LOCAL})


def _with_base(stored: AdapterWeights, base_model: str | None) -> AdapterWeights:
    """Give the base another name: a hub id, or where it lies on the machine that will load it."""
    if base_model is None:
        return stored
    return replace(stored, settings={**stored.settings, "base_model_name_or_path": base_model, "revision": None})


def _with_scale(stored: AdapterWeights, strength: float) -> AdapterWeights:
    """Put the strength into the scale of each layer, to compare with."""
    factors = {path: replace(part, scale=part.scale * strength) for path, part in stored.factors.items()}
    return replace(stored, factors=factors)


def _check(format: str, dtype: str | None, strength: float, *, force_base: bool) -> None:
    check_strength(strength)
    problems = []
    if format not in FORMATS:
        problems.append(_unknown(format))
    elif format != "merged" and (dtype is not None or force_base):
        problems.append(f"dtype and force-base are for the format merged; {format} needs no base model.")
    if dtype is not None and dtype not in DTYPES:
        problems.append(f'there is no dtype "{dtype}".{did_you_mean(dtype, DTYPES)} Known: {", ".join(DTYPES)}.')
    if strength == 0:
        problems.append("strength 0 is the base model itself, so there is nothing to export.")
    if problems:
        raise ConfigError(problems)


def _unknown(format: str) -> str:
    known, engine = ", ".join(FORMATS), engine_meant_by(format)
    if engine is None:
        return f'there is no format "{format}".{did_you_mean(format, FORMATS)} Known: {known}.'
    return f'the format "{format}" cannot be written yet. Known: {known}. {way_to(engine)}'


def _check_free(folder: Path) -> None:
    if os.path.lexists(folder):
        raise RunError(f"{folder} already exists and is not overwritten. Choose another --to.")
    is_run = ("manifest.json", "config.json")
    parents = folder.absolute().parents
    inside = next((one for one in parents if all(os.path.isfile(one / name) for name in is_run)), None)  # noqa: PTH113
    if inside is not None:
        raise RunError(
            f"{folder} is inside the run {inside.name}, and exporting must not change a run. Choose another --to."
        )


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
