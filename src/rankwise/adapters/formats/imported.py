"""Layers that another tool named, over the layers of a model: one check for all dialects, and PEFT's settings for them.

A dialect's reader turns its file into `Factors` by layer. Here each is compared with the layer of the base model, all
problems are collected and refused at once, and what is left is what `peft_reader` returns for PEFT's own files.
Without `modules` the names and shapes are the file's own, which is enough to look at an adapter and not to use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters.adapter import conv_problem
from rankwise.adapters.base_layers import features_of, is_conv2d, is_embedding, is_host, takes_dora, weight_of
from rankwise.adapters.formats.peft_config import settings_of
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.old_names import new_names
from rankwise.errors import AdapterError, some

LISTED = 8
"""Largest number of problems in one message."""
Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Source:
    """One adapter of another tool, as it lies on the disk."""

    tensors: Path
    settings: Path | None = None
    """The tool's own settings beside the tensors, if it writes any."""


@dataclass
class Layers:
    """What a reader collects from one file."""

    source: Source
    factors: dict[str, Factors] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Clauses for one message; any of them refuses the file."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about what was assumed or changed."""
    dropout: float = 0.0
    base: str | None = None
    """The base model that the file names."""

    def refuse(self) -> None:
        if self.problems:
            raise AdapterError(f"{self.source.tensors} cannot be used: {some(self.problems, LISTED)}.")

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
            if here in placed:
                self.problems.append(f'"{path}" and "{here}" are one layer')
            elif here in modules:
                module = modules[here]
                self.problems += [f'"{path}" {problem}' for problem in misfits(part, module)]
                placed[here] = replace(part, embedding=is_embedding(module))
        ordered = {path: placed[path] for path in modules if path in placed}
        return ordered, {path: today[path] for path in self.factors if path in today and path not in modules}


def misfits(part: Factors, module: nn.Module) -> list[str]:
    """Why these factors cannot lie over this layer."""
    if isinstance(module, nn.Conv2d) and (reason := conv_problem(module)):
        return [f"is for one of the convolutions that cannot be adapted: {reason}"]
    if not is_host(module):
        return [f"is for a {type(module).__name__}, which cannot have an adapter"]
    if part.magnitude is not None and not takes_dora(module):
        return [f"belongs to DoRA on a {type(module).__name__}, which is not supported"]
    (inside, outside), rank = features_of(module), part.rank
    fitting: list[tuple[int, ...]] = [(rank, inside), (outside, rank)]
    if is_conv2d(module):
        fitting = [(rank, *weight_of(module).shape[1:]), (outside, rank, 1, 1)]
    if part.magnitude is not None:
        fitting.append((outside,))
    shapes = [tuple(value.shape) for value in part.values]
    if shapes == fitting and rank > 0:
        return []
    return [
        f"has factors of shape {' and '.join(map(str, shapes))}, and rank {rank} on this layer needs "
        f"{' and '.join(map(str, fitting))}"
    ]
