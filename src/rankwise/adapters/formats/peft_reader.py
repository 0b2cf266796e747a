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
refused, all of them at once. Where the model is known, a layer that the targets name must have factors: PEFT writes all
of them, so one without is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
from rankwise.adapters.formats.tensors import pickles_in, read_tensors, refuse
from rankwise.adapters.weights import AdapterWeights, Factors, TokenValues
from rankwise.config.experts import NESTED, PARAMETERS, stored_names
from rankwise.config.expressions import matches_of, new_names
from rankwise.errors import one_line, some

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

UNSWAPPED = (0, 19)
"""Since this version PEFT asks a module of experts which way round its weights lie."""


def read_weights(folder: Path, modules: Modules | None = None) -> AdapterWeights:
    """Read a LoRA or an AdaLoRA; for the layers of a model where its `modules` are given, in the model's order. Layers
    may have the names that they had before transformers 5."""
    settings, file = read_settings(folder / CONFIG), folder / WEIGHTS
    config = check_config(settings, folder / CONFIG)
    reader = _Reader(config, modules, read_tensors(file))
    factors = reader.factors()
    refuse(file, reader.problems)
    infinite = [path for path, part in factors.items() if not part.finite]
    others = {path: rows.values for path, rows in reader.tokens.items()} | reader.heads
    infinite += [name for name, value in others.items() if not bool(torch.isfinite(value).all())]
    refuse(file, [f'"{name}" contains NaN or infinity' for name in infinite])
    today, renamed = reader.today, {path: reader.today[path] for path in factors if path in reader.today}
    refuse(file, [f'"{path}" and "{new}" are one layer' for path, new in renamed.items() if new in factors])
    factors = {today.get(path, path): part for path, part in factors.items()}
    ordered = {path: factors[path] for path in (factors if modules is None else modules) if path in factors}
    warnings = (*unknown_keys(settings, config), *_unused_pickles(folder))
    return AdapterWeights(settings, ordered, reader.heads, reader.tokens, renamed, warnings)


def peft_base(folder: Path) -> tuple[str | None, str | None, list[int]]:
    """The base model that PEFT would load, its revision, and the tokens whose rows were trained."""
    config = check_config(read_settings(folder / CONFIG), folder / CONFIG)
    return config.base_model_name_or_path or None, config.revision, config.trained_tokens


def _unused_pickles(folder: Path) -> list[str]:
    """A warning for weights that other programs may read in the place of the safetensors file."""
    names = [name for name in pickles_in(folder) if name.startswith("adapter_model")]
    return [f"{folder} also contains {some(names)}, which is a pickle and was not read"] if names else []


