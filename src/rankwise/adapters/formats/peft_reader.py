"""The reader of PEFT's adapter files, for a model or without one. All faults are refused by name.

    LORA      <path>.lora_A.weight    (R, I)   .lora_B.weight   (O, R)   .lora_magnitude_vector (O,) of a DoRA
              <path>.lora_embedding_A (R, V)   .lora_embedding_B (O, R)
    ADALORA   <path>.lora_A           (R, I)   .lora_B          (O, R)   .lora_E (R, 1)
              delta = s B diag(E) A, read as a LoRA with B diag(E) for B

    <path>.token_adapter.trainable_tokens_delta (n, d)  rows of the tokens that trainable_token_indices names

`target_parameters` name stacked experts, whose factors PEFT stores as two matrices for all experts of a block:

    <module>.lora_A.weight   (E R, I)   the factors of the experts under one another:     row e R + r
    <module>.lora_B.weight   (O, R E)   the experts of each rank side by side:            column r E + e

of the last adapted parameter of a module; those of the one before it lie at `<module>.base_layer` (config/experts.py).

Each key begins with `base_model.model.`. `modules_to_save` names modules that were trained whole; their parameters lie
beside the factors. Any other tensor, a missing half, a shape that does not fit and a value that is not finite are
refused, all of them at once. Shapes are in the header, so no tensor is read that could not fit. Where the model is
known, a layer that the targets name must have factors: PEFT writes all of them, so one without is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor, nn

from rankwise.adapters.base_layers import (
    experts_of,
    features_of,
    is_embedding,
    is_transposed,
    weight_of,
)
from rankwise.adapters.experts import StackedWeight
from rankwise.adapters.formats.imported import Modules, Shape, host_problem, misfitting
from rankwise.adapters.formats.peft_config import PeftConfig, check_config, is_inside, read_settings, unknown_keys
from rankwise.adapters.formats.tensors import no_floats, open_tensors, pickles_in
from rankwise.adapters.weights import AdapterWeights, Factors, TokenValues
from rankwise.config.experts import NESTED, PARAMETERS, stored_names
from rankwise.config.expressions import matches_of, new_names
from rankwise.errors import AdapterError, one_line, some

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TOKENS = "token_adapter.trainable_tokens_delta"
_LORA = r"lora_(?P<part>[AB])\.weight|(?P<table>lora_embedding_)(?P<part>[AB])|lora_(?P<part>m)agnitude_vector"
_ADALORA = r"lora_(?P<part>[ABE])|(?P<part>ranknum)"
KEYS = {
    peft_type: regex.compile(rf"base_model\.model\.(?P<path>.+)\.(?:{part})")
    for peft_type, part in (("LORA", _LORA), ("ADALORA", _ADALORA))
}
NAMES = {"A": "lora_A", "B": "lora_B", "E": "lora_E", "m": "lora_magnitude_vector"}
_BASE_KEY = regex.compile(r"base_model\.model\.(?P<path>.+?)(\.base_layer)?\.(?P<part>weight|bias)")

Layers = dict[str, dict[str, str]]
"""The key of each part of a layer (A, B, E, m), by path."""
UNSWAPPED = (0, 19)
"""Since this version PEFT asks a module of experts which way round its weights lie."""


def read_weights(
    folder: Path, modules: Modules | None = None, settings: dict[str, Any] | None = None
) -> AdapterWeights:  # fmt: skip
    """Read a LoRA or an AdaLoRA; for the layers of a model where its `modules` are given, in the model's order. Layers
    may have the names that they had before transformers 5. `settings` stand for those of the folder."""
    settings, file = settings or read_settings(folder / CONFIG), folder / WEIGHTS
    config = check_config(settings, folder / CONFIG)
    today = new_names(modules or ())
    known = None if modules is None else {**modules, **{old: modules[new] for old, new in today.items()}}
    with open_tensors(file) as tensors:
        reader = _Reader(tensors, config, known)
        layers, heads = reader.grouped()
        ranks = reader.checked_ranks(layers)
        problems = [
            *no_floats(tensors),
            *reader.problems,
            *config.unmatched([path for path in layers if path not in reader.stacked]),
        ]
        problems += unmatched_parameters(config.target_parameters or [], list(reader.stacked))
        problems += reader.lost_layers(today) if not problems else []
        if not layers and not heads and not reader.tokens and not problems:
            problems.append("it contains no LoRA factors")
        if modules is not None and not heads and not reader.tokens and not problems and not any(ranks.values()):
            problems.append("all layers have rank 0, so it changes nothing")
        _refuse(file, problems)
        scales = config.scales_of(list(layers))
        factors = {path: _factors(tensors, keys, scales[path]) for path, keys in layers.items()}
        for path in reader.stacked:
            A, B = apart(factors[path].A, factors[path].B, ranks[path])
            factors[path] = replace(factors[path], A=A, B=B)
        whole = {name: tensors.get_tensor(PREFIX + name) for name in heads}
        tokens = {path: TokenValues(tuple(ids), tensors.get_tensor(f"{PREFIX}{path}.{TOKENS}"))
                  for path, ids in reader.tokens.items()}  # fmt: skip
    others = {path: rows.values for path, rows in tokens.items()} | whole
    infinite = [path for path, part in factors.items() if not part.finite]
    infinite += [name for name, value in others.items() if not bool(torch.isfinite(value).all())]
    _refuse(file, [f'"{name}" contains NaN or infinity' for name in infinite])
    if old := [path for path in factors if path in today]:
        _refuse(file, [f'"{path}" and "{today[path]}" are one layer' for path in old if today[path] in factors])
        factors = {today.get(path, path): part for path, part in factors.items()}
        factors = {path: factors[path] for path in modules or () if path in factors}
    warnings = (*unknown_keys(settings, config), *_unused_pickles(folder))
    return AdapterWeights(settings, factors, whole, tokens, {path: today[path] for path in old}, warnings)


def _unused_pickles(folder: Path) -> list[str]:
    """A warning for weights that other programs may read in the place of the safetensors file."""
    names = [name for name in pickles_in(folder) if name.startswith("adapter_model")]
    return [f"{folder} also contains {some(names)}, which is a pickle and was not read"] if names else []


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")


def _factors(tensors: Any, keys: dict[str, str], scale: float) -> Factors:
    parts = {part: tensors.get_tensor(key) for part, key in keys.items()}
    A, B = parts["A"], parts["B"]
    if "E" in parts:
        A, B = A.float(), B.float() * parts["E"].float().view(1, -1)
    return Factors(A, B, scale, parts.get("m"), "lora_embedding_" in keys["A"])


@dataclass
class _Reader:
    """One file, whose problems are collected."""

    tensors: Any
    config: PeftConfig
    modules: Modules | None

    def __post_init__(self) -> None:
        self.problems: list[str] = []
        self.paths: set[str] = set()
        self.stacked: dict[str, None] = {}
        """Parameters of experts, by path."""
        self.tokens: dict[str, list[int]] = {}

    def grouped(self) -> tuple[Layers, list[str]]:
        """Sort the keys into layers with all their parts, and parameters of modules that were trained whole."""
        layers, heads = Layers(), []
        matches = {key: KEYS[self.config.peft_type].fullmatch(key) for key in self.tensors.keys()}  # noqa: SIM118
        parameters = self._parameters_by_name([match["path"] for match in matches.values() if match is not None])
        for key, match in matches.items():
            if match is None:
                heads += self._outside_layers(key)
                continue
            path = parameters.get(match["path"], match["path"])
            if match["part"] == "ranknum":
                self._check_initial_rank(key)
            elif problem := self._problem_of(match, path):
                self.problems.append(f'"{key}" {problem}')
            else:
                layers.setdefault(path, {})[match["part"]] = key
        self.problems += [
            f'"modules_to_save" names "{name}", but the file has no weights for it'
            for name in self.config.modules_to_save or []
            if self._has_module(name) and not any(is_inside(head, name) for head in heads)
        ]
        if self.config.trainable_token_indices and not self.tokens and not self.problems:
            self.problems.append("trainable_token_indices names tokens, but the file has no rows for them")
        self.paths = set(layers)
        whole = {path: keys for path, keys in layers.items() if self._is_whole(path, keys)}
        order = [path for path in self.modules if path in whole] if self.modules is not None else list(whole)
        return {path: {part: whole[path][part] for part in self.config.parts} for path in order}, heads

    def checked_ranks(self, layers: Layers) -> dict[str, int]:
        ranks, problems = self.config.ranks_of(list(layers))
        self.problems += problems
        for path, keys in layers.items():
            shapes = [tuple(self.tensors.get_slice(key).get_shape()) for key in keys.values()]
            layer = self.modules[path] if self.modules else None
            if path in self.stacked:
                self.problems += misfitting_experts(path, shapes, ranks[path], layer, self.config.peft_version)
            else:
                self.problems += misfitting(path, shapes, ranks[path], self.config.parts, layer)
        return ranks

    def lost_layers(self, today: Mapping[str, str]) -> list[str]:
        """Layers of the model that the targets name and that have no factors in the file, under any of their names."""
        if self.modules is None:
            return []
        hosts = [path for path, module in self.modules.items()
                 if host_problem(module) is None and not experts_of(module)]  # fmt: skip
        there = {today.get(path, path) for path in self.paths}
        lost = {today.get(path, path) for path in self.config.meant(hosts)} - there
        lost |= set(lost_parameters(self.config.target_parameters or [], there, self.modules))
        return [
            f'"{path}" has no factors, although the targets name it; if it was left out on purpose, '
            "list the adapted layers by their whole paths" for path in self.modules if path in lost
        ]  # fmt: skip

    def _parameters_by_name(self, stored: list[str]) -> dict[str, str]:
        targets = self.config.target_parameters or []
        names = parameters_by_name(list(dict.fromkeys(stored)), self.config.layers, targets, self.modules)
        self.stacked = dict.fromkeys(names.values())
        return names

    def _problem_of(self, match: regex.Match[str], path: str) -> str | None:
        is_table = bool(match.groupdict().get("table"))
        if self.modules is not None:
            layer = self.modules.get(path)
            if layer is None:
                return "is for a layer that this model does not have"
            if problem := host_problem(layer, dora="m" in self.config.parts):
                return problem
            if is_table != is_embedding(layer):
                return f"does not fit a layer of type {type(layer).__name__}"
        return None if match["part"] in self.config.parts else f"belongs to DoRA, but {CONFIG} does not set use_dora"

    def _has_module(self, name: str) -> bool:
        """PEFT names every head that a classifier might have, of which a model has one."""
        return self.modules is None or any(path == name or path.endswith(f".{name}") for path in self.modules)

    def _is_whole(self, path: str, keys: dict[str, str]) -> bool:
        present, missing = ([NAMES[part] for part in self.config.parts if (part in keys) is expected]
                            for expected in (True, False))  # fmt: skip
        if missing:
            self.problems.append(f'"{path}" has only {" and ".join(present)}, no {" and no ".join(missing)}')
        return not missing

    def _outside_layers(self, key: str) -> list[str]:
        """Names of parameters of a saved module. PEFT also stores the table and the head beside an adapted embedding,
        which is harmless if they equal the base's own."""
        name = key.removeprefix(PREFIX)
        if key != name and name.endswith(f".{TOKENS}"):
            self._add_tokens(key, name.removesuffix(f".{TOKENS}"))
            return []
        if key != name and any(is_inside(name, saved) for saved in self.config.modules_to_save or []):
            return [name] if self._fits_model(key, name) else []
        dumped = _BASE_KEY.fullmatch(key) if self.modules is not None else None
        base = getattr(self.modules.get(dumped["path"]), dumped["part"], None) if self.modules and dumped else None
        if isinstance(base, Tensor):
            stored = self.tensors.get_tensor(key)
            if stored.shape == base.shape and torch.equal(stored.to(base), base):
                return []
        self.problems.append(f'"{key}" is not a LoRA factor; an adapter must not contain other weights')
        return []

    def _add_tokens(self, key: str, path: str) -> None:
        """Rows of single tokens, of which the model must have as many."""
        ids, shape = self.config.tokens_of(path) or [], tuple(self.tensors.get_slice(key).get_shape())
        module = None if self.modules is None else self.modules.get(path)
        if self.modules is not None and not isinstance(module, nn.Embedding | nn.Linear):
            self.problems.append(f'"{key}" is for a table that this model does not have')
        elif len(shape) != 2 or not ids or shape[0] != len(ids) or len(set(ids)) != len(ids):
            self.problems.append(
                f'"{key}" has the shape {shape}, but trainable_token_indices names {len(set(ids))} tokens for it'
            )
        elif module is not None and shape[1] != weight_of(module).shape[1]:
            self.problems.append(
                f'"{key}" has rows of {shape[1]} numbers, but this model has {weight_of(module).shape[1]}'
            )
        elif module is not None and max(ids) >= len(weight_of(module)):
            self.problems.append(
                f'"{key}" has a row for token {max(ids)}, but this model has {len(weight_of(module))} tokens; load it '
                "with the same model.new_tokens"
            )
        else:
            self.tokens[path] = ids

    def _fits_model(self, key: str, name: str) -> bool:
        if self.modules is None:
            return True
        shape, (path, _, leaf) = tuple(self.tensors.get_slice(key).get_shape()), name.rpartition(".")
        own = getattr(self.modules.get(path), leaf, None)
        if not isinstance(own, Tensor):
            self.problems.append(f'"{key}" is for a layer that this model does not have')
        elif tuple(own.shape) != shape:
            self.problems.append(f'"{key}" has the shape {shape}, but this model needs {tuple(own.shape)}')
        else:
            return True
        return False

    def _check_initial_rank(self, key: str) -> None:
        """Some versions of PEFT store the rank at the start with each layer and divide by it."""
        initial = getattr(self.config, "init_r", None)
        if self.tensors.get_slice(key).get_shape() not in ([], [1]) or self.tensors.get_tensor(key).item() != initial:
            self.problems.append(f'"{key}" differs from init_r, which is {initial}')


