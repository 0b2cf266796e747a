"""A combination of adapters written as an adapter again, or one adapter with a lower rank. No base model is loaded.

    linear              exactly: the factors side by side, of the sum of the ranks
    with a rank         the nearest change of that rank, or of the smallest rank with the given error, layer by layer
    ties and dare       have no low rank of their own, so they need one to be cut to

The error of each layer is |D - D_r| / |D| in Frobenius norms, and that of all layers the same of them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rankwise.adapters.combining import Weighted, cut, cut_laid, joined, laid
from rankwise.adapters.formats.peft import rewrite
from rankwise.adapters.formats.peft_config import settings_after
from rankwise.adapters.low_rank import LowRank
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.base.tensor_files import pieces
from rankwise.errors import AdapterError, RankwiseError, some
from rankwise.exporting.adapter_export import filled_by_export
from rankwise.exporting.merge import extra_files
from rankwise.exporting.merging.inputs import Options, unjoinable
from rankwise.methods.artifact import Artifact, open_artifact, stored_weights
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.system.files import need_space, told_when_full

NOTHING = 1e-6
"""A combined change that is smaller than this share of its parts has cancelled out, and is rounding."""


@dataclass(frozen=True)
class LayerError:
    layer: str
    rank: int
    before: int
    """The sum of the ranks that it was made of."""
    error: float
    """Relative."""


@dataclass(frozen=True)
class CombinedAdapter:
    folder: str
    bytes: int
    rank: int
    """The largest of all layers."""
    parameters: int
    layers: tuple[LayerError, ...]
    error: float
    """Relative error of all layers together."""


def combine(options: Options, folder: Path, callback: Callback) -> CombinedAdapter:
    opened = [_opened(name, options, callback) for name in options.adapters]
    _check(opened, options)
    weights = [weight * options.strength for weight in options.weights or [1.0] * len(opened)]
    adapters = [adapter for _, adapter in opened]
    paths = list(dict.fromkeys(path for adapter in adapters for path, part in adapter.factors.items() if part.rank))
    factors: dict[str, Factors] = {}
    errors: list[LayerError] = []
    energy = lost = 0.0
    for number, path in enumerate(paths):
        parts = [(one.factors[path], weight) for one, weight in zip(adapters, weights, strict=True)
                 if path in one.factors and one.factors[path].rank]  # fmt: skip
        part, near = _combined(path, parts, options)
        if part.rank:
            factors[path] = part
        before = sum(one.rank for one, _ in parts)
        errors.append(LayerError(path, part.rank, before, 0.0 if near is None else near.relative))
        if near is not None:
            energy, lost = energy + near.norm**2, lost + near.error**2
        callback(ProgressUpdate("Combining", number + 1, len(paths), "layers"))
    heads = {name: value for adapter in adapters for name, value in adapter.heads.items()}
    if not factors and not heads:
        raise AdapterError("nothing is left: with this rank or error every layer changes by nothing.")
    first, own = opened[0][0], adapters[0]
    whole = {name for one in adapters for name in one.settings.get("modules_to_save") or []}
    settings = settings_after(own.settings, factors) | {"modules_to_save": sorted(whole) or None}
    written = AdapterWeights(settings, factors, heads)
    with told_when_full(folder):
        need_space(folder.absolute(), sum(value.nbytes for part in factors.values() for value in part.values))
        rewrite(
            written, folder, extra_files(first, 1.0), filled_by_export(first, written, _sentence(options), callback)
        )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return CombinedAdapter(
        str(folder), size, written.rank, written.parameters, tuple(errors), math.sqrt(lost / energy) if energy else 0.0
    )  # fmt: skip


def _opened(name: str, options: Options, callback: Callback) -> tuple[Artifact, AdapterWeights]:
    artifact = open_artifact(name, callback, **options.opening)
    artifact.refuse("combined")
    try:
        return artifact, stored_weights(artifact, callback)
    except RankwiseError as error:
        raise type(error)(f"{artifact.described}: {error}") from None


def _check(opened: Sequence[tuple[Artifact, AdapterWeights]], options: Options) -> None:
    problems = unjoinable(opened, is_single=False)
    bases = {
        (artifact.base_named.name if artifact.base_named else None): None
        if artifact.trained_on is None else artifact.trained_on.fingerprint
        for artifact, _ in opened
    }  # fmt: skip
    known = {one for one in bases.values() if one is not None}
    if not options.opening.get("force_base") and (len(known) > 1 or (len(known) < len(bases) and len(bases) > 1)):
        problems.append(
            f"these adapters are for different base models: {some(map(str, bases))}. Use --force-base if they are the "
            "same weights."
        )
    if options.strength != 1 and any(adapter.heads for _, adapter in opened):
        problems.append("an adapter with a module that was trained whole cannot be scaled. Leave out --strength.")
    shapes: dict[str, set[tuple[object, ...]]] = {}
    for _, adapter in opened:
        for path, part in adapter.factors.items():
            shapes.setdefault(path, set()).add((*part.A.shape[1:], part.B.shape[0], part.embedding))
    if differing := [path for path, several in shapes.items() if len(several) > 1]:
        problems.append(f"these layers have different shapes in the adapters: {some(differing, 4)}.")
    if options.combining.lays_out and not options.combining.cuts:
        problems.append(f"{options.combining.kind} gives no low rank; add --rank or --error to --as-adapter.")
    if problems:
        raise AdapterError("\n".join(problems))


def _combined(path: str, parts: Weighted, options: Options) -> tuple[Factors, LowRank | None]:
    combining, (first, _) = options.combining, parts[0]
    near = None
    if combining.lays_out:
        pairs = [joined([(part, 1.0)]) for part, _ in parts]
        change = laid(combining, f"{path}.weight", pairs, [weight for _, weight in parts])
        rows, width = pairs[0][0].shape[0], pairs[0][1].shape[1]
        near = cut_laid(change, rows, list(pieces((rows, width))))
    elif combining.cuts:
        near = cut(*joined(parts), combining)
    B, A = joined(parts) if near is None else (near.B.float(), near.A.float())
    if near is not None:
        near = replace(near, error=error_of(near, B, A))
    if _size(B, A) <= NOTHING * sum(abs(weight) * _size(*joined([(part, 1.0)])) for part, weight in parts):
        B, A = B[:, :0], A[:0]
    if first.A.ndim == 4:  # filters of a convolution
        A, B = A.view(len(A), *first.A.shape[1:]), B[:, :, None, None]
    return Factors(A.contiguous(), B.contiguous(), 1.0, embedding=first.embedding), near


def _size(B: torch.Tensor, A: torch.Tensor) -> float:
    """The Frobenius norm of B A."""
    B, A = B.double(), A.double()
    return math.sqrt(float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0)))


def error_of(near: LowRank, B: torch.Tensor, A: torch.Tensor) -> float:
    """With what rounding the factors to float32 adds, which the trace of small products tells."""
    left, right = torch.cat([near.B, -B.double()], 1), torch.cat([near.A, A.double()])
    rounding = float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0))
    return math.sqrt(near.error**2 + rounding)


def _sentence(options: Options) -> str:
    """For the model card."""
    combining = options.combining
    cutting = f" and cut to rank {combining.rank}" if combining.rank is not None else ""
    cutting += f" with a relative error of at most {combining.error:g}" if combining.error is not None else ""
    if len(options.adapters) == 1:
        return f"Its ranks were lowered{cutting.removeprefix(' and cut')}."
    weights = ", ".join(f"{weight:g}" for weight in options.weights or [])
    return (
        f"It is a combination ({combining.kind}) of {len(options.adapters)} adapters with weights {weights}{cutting}."
    )