class _Reader:
    """The tensors of one file by what they are. Problems are collected, as clauses of one message."""

    def __init__(self, config: PeftConfig, modules: Modules | None, tensors: Mapping[str, Tensor]) -> None:
        self.config, self.problems = config, list[str]()
        self.today = new_names(modules or ())
        self.modules = (
            None if modules is None else {**modules, **{old: modules[new] for old, new in self.today.items()}}
        )
        self.heads: dict[str, Tensor] = {}
        self.tokens: dict[str, TokenValues] = {}
        self._layers: dict[str, dict[str, Tensor]] = {}
        matches = {key: KEYS[config.peft_type].fullmatch(key) for key in tensors}
        stored = dict.fromkeys(match["path"] for match in matches.values() if match is not None)
        self._stacked = parameters_by_name(list(stored), config.layers, config.target_parameters or [], self.modules)
        for key, match in matches.items():
            problem = self._outside(key, tensors[key]) if match is None else self._part(match, tensors[key])
            self.problems += [] if problem is None else [f'"{key}" {problem}']
        self.problems += [
            f'"modules_to_save" names "{name}", but the file has no weights for it'
            for name in config.modules_to_save or []
            if self._has_module(name) and not any(is_inside(head, name) for head in self.heads)
        ]
        if config.trainable_token_indices and not self.tokens and not self.problems:
            self.problems.append("trainable_token_indices names tokens, but the file has no rows for them")

    def factors(self) -> dict[str, Factors]:
        """The factors of every layer, by the layer's name in the file; empty if there are problems."""
        layers = {path: parts for path, parts in self._layers.items() if self._is_whole(path, parts)}
        stacked = [path for path in layers if path in self._stacked.values()]
        ranks, problems = self.config.ranks_of(list(layers))
        self.problems += [*problems, *self.config.unmatched([path for path in layers if path not in stacked])]
        self.problems += unmatched_parameters(self.config.target_parameters or [], stacked)
        for path, parts in layers.items():
            shapes, layer = [tuple(parts[part].shape) for part in self.config.parts], (self.modules or {}).get(path)
            self.problems += (
                misfitting_experts(path, shapes, ranks[path], layer, self.config.peft_version)
                if path in stacked
                else misfitting(path, shapes, ranks[path], self.config.parts, layer)
            )
        self.problems += [] if self.problems else self._lost_layers() or self._nothing(ranks)
        if self.problems:
            return {}
        scales = self.config.scales_of(list(layers))
        return {path: self._factors(path, parts, scales[path], ranks[path]) for path, parts in layers.items()}

    def _factors(self, path: str, parts: dict[str, Tensor], scale: float, rank: int) -> Factors:
        A, B = parts["A"], parts["B"]
        if "E" in parts:
            A, B = A.float(), B.float() * parts["E"].float().view(1, -1)
        if path in self._stacked.values():
            A, B = separate_experts(A, B, rank)
        return Factors(A, B, scale, parts.get("m"), "table" in parts)

    def _nothing(self, ranks: Mapping[str, int]) -> list[str]:
        if self.heads or self.tokens or any(ranks.values()) or (ranks and self.modules is None):
            return []
        return ["all layers have rank 0, so it changes nothing" if ranks else "it contains no LoRA factors"]

    def _lost_layers(self) -> list[str]:
        """Layers of the model that the targets name and that have no factors in the file, under any of their names."""
        if self.modules is None:
            return []
        hosts = [path for path, module in self.modules.items()
                 if host_problem(module) is None and not experts_of(module)]  # fmt: skip
        there = {self.today.get(path, path) for path in self._layers}
        lost = {self.today.get(path, path) for path in self.config.meant(hosts)} - there
        lost |= set(lost_parameters(self.config.target_parameters or [], there, self.modules))
        return [
            f'"{path}" has no factors, although the targets name it; if it was left out on purpose, '
            "list the adapted layers by their whole paths" for path in self.modules if path in lost
        ]  # fmt: skip

    def _part(self, match: regex.Match[str], value: Tensor) -> str | None:
        """A part of a layer's factors, or what is wrong with it."""
        path, part = self._stacked.get(match["path"], match["path"]), match["part"]
        is_table = bool(match.groupdict().get("table"))
        if part == "ranknum":
            return self._initial_rank(value)
        if self.modules is not None:
            layer = self.modules.get(path)
            if layer is None:
                return "is for a layer that this model does not have"
            if problem := host_problem(layer, dora="m" in self.config.parts):
                return problem
            if is_table != is_embedding(layer):
                return f"does not fit a layer of type {type(layer).__name__}"
        if part not in self.config.parts:
            return f"belongs to DoRA, but {CONFIG} does not set use_dora"
        self._layers.setdefault(path, {})[part] = value
        if is_table:
            self._layers[path]["table"] = value
        return None

    def _initial_rank(self, value: Tensor) -> str | None:
        """Some versions of PEFT store the rank at the start with each layer and divide by it."""
        initial = getattr(self.config, "init_r", None)
        return None if value.numel() == 1 and value.item() == initial else f"differs from init_r, which is {initial}"

    def _has_module(self, name: str) -> bool:
        """PEFT names every head that a classifier might have, of which a model has one."""
        return self.modules is None or any(path == name or path.endswith(f".{name}") for path in self.modules)

    def _is_whole(self, path: str, parts: Mapping[str, Tensor]) -> bool:
        present, missing = ([NAMES[part] for part in self.config.parts if (part in parts) is expected]
                            for expected in (True, False))  # fmt: skip
        if missing:
            self.problems.append(f'"{path}" has only {" and ".join(present)}, no {" and no ".join(missing)}')
        return not missing

    def _outside(self, key: str, value: Tensor) -> str | None:
        """Rows of tokens, or a parameter of a saved module. PEFT also stores the table and the head beside an adapted
        embedding, which is harmless if they equal the base's own."""
        name = key.removeprefix(PREFIX)
        if key != name and name.endswith(f".{TOKENS}"):
            return self._token_rows(name.removesuffix(f".{TOKENS}"), value)
        own = None if self.modules is None else self._parameter(name)
        if key != name and any(is_inside(name, saved) for saved in self.config.modules_to_save or []):
            if self.modules is not None and own is None:
                return "is for a layer that this model does not have"
            if own is not None and own.shape != value.shape:
                return f"has the shape {tuple(value.shape)}, but this model needs {tuple(own.shape)}"
            self.heads[name] = value
            return None
        own = None if self.modules is None else self._parameter(name.replace(NESTED, ""))
        if key != name and own is not None and own.shape == value.shape and torch.equal(value.to(own), own):
            return None
        return "is not a LoRA factor; an adapter must not contain other weights"

    def _parameter(self, name: str) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        own = getattr((self.modules or {}).get(path), leaf, None)
        return own if isinstance(own, Tensor) else None

    def _token_rows(self, path: str, value: Tensor) -> str | None:
        """Rows of single tokens, of which the model must have as many."""
        ids, shape = self.config.tokens_of(path) or [], tuple(value.shape)
        table = None if self.modules is None else self.modules.get(path)
        if self.modules is not None and not isinstance(table, nn.Embedding | nn.Linear):
            return "is for a table that this model does not have"
        if len(shape) != 2 or not ids or shape[0] != len(ids) or len(set(ids)) != len(ids):
            return f"has the shape {shape}, but trainable_token_indices names {len(set(ids))} tokens for it"
        rows, width = (max(ids) + 1, shape[1]) if table is None else weight_of(table).shape
        if shape[1] != width:
            return f"has rows of {shape[1]} numbers, but this model has {width}"
        if max(ids) >= rows:
            return (
                f"has a row for token {max(ids)}, but this model has {rows} tokens; load it with the same "
                "model.new_tokens"
            )
        self.tokens[path] = TokenValues(tuple(ids), value)
        return None


