"""LitGPT's LoRA, stored as safetensors, beside the hyperparameters.yaml that LitGPT writes.

    transformer.h.N.attn.qkv.lora_A (n r, I)      lora_B (rows of the n parts, r)      n of query, key, value
    transformer.h.N.attn.proj, mlp.fc_1, mlp.fc_2, mlp.proj, mlp.fc, lm_head   A (r, I), B (O, r)
    change of a layer                                                          lora_alpha / lora_r  *  B A

transformers has three layers for query, key and value, or one: with the parts under one another (Phi-3), or with three
in turn for each head (GPT-NeoX). In lora_B the rows of a part are in the order of its heads in every version of LitGPT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor

from rankwise.adapters.base_layers import features_of, is_host
from rankwise.adapters.formats.imported import Layers, Modules, Source, stacked
from rankwise.adapters.formats.loralib import grouped
from rankwise.adapters.formats.tensors import read_header, read_tensors
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.config.yaml import load_yaml, plain
from rankwise.errors import AdapterError, ConfigError

SETTINGS, MODEL = "hyperparameters.yaml", "model_config.yaml"
KEY = regex.compile(
    r"(?:transformer\.h\.\d+\.(?:attn\.(?:attn|qkv|proj)|mlp\.(?:experts\.\d+\.)?(?:fc|fc_1|fc_2|proj)|mlp\.gate)|lm_head)"
    r"\.lora_[AB]"
)
_PATH = regex.compile(r"transformer\.h\.(?P<block>\d+)\.(?P<name>.+)")
BLOCKS = ("model.layers", "gpt_neox.layers")
NAMES = {
    "attn.proj": ("self_attn.o_proj", "self_attn.dense", "attention.dense"),
    "mlp.fc": ("mlp.fc1", "mlp.dense_h_to_4h"),
    "mlp.fc_1": ("mlp.gate_proj",),
    "mlp.fc_2": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj", "mlp.fc2", "mlp.dense_4h_to_h"),
}
"""transformers' names in a block, of which a model has one."""
HEADS = ("lm_head", "embed_out")
PARTS = ("query", "key", "value")
LARGEST_SETTINGS = 1_000_000

Piece = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """LitGPT's own defaults, where hyperparameters.yaml is absent."""

    alpha: float = 16.0
    enabled: tuple[bool, bool, bool] = (True, False, True)
    dropout: float = 0.0
    recorded: bool = False


def read(source: Source, modules: Modules | None) -> AdapterWeights:
    settings = _settings(source.settings)
    layers = Layers(source, dropout=settings.dropout, base=base_of(source))
    if not settings.recorded:
        layers.remarks.append(
            f"There is no {SETTINGS} beside {source.tensors}, so LitGPT's defaults are assumed: lora_alpha 16, and "
            "factors for query and value"
        )
    read_header(source.tensors)
    for path, tensors in grouped(read_tensors(source.tensors), layers).items():
        if "A" not in tensors or "B" not in tensors:
            continue
        A, B = tensors["A"], tensors["B"]
        if A.ndim != 2 or B.ndim != 2 or not 0 < B.shape[1] <= A.shape[0]:
            layers.problems.append(
                f'"{path}" has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, which do not fit'
            )
        else:
            _add(path, (A, B), settings, modules, layers)
    if modules is not None:
        _join(modules, layers)
    return layers.over(modules)


def base_of(source: Source) -> str | None:
    """The hub's name of the model, from model_config.yaml."""
    hub = _mapping(source.tensors.parent / MODEL).get("hf_config")
    organisation, name = (hub.get("org"), hub.get("name")) if isinstance(hub, dict) else (None, None)
    return f"{organisation}/{name}" if isinstance(organisation, str) and isinstance(name, str) else None


def _mapping(file: Path) -> dict[str, Any]:
    """A file of settings; empty where there is none."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_SETTINGS:
        raise AdapterError(f"{file} has {file.stat().st_size:,} bytes, which is too large for settings.")
    try:
        value = plain(load_yaml(file.read_text(encoding="utf-8"), str(file)), {}, str(file))
    except (ConfigError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}


def _settings(file: Path | None) -> Settings:
    values = {} if file is None else _mapping(file)
    if file is None or "lora_alpha" not in values:
        return Settings()
    alpha, dropout = values["lora_alpha"], values.get("lora_dropout", 0.0)
    enabled = tuple(values.get(f"lora_{part}") for part in PARTS)
    problems = [f'lora_alpha is "{alpha}", and a positive number is needed'] if not _between(alpha, 0, 1e8) else []
    problems += [
        f'lora_{part} is "{one}", and true or false is needed'
        for part, one in zip(PARTS, enabled, strict=True)
        if not isinstance(one, bool)
    ]
    if problems:
        raise AdapterError(f"{file}: {'; '.join(problems)}.")
    dropout = float(dropout) if isinstance(dropout, float) and 0 <= dropout < 1 else 0.0
    return Settings(float(alpha), (enabled[0] is True, enabled[1] is True, enabled[2] is True), dropout, recorded=True)


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high


def _add(path: str, factors: Piece, settings: Settings, modules: Modules | None, layers: Layers) -> None:
    """One layer of LitGPT's under transformers' names; under LitGPT's own without a model."""
    match, scale = _PATH.fullmatch(path), settings.alpha / factors[1].shape[1]
    if modules is None:
        layers.factors[path] = Factors(*factors, scale)
    elif match is None:
        layers.factors[next((name for name in HEADS if name in modules), path)] = Factors(*factors, scale)
    elif match["name"] in ("attn.qkv", "attn.attn"):
        _add_attention(path, match["block"], factors, settings, modules, layers)
    else:
        candidates = [f"{block}.{match['block']}.{name}" for block in BLOCKS for name in NAMES.get(match["name"], ())]
        layers.factors[next((one for one in candidates if one in modules), path)] = Factors(*factors, scale)


