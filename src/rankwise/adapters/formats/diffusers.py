"""Files in the manner of diffusers and kohya: one safetensors file, and no settings beside it.

    kohya       lora_te_model_layers_0_self_attn_q_proj.lora_down.weight, .lora_up.weight, .alpha
    diffusers   text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight, .lora_B.weight, (.alpha)
    change of a layer      alpha / r  *  up down

kohya writes underscores for the dots of a path. A layer without an alpha has the scale 1 in both. diffusers may write
PEFT's settings of a LoRA into the header's metadata as `lora_adapter_metadata`; then rank, alpha and patterns are
PEFT's, and an alpha beside them is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import regex
from torch import Tensor

from rankwise.adapters.formats.imported import Layers, Modules, Source
from rankwise.adapters.formats.peft_config import PeftConfig, check_config
from rankwise.adapters.formats.tensors import read_header, read_tensors
from rankwise.adapters.weights import AdapterWeights, Factors
from rankwise.errors import AdapterError

KEY = regex.compile(
    r"(?P<path>.+?)\.(?:(?P<A>(?:lora_linear_layer|lora)\.down\.weight|lora_down\.weight|lora_A(?:\.default)?\.weight)"
    r"|(?P<B>(?:lora_linear_layer|lora)\.up\.weight|lora_up\.weight|lora_B(?:\.default)?\.weight)"
    r"|(?P<m>lora_magnitude_vector(?:\.default)?(?:\.weight)?)|(?P<alpha>alpha))"
)
ADAPTER = "lora_adapter_metadata"
COMPONENTS = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "transformer_2",
    "unet",
    "diffusion_model",
)
UNDERSCORED = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_", "lora_")
FOREIGN = {
    "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "a LoRA in three factors", "dora_scale": "kohya's DoRA",
    "oft_": "OFT", "boft_": "BOFT", "glora": "GLoRA", ".diff": "whole differences of weights",
}  # fmt: skip
"""Parts of names that belong to other methods."""
LARGEST_METADATA, LARGEST_ALPHA = 1_000_000, 1e8


def read(source: Source, modules: Modules | None) -> AdapterWeights:
    metadata, layers = read_header(source.tensors).metadata, Layers(source)
    parts = _grouped(read_tensors(source.tensors), layers)
    layers.refuse()
    configs = _configs(metadata.get(ADAPTER), source)
    names, without = _names(parts, modules, layers), 0
    for path, tensors in parts.items():
        scale = _scale(path, tensors, configs, layers)
        without += scale is None
        if scale != 0:
            layers.factors[names[path]] = Factors(tensors["A"], tensors["B"], scale or 1.0, tensors.get("m"))
    if without:
        layers.remarks.append(
            f"{without:,} layers of {source.tensors} have no alpha; they are read at scale 1, as diffusers and kohya's "
            "scripts read them"
        )
    return layers.over(modules)


def _grouped(tensors: Mapping[str, Tensor], layers: Layers) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by part, with every layer whole."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        part = None if match is None else next(part for part in ("A", "B", "m", "alpha") if match[part])
        if match is None or part is None:
            method = next((method for mark, method in FOREIGN.items() if mark in name), None)
            why = "is no factor of a LoRA" if method is None else f"belongs to {method}, which is not supported"
            layers.problems.append(f'"{name}" {why}')
        elif part in parts.setdefault(match["path"], {}):
            layers.problems.append(f'"{name}" is a second tensor for the same part of a layer')
        else:
            parts[match["path"]][part] = tensor
    for path, known in parts.items():
        layers.problems += [f'"{path}" has no {name}' for part, name in (("A", "lora_down"), ("B", "lora_up"))
                            if part not in known]  # fmt: skip
        if not layers.problems and (known["A"].ndim not in (2, 4) or known["A"].ndim != known["B"].ndim):
            shapes = f"{tuple(known['A'].shape)} and {tuple(known['B'].shape)}"
            layers.problems.append(f'"{path}" has factors of shape {shapes}, which do not fit')
    return parts


def _names(parts: Mapping[str, Any], modules: Modules | None, layers: Layers) -> dict[str, str]:
    """The model's path of each layer in the file, or the file's own name where the model has none that fits."""
    if modules is None:
        return {path: path for path in parts}
    underscored: dict[str, list[str]] = {}
    for module in modules:
        underscored.setdefault(module.replace(".", "_"), []).append(module)
    names: dict[str, str] = {}
    for path in parts:
        fitting = _fitting(path, modules, underscored)
        if len(fitting) > 1:
            layers.problems.append(f'"{path}" could be {" or ".join(fitting)}')
        names[path] = fitting[0] if fitting else path
    paths = [*names.values()]
    layers.problems += (
        [f'"{path}" is a second name of the layer {name}' for path, name in names.items() if paths.count(name) > 1]
        if len(set(paths)) < len(paths)
        else []
    )
    return names


def _fitting(path: str, modules: Modules, underscored: Mapping[str, list[str]]) -> list[str]:
    """Paths that the name may mean. Text encoders of transformers 4 have a part text_model around all layers, which
    transformers 5 leaves out."""
    component, _, inner = path.partition(".")
    named = [path, *([inner, inner.removeprefix("text_model.")] if component in COMPONENTS else [])]
    if exact := next((name for name in named if name in modules), None):
        return [exact]
    stems = [path.removeprefix(prefix) for prefix in UNDERSCORED if path.startswith(prefix)]
    stems += [stem.removeprefix("text_model_") for stem in stems]
    return next((underscored[stem] for stem in stems if stem in underscored), [])


def _configs(text: str | None, source: Source) -> dict[str, PeftConfig]:
    """PEFT's settings by component, "" for a file of one model."""
    if text is None:
        return {}
    try:
        values = json.loads(text) if len(text) <= LARGEST_METADATA else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise AdapterError(f"{source.tensors}: {ADAPTER} in its metadata is not a set of settings in JSON.")
    settings: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        component, _, name = key.partition(".")
        owner, setting = (component, name) if component in COMPONENTS and name else ("", key)
        settings.setdefault(owner, {})[setting] = value
    where = source.tensors.with_name(f"{source.tensors.name} ({ADAPTER})")
    return {owner: check_config({**own, "peft_type": "LORA"}, where) for owner, own in settings.items()}


def _scale(path: str, tensors: Mapping[str, Tensor], configs: Mapping[str, PeftConfig], layers: Layers) -> float | None:
    """None where nothing says it, and 0 where it is wrong."""
    alpha, rank = tensors.get("alpha"), tensors["A"].shape[0]
    component, _, inner = path.partition(".")
    config = configs.get(component, configs.get(""))
    if config is not None:
        own = inner if component in configs else path
        declared, problems = config.ranks_of([own])
        if alpha is not None:
            problems.append(f'"{path}" has an alpha, and {ADAPTER} has one too')
        if declared.get(own) != rank:
            problems.append(f'"{path}" has rank {rank}, but {ADAPTER} says {declared.get(own)}')
        layers.problems += problems
        return 0.0 if problems else config.scales_of([own])[own]
    if alpha is None:
        return None
    value = float(alpha) if alpha.numel() == 1 else 0.0
    if not 0 < value <= LARGEST_ALPHA or not rank:
        layers.problems.append(f'"{path}" has an alpha of {value:g} and rank {rank}; a positive alpha is needed')
        return 0.0
    return value / rank