def misfitting_experts(
    path: str, shapes: list[Shape], rank: int, base_layer: nn.Module | None, version: str | None
) -> list[str]:  # fmt: skip
    """What is wrong with the shapes of the stored factors of experts. `version` is that of the PEFT that wrote them."""
    A, B, *others = shapes
    has = f'"{path}" has factors of experts of shape {" and ".join(map(str, shapes))}'
    if base_layer is None:
        fits = not others and len(A) == len(B) == 2 and A[0] == B[1] and A[0] > 0 and A[0] % rank == 0
        return [] if fits else [f"{has}, but its rank is {rank}"]
    (inside, outside), rows = features_of(base_layer), experts_of(base_layer) * rank
    swapped = [(rows, outside), (inside, rows)]
    if not is_transposed(base_layer) and shapes == swapped and (inside != outside or _swaps(version)):
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


def separate_experts(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (E, R, I) and B (E, O, R) of the stored matrices."""
    experts = A.shape[0] // rank
    return A.view(experts, rank, A.shape[1]), B.view(len(B), rank, experts).permute(2, 0, 1).contiguous()


def joined_experts(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices as PEFT stores them."""
    return A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)


def _holder(path: str) -> str:
    while path.endswith(NESTED):
        path = path.removesuffix(NESTED)
    return path


def _is_named(path: str, targets: Sequence[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)
