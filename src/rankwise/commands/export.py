"""A finished run as a folder for others, read back before it appears, and asked in the engines at hand.

peft       the adapter, each layer with its own rank, as the run holds it: the smallest, for what reads PEFT's patterns
portable   the adapter with one rank and alpha for all layers, zeros where one has less: for engines that read no more
mlx        the same in mlx-lm's format, with one rank and scale for all layers (exporting/adapter_export.py)
merged     the whole model with the adapter in its weights: for engines that read no adapters (exporting/merge.py); all
           that there is of a run in which the whole model learned
ollama     the same with a Modelfile, whose template is proved against training's (exporting/ollama.py)
gguf-lora  the adapter as a GGUF file, and `gguf` the merged model as one: for llama.cpp (exporting/gguf.py)
onnx       a classifier as a graph: for onnxruntime and browsers (exporting/onnx.py)
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack, get_args

from rankwise.adapters.weights import AdapterWeights
from rankwise.config.adapters import ExportFormat, check_strength
from rankwise.errors import ConfigError, RunError, did_you_mean
from rankwise.exporting.adapter_export import FORMATS as ADAPTER_FORMATS
from rankwise.exporting.adapter_export import export_adapter
from rankwise.exporting.engine_rules import verdicts
from rankwise.exporting.engines.table import CAUSAL_LM, loaded_with, way_for
from rankwise.exporting.gguf import DTYPES as GGUF_DTYPES
from rankwise.exporting.gguf import export_gguf_adapter, template_parity_of
from rankwise.exporting.gguf_merged import GgufMerged, export_gguf
from rankwise.exporting.gguf_target import file_of
from rankwise.exporting.merge import DTYPES, Merged, Order, export_merged
from rankwise.exporting.ollama import OllamaTemplate, export_ollama
from rankwise.exporting.onnx import export_onnx
from rankwise.exporting.served_jinja import folder_parity
from rankwise.exporting.template_parity import Parity
from rankwise.exporting.verification import (
    BY_DEFAULT,
    NOT_VERIFIED,
    Export,
    Verification,
    Verifying,
    arrived,
    refuse_unverifiable,
    served,
    with_rules,
)
from rankwise.methods.artifact import Opening, open_artifact, opening_in
from rankwise.runs.records import Callback, StatusMessage, WarningMessage, silent
from rankwise.system.files import folders_above

FORMATS: tuple[str, ...] = get_args(ExportFormat)


@dataclass(frozen=True)
class Exported:
    run: str
    to: str
    format: str
    bytes: int = 0
    """Size in bytes of the exported files that hold tensors."""
    rank: int | None = None
    """The largest of all layers, and in `portable` that of each."""
    strength: float = 1.0
    merged: Merged | None = None
    ollama: OllamaTemplate | None = None
    parity: Parity | None = None
    """How the template in the export agrees with training's."""
    gguf: GgufMerged | None = None
    """What was written where a model was merged into a GGUF file; None for other formats."""
    files: tuple[str, ...] = ()
    adapter: AdapterWeights | None = None
    """What a folder with an adapter holds."""
    verification: Verification = NOT_VERIFIED
    use: str = ""
    """How to load it, in a sentence."""
    base_quantized: str | None = None
    """How the base's weights were stored that the adapter was trained over; None in full."""

    @property
    def number_format(self) -> str:
        """The number format that the weights were rounded to: "float32" where none were, and "quantised" for the
        quantised types of GGUF files, which the base of an adapter in GGUF may have too."""
        if self.format == "gguf-lora":
            return "quantised"  # as its base may be
        whole = self.merged or self.gguf
        return "float32" if whole is None else whole.dtype if whole.dtype in DTYPES else "quantised"

    def summary(self) -> dict[str, Any]:
        """What `rankwise export --json` prints."""
        facts = {key: getattr(self, key) for key in ("run", "to", "format", "strength", "bytes", "use")}
        whole = self.merged or self.gguf
        facts |= {"files": list(self.files)} | ({"rank": self.rank} if whole is None else asdict(whole))
        parity = {} if self.parity is None else {"template_parity": self.parity.summary()}
        stored = {} if self.base_quantized is None else {"base_quantized": self.base_quantized}
        return facts | self.verification.summary() | parity | stored


