"""Stop 11: PEFT's two files, adapter_config.json and adapter_model.safetensors, written and read.

    base_model.model.<path>.lora_A.weight   (R, I)      base_model.model.<path>.lora_embedding_A   (R, V)
    base_model.model.<path>.lora_B.weight   (O, R)      base_model.model.<path>.lora_embedding_B   (O, R)

with the scale of a layer alpha / r, each of the two found through rank_pattern and alpha_pattern by the first key
that matches. Files of others are untrusted: an adapter may only bring factors for layers that exist and that its
config declares. Anything else (a base weight among the tensors, a missing half, a shape that does not fit, a value
that is not finite) is refused by name, all such problems at once, before the model is touched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.adapters.adapter_set import AdapterSet
from rankwise.adapters.hosts import features_of, is_conv1d, is_embedding, is_host
from rankwise.adapters.lora import EmbeddingLoRA, LoRA
from rankwise.adapters.peft_config import PeftConfig, read_config
from rankwise.adapters.targets import Choice, host_view
from rankwise.errors import AdapterError, some
from rankwise.run.writing import published, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = regex.compile(
    r"base_model\.model\.(?P<path>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)"
)
_BASE_KEY = regex.compile(r"base_model\.model\.(?P<path>.+?)(\.base_layer)?\.(?P<part>weight|bias)")


def write_peft(
    adapters: AdapterSet,
    folder: Path | str,
    *,
    base_model: str,
    name: str = "default",
    revision: str | None = None,
    task_type: str | None = "CAUSAL_LM",
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Write one adapter as `folder`, whole or not at all. Two writes of one adapter give the same bytes.

    `beside` are values to lie in the same folder as JSON, by file name.
    """
    parts = adapters.adapters(name)
    tensors: dict[str, Tensor] = {}
    for path, adapter in parts.items():
        for key, factor in zip(_keys(path, adapter), (adapter.A, adapter.B), strict=True):
            tensors[key] = factor.detach().to("cpu", torch.float32).contiguous()
    with published(Path(folder)) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / CONFIG, _config(adapters, parts, base_model, revision, task_type))
        for file, value in (beside or {}).items():
            write_json(temporary / file, value)


def read_peft(
    model: nn.Module, folder: Path | str, *, name: str = "default", into: AdapterSet | None = None
) -> AdapterSet:
    """Lay the adapter in `folder` over `model`, or over a model that has adapters already by `into`."""
    config = read_config(Path(folder) / CONFIG)
    factors = _read_factors(Path(folder) / WEIGHTS, host_view(model), config)
    adapters = into if into is not None else AdapterSet(model)
    try:
        choices = [Choice(path, factor.rank, factor.scale * factor.rank) for path, factor in factors.items()]
        adapters.place(choices, name, config.lora_dropout)
        with torch.no_grad():
            for path, adapter in adapters.adapters(name).items():
                adapter.A.copy_(factors[path].A)
                adapter.B.copy_(factors[path].B)
                adapter.scale = factors[path].scale
    except BaseException:
        if into is None:
            adapters.eject()
        raise
    return adapters


def _keys(path: str, adapter: LoRA) -> tuple[str, str]:
    if isinstance(adapter, EmbeddingLoRA):
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def _config(
    adapters: AdapterSet, parts: dict[str, LoRA], base_model: str, revision: str | None, task_type: str | None
) -> dict[str, Any]:
    ranks = {path: adapter.rank for path, adapter in parts.items()}
    alphas = {path: _tidy(adapter.scale * adapter.rank) for path, adapter in parts.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    hosts = [adapters.layers[path].host for path in parts]
    return {
        "alpha_pattern": _pattern({path: value for path, value in alphas.items() if value != alpha}),
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": all(is_conv1d(host) for host in hosts),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": max((adapter.dropout for adapter in parts.values()), default=0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": _pattern({path: value for path, value in ranks.items() if value != rank}),
        "revision": revision,
        "target_modules": _target_names(list(parts), host_view(adapters.model)),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": False,
    }


def _tidy(alpha: float) -> float | int:
    """alpha as the user gave it: an integer where it is one (some engines read nothing else)."""
    rounded = round(alpha, 9)
    return int(rounded) if rounded == int(rounded) else alpha


def _commonest(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: dict[str, Any]) -> dict[str, Any]:
    """Whole paths as expressions, longer ones first, since a short path may be the end of a longer one."""
    return {path.replace(".", r"\."): values[path] for path in sorted(values, key=lambda path: (-len(path), path))}


def _target_names(paths: list[str], modules: dict[str, nn.Module]) -> list[str]:
    """Last names where they select exactly these layers, whole paths elsewhere."""
    leaves = {path.rpartition(".")[2] for path in paths}
    selected = [path for path in modules if path.rpartition(".")[2] in leaves]
    return sorted(leaves if set(selected) == set(paths) else paths)


@dataclass(frozen=True)
class _Factors:
    A: Tensor
    B: Tensor
    rank: int
    scale: float

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.A).all() and torch.isfinite(self.B).all())


