"""Stop 11: PEFT's two files, adapter_config.json and adapter_model.safetensors, written and read.

    base_model.model.<path>.lora_A.weight   (R, I)      base_model.model.<path>.lora_embedding_A   (R, V)
    base_model.model.<path>.lora_B.weight   (O, R)      base_model.model.<path>.lora_embedding_B   (O, R)
    base_model.model.<path>.lora_magnitude_vector   (O,)   of a DoRA

with the scale of a layer alpha / r, each of the two found through rank_pattern and alpha_pattern by the first key
that matches. Files of others are untrusted: an adapter may only bring factors for layers that exist and that its
config declares. Anything else (a base weight among the tensors, a missing half, a shape that does not fit, a value
that is not finite) is refused by name, all such problems at once, before the model is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import is_conv1d, is_conv2d, is_embedding, weight_of
from rankwise.adapters.dora import DoRA
from rankwise.adapters.peft_adalora import read_triplets
from rankwise.adapters.peft_config import PeftConfig, commonest, pattern_of, read_config, tidy
from rankwise.adapters.peft_factors import CONFIG, PREFIX, WEIGHTS, Factors, read_factors, refuse_turned_dora
from rankwise.adapters.set import AdapterSet
from rankwise.adapters.targets import Choice, host_view
from rankwise.errors import AdapterError, some
from rankwise.runs.integrity import check_folder
from rankwise.runs.records import silent
from rankwise.system.files import published, write_json


def write_peft(
    adapters: AdapterSet,
    folder: Path | str,
    *,
    base_model: str,
    name: str = "default",
    revision: str | None = None,
    task_type: str | None = None,
    beside: Mapping[str, Any] | None = None,
    fill: Callable[[Path], None] | None = None,
) -> None:
    """Write one adapter as `folder`, whole or not at all. Two writes of one adapter give the same bytes.

    However it was trained it is written as LoRA (DoRA as DoRA, which two factors cannot tell). Layers of rank 0 are
    left out, as they change nothing and PEFT refuses them. `beside` are values to lie in the same folder as JSON, by
    file name, and `fill` writes what else is to lie there. `task_type` is PEFT's; by default CAUSAL_LM for a model that
    generates.
    """
    adapters.check_decided(name)
    written = adapters.adapters(name)
    parts = {path: part for path, adapter in written.items() if (part := _written(adapter)).rank}
    hosts = {path: adapters.layers[path].host for path in parts}
    tensors: dict[str, Tensor] = {}
    for path, part in parts.items():
        for key, value in zip(_keys(path, hosts[path], part), _shaped(part, hosts[path]), strict=True):
            tensors[key] = value.contiguous()
    if spoiled := [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise AdapterError(f"{folder} is not written, because these contain NaN or infinity: {some(spoiled, 4)}.")
    given = {
        "base_model_name_or_path": base_model,
        "lora_dropout": max((adapter.dropout for adapter in written.values()), default=0.0),
        "revision": revision,
        "task_type": task_type or ("CAUSAL_LM" if hasattr(adapters.model, "prepare_inputs_for_generation") else None),
    }
    settings = dict(sorted((_config(adapters, parts) | given).items()))
    with published(Path(folder)) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / CONFIG, settings)
        for file, value in (beside or {}).items():
            write_json(temporary / file, value)
        if fill is not None:
            fill(temporary)


def _written(adapter: Adapter) -> Factors:
    """As it is written, on the CPU in float32."""
    if isinstance(adapter, DoRA):
        refuse_turned_dora("this adapter", adapter.share)
    A, B, *magnitude = (value.detach().to("cpu", torch.float32) for value in _values(adapter))
    return Factors(A, B, adapter.scale, *magnitude)


def _values(adapter: Adapter) -> tuple[Tensor, ...]:
    """All that is stored of an adapter, in the order of its keys."""
    return (*adapter.factors(), adapter.magnitude) if isinstance(adapter, DoRA) else adapter.factors()


def _shaped(factors: Factors, host: nn.Module) -> tuple[Tensor, ...]:
    """PEFT's convolutions hold their factors as filters."""
    if not is_conv2d(host):
        return factors.values
    return factors.A.view(factors.rank, *weight_of(host).shape[1:]), factors.B[:, :, None, None]


def read_peft(
    model: nn.Module, folder: Path | str, *, name: str = "default", into: AdapterSet | None = None
) -> AdapterSet:
    """Lay the adapter in `folder` over `model`, or over a model that has adapters already by `into`.

    PEFT's LoRA or AdaLoRA; either becomes plain LoRA. One that lies in a run must be what training wrote.
    """
    check_folder(Path(folder), silent)
    return lay_peft(model, folder, name=name, into=into)


def lay_peft(
    model: nn.Module, folder: Path | str, *, name: str = "default", into: AdapterSet | None = None
) -> AdapterSet:
    """The same without a look at the run that it lies in."""
    config = read_config(Path(folder) / CONFIG)
    file, modules = Path(folder) / WEIGHTS, host_view(model)
    if isinstance(config, PeftConfig):
        factors = read_factors(file, modules, config)
    else:
        factors = read_triplets(file, modules, config)
    adapters = into if into is not None else AdapterSet(model)
    try:
        choices = [Choice(path, factor.rank, factor.scale) for path, factor in factors.items()]
        adapters.place(choices, name, config.lora_dropout, dora=config.use_dora)
        with torch.no_grad():
            for path, adapter in adapters.adapters(name).items():
                for own, value in zip(_values(adapter), factors[path].values, strict=True):
                    own.copy_(value.view(own.shape))
    except BaseException:
        if into is None:
            adapters.eject()
        raise
    return adapters


def _keys(path: str, host: nn.Module, part: Factors) -> tuple[str, ...]:
    if is_embedding(host):
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    factors = (f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight")
    return factors if part.magnitude is None else (*factors, f"{PREFIX}{path}.lora_magnitude_vector")


def _config(adapters: AdapterSet, parts: dict[str, Factors]) -> dict[str, Any]:
    """`r` is the largest rank, since engines make room by it, and `lora_alpha` that of a layer which has it: lora_alpha
    / r, all that some engines read, is then the scale wherever all layers have one."""
    ranks = {path: adapter.rank for path, adapter in parts.items()}
    alphas = {path: tidy(adapter.scale * adapter.rank) for path, adapter in parts.items()}
    rank = max(ranks.values())
    alpha = commonest({path: alphas[path] for path in ranks if ranks[path] == rank})
    hosts = [adapters.layers[path].host for path in parts]
    return {
        "alpha_pattern": pattern_of({path: value for path, value in alphas.items() if value != alpha}),
        "bias": "none",
        "fan_in_fan_out": all(is_conv1d(host) for host in hosts),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern_of({path: value for path, value in ranks.items() if value != rank}),
        "target_modules": _target_names(list(parts), host_view(adapters.model)),
        "use_dora": any(part.magnitude is not None for part in parts.values()),
        "use_rslora": False,
    }


def _target_names(paths: list[str], modules: dict[str, nn.Module]) -> list[str]:
    """Last names where they select exactly these layers, whole paths elsewhere."""
    leaves = {path.rpartition(".")[2] for path in paths}
    selected = [path for path in modules if path.rpartition(".")[2] in leaves]
    return sorted(leaves if set(selected) == set(paths) else paths)