def export(
    run_name: str | os.PathLike[str], to: Path | str, format: str = "peft", *, strength: float = 1.0,
    dtype: str | None = None, round_rank: bool = False, verifying: Verifying = BY_DEFAULT, callback: Callback = silent,
    **opening: Unpack[Opening],
) -> Exported:  # fmt: skip
    """Export a run's or an adapter's weights, scaled by `strength`, to the folder `to`, which must not exist yet.
    `dtype` of a merged model is `float32`, `bfloat16` or `float16`; the default is the dtype of the base model's files,
    or a full run's own. An exported adapter names `base_model` as its base. `round_rank` rounds a portable adapter's
    rank up to one that vLLM supports.

    The export is opened in the installed engines and compared with the trained model (exporting/verification.py). With
    a server's URL, `to` must exist already, and only the server is compared.
    """
    folder = Path(to)
    opening = opening_in(opening, export)
    idle = verifying.wish == "no" and format in ADAPTER_FORMATS
    _check(format, dtype, strength, force_idle=opening.get("force_base", False) and idle, round_rank=round_rank)
    refuse_unverifiable(verifying, folder)
    if verifying.url is None:
        check_free(folder)
    artifact = open_artifact(run_name, callback, **opening)
    if verifying.url is not None:
        number_format = "float32" if dtype is None else dtype if dtype in DTYPES else "quantised"
        written = Export(str(folder), format, number_format, strength)
        verification = served(artifact, written, verifying, callback)
        exported = Exported(str(artifact.folder), str(folder), format, strength=strength)
    else:
        with folders_above(folder):
            exported = _write_export(Order(
                artifact=artifact, folder=folder, format=format, callback=callback, strength=strength, dtype=dtype,
                base_model=opening.get("base_model"), round_rank=round_rank,
            ))  # fmt: skip
            written = Export(str(folder), format, exported.number_format, strength)
            verification = arrived(artifact, written, verifying, callback)
    auto = artifact.objective.kind.auto_class
    adapter = exported.adapter
    if adapter is not None and format != "mlx" and auto == CAUSAL_LM:
        # the rules are those for language models in PEFT's folders
        verification = with_rules(verification, verdicts(adapter))
    # factors of stacked experts are for PEFT, in `portable` too
    loaded_as = "peft" if adapter is not None and adapter.has_experts else format
    use = loaded_with(loaded_as, exported.to, auto, artifact.objective.head_size)
    if (base := artifact.base_named) is not None and base.name.lower().endswith(".gguf"):
        use = use.replace("BASE.gguf", base.name)
    return replace(exported, verification=verification, bytes=_size(folder), files=_files(folder), use=use)


def _write_export(order: Order) -> Exported:
    """Write one format, whole or not at all."""
    artifact, format, strength = order.artifact, order.format, order.strength
    if strength != 1:
        artifact.refuse("scaled", f"{strength:g}")
    artifact.refuse(format)
    named = artifact.base_named
    stored = None if named is None else named.packed_format
    exported = Exported(str(artifact.folder), str(order.folder), format, strength=strength, base_quantized=stored)
    if stored is not None and format in (*ADAPTER_FORMATS, "gguf-lora"):
        order.callback(WarningMessage(
            f"{artifact.described} was trained over {stored} weights, and {format} holds the adapter alone: a program "
            "that lays it over other weights of the base, such as the full ones, computes other numbers. --format "
            "merged and gguf hold the weights that it was trained over"
        ))  # fmt: skip
    products = None if artifact.run is None else artifact.run.manifest.products
    if products is not None:
        order.callback(StatusMessage(
            f"{artifact.described} was trained with products in int8, which other programs do not have. Before "
            f"training, these changed the outputs of its base by {products.change:.1%}, so answers may differ a little"
        ))  # fmt: skip
    if format == "gguf-lora":
        return replace(exported, to=str(file_of(order)), rank=export_gguf_adapter(order))
    if format == "gguf":
        whole = export_gguf(order)
        return replace(exported, to=str(file_of(order)), gguf=whole, parity=template_parity_of(order))
    if format == "ollama":
        merged, template = export_ollama(order)
        return replace(exported, merged=merged, ollama=template, parity=template.parity)
    if format == "onnx":
        export_onnx(order)
        return exported
    if format == "merged":
        exported = replace(exported, merged=export_merged(order))
    else:
        adapter = export_adapter(order)
        exported = replace(exported, rank=adapter.rank, adapter=adapter)
    return replace(exported, parity=folder_parity(artifact, order.folder, order.callback))


def _check(format: str, dtype: str | None, strength: float, *, force_idle: bool, round_rank: bool) -> None:
    """`force_idle` says that force-base is wished for where no base is loaded."""
    check_strength(strength)
    problems = []
    if format not in FORMATS:
        problems.append(_unknown(format))
    elif format in (*ADAPTER_FORMATS, "gguf-lora", "onnx") and dtype is not None:
        problems.append(f"dtype is for merged models; {format} is written in float32.")
    if force_idle:
        problems.append(f"force-base has nothing to act on: {format} with --no-verify loads no base model.")
    if round_rank and format != "portable":
        problems.append("round-rank is for the format portable, whose layers share one rank.")
    known = GGUF_DTYPES if format == "gguf" else tuple(DTYPES)
    if dtype is not None and dtype not in known:
        problems.append(f'there is no dtype "{dtype}".{did_you_mean(dtype, known)} Known: {", ".join(known)}.')
    if strength == 0:
        problems.append("strength 0 is the base model itself, so there is nothing to export.")
    if problems:
        raise ConfigError(problems)


def _unknown(format: str) -> str:
    known, way = ", ".join(FORMATS), way_for(format)
    if way is None:
        return f'there is no format "{format}".{did_you_mean(format, FORMATS)} Known: {known}.'
    return f'there is no format "{format}". Known: {known}. {way}'


def check_free(folder: Path) -> None:
    if os.path.lexists(folder):
        raise RunError(f"{folder} already exists and is not overwritten. Choose another --to.")
    for inside in folder.absolute().parents:
        if os.path.isfile(inside / "manifest.json") and os.path.isfile(inside / "config.json"):  # noqa: PTH113
            raise RunError(
                f"{folder} is inside the run {inside.name}, and exporting must not change a run. Choose another --to."
            )


def _files(folder: Path) -> tuple[str, ...]:
    if folder.is_file():
        return (folder.name,)
    return tuple(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()))


def _size(folder: Path) -> int:
    return sum(
        file.stat().st_size
        for file in (folder, *folder.rglob("*"))
        if file.suffix.lower() in (".safetensors", ".gguf", ".onnx") and file.is_file()
    )