def misfitting_experts(
    path: str, shapes: list[Shape], rank: int, host: nn.Module | None, version: str | None
) -> list[str]:  # fmt: skip
    """The same of the stored matrices of experts, which PEFT of this version wrote."""
    A, B, *others = shapes
    has = f'"{path}" has factors of experts of shape {" and ".join(map(str, shapes))}'
    if host is None:
        fits = not others and len(A) == len(B) == 2 and A[0] == B[1] and A[0] > 0 and A[0] % rank == 0
        return [] if fits else [f"{has}, but its rank is {rank}"]
    (inside, outside), rows = features_of(host), experts_of(host) * rank
    swapped = [(rows, outside), (inside, rows)]
    if not is_transposed(host) and shapes == swapped and (inside != outside or _swaps(version)):
        return [f"{has}: PEFT before {'.'.join(map(str, UNSWAPPED))} took their inputs for outputs. Merge it with PEFT"]
    if shapes == [(rows, inside), (outside, rows)]:
        return []
    return [f"{has}, but rank {rank} on this parameter needs {(rows, inside)} and {(outside, rows)}"]


def _swaps(version: str | None) -> bool:
    numbers = regex.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < UNSWAPPED


def parameters_by_name(
    stored: Sequence[str], layers: Sequence[str], targets: Sequence[str], modules: Mapping[str, nn.Module] | None
) -> dict[str, str]:
    """Which parameter each of the `stored` paths of factors is for. `layers` are `target_modules`, whose paths are not
    among them, and `targets` are `target_parameters`."""
    if not targets:
        return {}
    declared = {path for matching in matches_of(layers, stored, "target_modules").values() for path in matching}
    holders = dict.fromkeys(_holder(path) for path in stored if path not in declared)
    names: dict[str, str] = {}
    for holder in holders:
        inside = [f"{holder}.{leaf}" for leaf in PARAMETERS if _is_named(f"{holder}.{leaf}", targets)]
        if modules is not None:
            inside = [path for path in inside if isinstance(modules.get(path), StackedWeight)]
        names |= {name: path for path, name in stored_names(inside).items()}
    return {path: names[path] for path in stored if path in names}


def unmatched_parameters(targets: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """Why some of `target_parameters` are refused: they have no factors, or are no experts."""
    known = ", ".join(PARAMETERS)
    return [
        f'the target parameter "{one_line(target)}" has no factors of experts (parameters that are read: {known})'
        for target in targets
        if not any(_is_named(path, [target]) for path in parameters)
    ]


def lost_parameters(targets: Sequence[str], there: set[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Parameters of experts that the targets name in a model, and that are not `there` in the file."""
    hosts = [path for path, module in modules.items() if isinstance(module, StackedWeight)]
    return [path for path in hosts if _is_named(path, targets) and path not in there]


def apart(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (E, R, I) and B (E, O, R) of the stored matrices."""
    experts = A.shape[0] // rank
    return A.view(experts, rank, A.shape[1]), B.view(len(B), rank, experts).permute(2, 0, 1).contiguous()


def together(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices as PEFT stores them."""
    return A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)


def _holder(path: str) -> str:
    while path.endswith(NESTED):
        path = path.removesuffix(NESTED)
    return path


def _is_named(path: str, targets: Sequence[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)