def _read_factors(file: Path, modules: dict[str, nn.Module], config: PeftConfig) -> dict[str, _Factors]:
    if not file.is_file():
        raise AdapterError(f"{file} is missing; only adapters stored as safetensors are read.")
    try:
        with safe_open(file, framework="pt") as tensors:
            pairs, problems = _sort_keys(list(tensors.keys()), modules, tensors)
            for path, pair in pairs.items():  # shapes are in the header: nothing is read that could not fit
                problems += _wrong_shape(path, [tensors.get_slice(key) for key in pair], config, modules[path])
            problems += config.unmatched(list(pairs))
            if not pairs and not problems:
                problems.append("it holds no LoRA factor at all")
            _refuse(file, problems)
            factors = {path: _factors(path, tensors, pair, config) for path, pair in pairs.items()}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from None
    _refuse(file, [f'"{path}" has values that are not finite' for path, found in factors.items() if not found.finite])
    return factors


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        raise AdapterError(f"{file} cannot be used: {some(problems, 8)}.")


def _factors(path: str, tensors: Any, pair: tuple[str, str], config: PeftConfig) -> _Factors:
    rank, alpha = config.rank_of(path), config.alpha_of(path)
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    return _Factors(tensors.get_tensor(pair[0]), tensors.get_tensor(pair[1]), rank, scale)


def _sort_keys(
    keys: list[str], modules: dict[str, nn.Module], tensors: Any
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Whole pairs of keys by path, and what is wrong with the others."""
    halves: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for key in keys:
        match = _KEY.fullmatch(key)
        if match is None:
            problems += _foreign(key, modules, tensors)
        elif match["path"] not in modules or not is_host(modules[match["path"]]):
            problems.append(f'"{key}" is for a layer that this model does not have')
        elif ("embedding" in match["part"]) != is_embedding(modules[match["path"]]):
            problems.append(f'"{key}" is of the wrong kind for a {type(modules[match["path"]]).__name__}')
        else:
            halves.setdefault(match["path"], {})["A" if "_A" in match["part"] else "B"] = key
    for path, pair in halves.items():
        if len(pair) < 2:
            problems.append(f'"{path}" has only lora_{next(iter(pair))}')
    return {
        path: (halves[path]["A"], halves[path]["B"]) for path in modules if len(halves.get(path, ())) == 2
    }, problems


def _foreign(key: str, modules: dict[str, nn.Module], tensors: Any) -> list[str]:
    """PEFT stores the table and the head beside an adapted embedding: harmless if they are the base's own."""
    dumped = _BASE_KEY.fullmatch(key)
    base = getattr(modules.get(dumped["path"]), dumped["part"], None) if dumped else None
    if isinstance(base, Tensor):
        stored = tensors.get_tensor(key)
        if stored.shape == base.shape and torch.equal(stored.to(base), base):
            return []
    return [f'"{key}" is no LoRA factor; an adapter may not bring other weights']


def _wrong_shape(path: str, pair: list[Any], config: PeftConfig, host: nn.Module) -> list[str]:
    A, B = (tuple(part.get_shape()) for part in pair)
    types = [part.get_dtype() for part in pair]
    rank, (inside, outside) = config.rank_of(path), features_of(host)
    fits = A == (rank, inside) and B == (outside, rank)
    if not fits:
        return [
            f'"{path}" has factors {A} and {B} where rank {rank} on this layer wants '
            f"{(rank, inside)} and {(outside, rank)}"
        ]
    if not set(types) <= {"F64", "F32", "F16", "BF16"}:
        return [f'"{path}" has factors of type {types[0]} and {types[1]}']
    return []
