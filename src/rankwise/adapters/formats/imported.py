"""Layers that another tool named, over the layers of a model: one check for all dialects, and PEFT's settings for them.

A dialect's reader turns its file into `Factors` by layer. Here each is compared with the layer of the base model, all
problems are collected and refused at once, and what is left is what `peft_reader` returns for PEFT's own files.
Without `modules` the names and shapes are the file's own, which is enough to look at an adapter and not to use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import regex
from torch import Tensor, nn

from rankwise.adapters.adapter import conv_problem
from rankwise.adapters.base_layers import features_of, is_conv1d, is_conv2d, is_embedding, is_host, is_linear, weight_of
from rankwise.adapters.formats.peft_config import settings_of
from rankwise.adapters.formats.tensors import LISTED, refuse
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.expressions import new_names
from rankwise.errors import some

Modules = Mapping[str, nn.Module]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ImportedSource:
    """One adapter of another tool, as it lies on the disk."""

    tensors: Path
    settings: Path | None = None
    """The tool's own settings beside the tensors, if it writes any."""

    @property
    def folder(self) -> Path:
        return self.tensors.parent


@dataclass
class Layers:
    """What a reader collects from one file."""

    source: ImportedSource
    factors: dict[str, Factors] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Clauses for one message; any of them refuses the file."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about what was assumed or changed."""
    dropout: float = 0.0
    base: str | None = None
    """The base model that the file names."""

    def grouped(
        self, tensors: Mapping[str, Tensor], names: regex.Pattern[str], parts: Sequence[str]
    ) -> dict[str, tuple[Tensor, ...]]:
        """These parts of each layer that has them all, by the groups `path` and `part` of their names; all else is a
        problem."""
        layers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            match = names.fullmatch(name)
            if match is not None and match["part"] in parts:
                layers.setdefault(match["path"], {})[match["part"]] = tensor
            else:
                self.problems.append(f'"{name}" is no factor of this LoRA, and other weights are not read')
        for path, known in layers.items():
            if missing := [part for part in parts if part not in known]:
                self.problems.append(f'"{path}" has no {" and no ".join(missing)}')
        return {
            path: tuple(known[part] for part in parts) for path, known in layers.items() if len(known) == len(parts)
        }

    def fit(self, path: str, A: Tensor, B: Tensor, rank: int) -> bool:
        """Whether A (r, I) and B (O, r) are matrices of this rank; a problem where they are not."""
        fits = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] == rank and rank > 0
        if not fits:
            shapes = f"{tuple(A.shape)} and {tuple(B.shape)}"
            self.problems.append(f'"{path}" has factors of shape {shapes}, which do not fit each other or rank {rank}')
        return fits

    def refuse(self) -> None:
        refuse(self.source.tensors, self.problems)

    def over(self, modules: Modules | None) -> AdapterWeights:
        """The adapter, for a model with these modules; AdapterError with all that does not fit."""
        if not self.factors and not self.problems:
            self.problems.append("it contains no LoRA factors")
        factors, renamed = self._placed(modules) if modules is not None else (self.factors, {})
        self.problems += [f'"{path}" contains NaN or infinity' for path, part in factors.items() if not part.finite]
        self.refuse()
        layers = {path: modules[path] for path in factors} if modules is not None else {}
        settings: dict[str, Any] = settings_of(factors, layers, modules if modules is not None else list(factors))
        settings |= {
            "base_model_name_or_path": self.base, "lora_dropout": self.dropout, "modules_to_save": None,
            "revision": None, "task_type": None,
        }  # fmt: skip
        return AdapterWeights(dict(sorted(settings.items())), factors, renamed=renamed, remarks=tuple(self.remarks))

    def _placed(self, modules: Modules) -> tuple[dict[str, Factors], dict[str, str]]:
        """The factors under today's names, in the model's order, and the names that changed."""
        today = new_names(modules)
        absent = [path for path in self.factors if path not in modules and path not in today]
        if absent:
            layers = "this layer" if len(absent) == 1 else f"these {len(absent):,} layers"
            self.problems.append(f"the base model does not have {layers}: {some(absent, LISTED)}")
        placed: dict[str, Factors] = {}
        for path, part in self.factors.items():
            here = today.get(path, path)
            if here in modules:
                module, parts = modules[here], "AB" if part.magnitude is None else "ABm"
                problem = host_problem(module, dora=part.magnitude is not None)
                shapes = [tuple(value.shape) for value in part.values]
                self.problems += (
                    misfitting(path, shapes, part.rank, parts, module) if problem is None else [f'"{path}" {problem}']
                )
                placed[here] = replace(part, embedding=is_embedding(module))
        ordered = {path: placed[path] for path in modules if path in placed}
        return ordered, {path: today[path] for path in self.factors if path in today and path not in modules}


def host_problem(layer: nn.Module, *, dora: bool = False) -> str | None:
    """Why no factors can lie over this layer of a model."""
    if isinstance(layer, nn.Conv2d) and (reason := conv_problem(layer)):
        return f"is for one of the convolutions that cannot be adapted: {reason}"
    if not is_host(layer):
        return f"is for a {type(layer).__name__}, which cannot have an adapter"
    if dora and not (is_linear(layer) or is_conv1d(layer)):
        return f"belongs to DoRA on a {type(layer).__name__}, which is not supported"
    return None


def misfitting(path: str, shapes: list[Shape], rank: int, parts: str, layer: nn.Module | None) -> list[str]:
    """What is wrong with the shapes of a layer's factors. `parts` are those that the file has of each layer: A, B, and
    DoRA's magnitude (m) or AdaLoRA's singular values (E)."""
    A, B = shapes[:2]
    if layer is None:
        inside, outside, is_filter = A[1:], B[0] if B else 0, len(A) == 4
    else:  # PEFT's AdaLoRA flattens the filters of a convolution
        (width, outside), is_filter = features_of(layer), is_conv2d(layer) and "E" not in parts
        inside = tuple(weight_of(layer).shape[1:]) if is_filter else (width,)
    third = {"m": (outside,), "E": (rank, 1)}
    fitting = [(rank, *inside), (outside, rank, *((1, 1) if is_filter else ()))]
    fitting += [third[part] for part in parts[2:]]
    if shapes == fitting and len(A) in (2, 4):
        return []
    noun = "triplets" if "E" in parts else "factors"
    has = f'"{path}" has {noun} of shape {" and ".join(map(str, shapes))}'
    if layer is None:
        return [f"{has}, but its rank is {rank}"]
    return [f"{has}, but rank {rank} on this layer needs {' and '.join(map(str, fitting))}"]