def _add_attention(path: str, block: str, factors: Piece, settings: Settings, modules: Modules, layers: Layers) -> None:
    A, B = factors
    rank, count = B.shape[1], sum(settings.enabled)
    scale = settings.alpha / rank
    if not settings.recorded and A.shape[0] == len(PARTS) * rank:
        enabled, count = (True, True, True), len(PARTS)
    else:
        enabled = settings.enabled
    rows = _rows(block, modules)
    if rows is None:
        layers.factors[path] = Factors(A, B, scale)  # refused as a layer that the model does not have
        return
    counts = [size for size, one in zip(rows.sizes, enabled, strict=True) if one]
    if A.shape[0] != count * rank or B.shape[0] != sum(counts):
        layers.problems.append(
            f'"{path}" has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, but {count} of query, key and value '
            f"with {' and '.join(map(str, counts))} outputs were adapted by {SETTINGS}"
        )
        return
    pieces = dict(zip([part for part, one in zip(PARTS, enabled, strict=True) if one],
                      zip(A.split(rank), B.split(counts), strict=True), strict=True))  # fmt: skip
    if rows.fused is None:
        for part, piece in pieces.items():
            layers.factors[f"{rows.block}.self_attn.{part[0]}_proj"] = Factors(*piece, scale)
    else:
        placed = [(rows.of[PARTS.index(part)], *piece) for part, piece in pieces.items()]
        layers.factors[rows.fused] = Factors(*stacked(placed, sum(rows.sizes)), scale)


@dataclass(frozen=True)
class _Rows:
    """Where transformers has query, key and value of one block: in layers of their own, or in rows of a fused one."""

    block: str
    sizes: tuple[int, int, int]
    fused: str | None = None
    of: tuple[Tensor, ...] = ()


def _rows(block: str, modules: Modules) -> _Rows | None:
    for prefix in (f"{name}.{block}" for name in BLOCKS):
        own = [modules.get(f"{prefix}.self_attn.{part[0]}_proj") for part in PARTS]
        if all(module is not None and is_host(module) for module in own):
            query, key, value = (features_of(module)[1] for module in own if module is not None)
            return _Rows(prefix, (query, key, value))
        if (fused := modules.get(f"{prefix}.attention.query_key_value")) is not None:
            return _in_turn(prefix, features_of(fused)[1], getattr(modules[f"{prefix}.attention"], "head_size", 0))
        if (fused := modules.get(f"{prefix}.self_attn.qkv_proj")) is not None:
            return _under_one_another(prefix, features_of(fused)[1], modules[f"{prefix}.self_attn"])
    return None


def _in_turn(prefix: str, outputs: int, head: int) -> _Rows | None:
    """Query, key and value of the first head, then of the second: rows (heads, 3, head)."""
    if not head or outputs % (len(PARTS) * head):
        return None
    rows = torch.arange(outputs).view(-1, len(PARTS), head).unbind(1)
    size = outputs // len(PARTS)
    return _Rows(
        prefix, (size, size, size), f"{prefix}.attention.query_key_value", tuple(one.flatten() for one in rows)
    )


def _under_one_another(prefix: str, outputs: int, attention: Any) -> _Rows | None:
    head, groups = getattr(attention, "head_dim", 0), getattr(attention, "num_key_value_heads", 0)
    query = outputs - 2 * head * groups
    if not 0 < query < outputs:
        return None
    sizes = (query, head * groups, head * groups)
    return _Rows(prefix, sizes, f"{prefix}.self_attn.qkv_proj", torch.arange(outputs).split(sizes))


def _join(modules: Modules, layers: Layers) -> None:
    """Phi-3 has gate and up in one layer, one under the other, and LitGPT has two."""
    for path in [*layers.factors]:
        match = _PATH.fullmatch(path)
        if match is None or match["name"] not in ("mlp.fc_1", "mlp.fc_2"):
            continue
        fused = f"model.layers.{match['block']}.mlp.gate_up_proj"
        if (module := modules.get(fused)) is not None and is_host(module):
            layers.factors.setdefault(fused, _both(match["block"], features_of(module)[1], layers))
            layers.factors.pop(path, None)


def _both(block: str, outputs: int, layers: Layers) -> Factors:
    pieces = list(_pieces(block, outputs // 2, layers))
    return Factors(*stacked([(rows, part.A, part.B) for rows, part in pieces], outputs), pieces[0][1].scale)


def _pieces(block: str, half: int, layers: Layers) -> Iterator[tuple[slice, Factors]]:
    for at, name in enumerate(("mlp.fc_1", "mlp.fc_2")):
        if (part := layers.factors.get(f"transformer.h.{block}.{name}")) is not None:
            yield slice(at * half, (at + 1) * half), part
