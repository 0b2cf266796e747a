"""PEFT's two files, adapter_config.json and adapter_model.safetensors, for an adapter that lies on a model.

    AdapterSet  --weights_of-->  AdapterWeights  --write_weights-->  folder       write_peft
    folder  --read_weights-->  AdapterWeights  --lay-->  AdapterSet               read_peft

Every method is written as LoRA, whose scale in a layer is alpha / r; each of the two is found through rank_pattern and
alpha_pattern by the first key that matches. DoRA is written as DoRA, which two factors cannot express. Files of others
are untrusted: `peft_reader` checks all of a file before the model is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.base_layers import is_conv2d, is_embedding, weight_of
from rankwise.adapters.formats.dialects import read_adapter
from rankwise.adapters.formats.peft_config import settings_after, settings_of
from rankwise.adapters.formats.peft_reader import CONFIG, PREFIX, TOKENS, WEIGHTS, joined_experts, read_weights
from rankwise.adapters.lora import DoRA
from rankwise.adapters.set import AdapterSet, check_decided, discard
from rankwise.adapters.targets import Choice, host_view
from rankwise.adapters.weights import AdapterWeights, Factors, TokenValues, check_same, refuse_scaled_dora, reported
from rankwise.config.experts import stored_names
from rankwise.errors import AdapterError, some
from rankwise.runs.integrity import check_folder
from rankwise.runs.records import Callback, silent
from rankwise.system.files import published, write_json

Fill = Callable[[Path], None]
Stored = tuple[Mapping[str, Any], dict[str, Tensor]]
"""The settings and the tensors of PEFT's two files."""
OF_CLASSIFIERS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
"""PEFT's type of task, by how the name of the model's class ends."""


def write_peft(
    adapters: AdapterSet, folder: Path | str, *, base_model: str, name: str = "default", revision: str | None = None,
    task_type: str | None = None, extra_files: Mapping[str, Any] | None = None, fill: Fill | None = None,
) -> None:  # fmt: skip
    """Write one adapter to `folder` in PEFT's format, completely or not at all. Writing the same adapter twice gives
    the same bytes.

    Heads trained in full are written with it. `extra_files` are values for JSON files in the same folder, by file
    name, and `fill` writes anything else. `task_type` is PEFT's, by default the one for the model's class.
    """
    task_type = task_type or task_type_of(adapters.model)
    with new_adapter(
        stored_lora(weights_of(adapters, name)), Path(folder), base_model_name_or_path=base_model, revision=revision,
        task_type=task_type,
    ) as temporary:  # fmt: skip
        _write_beside(temporary, extra_files or {}, fill)


@contextmanager
def new_adapter(stored: Stored, folder: Path, **settings: str | None) -> Iterator[Path]:
    """A temporary folder with PEFT's two files, which takes the name `folder` when the block ends. `settings` are added
    to those that are stored."""
    own, tensors = stored
    if spoiled := [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise AdapterError(
            f"{folder} was not written, because these tensors contain NaN or infinity: {some(spoiled, 4)}."
        )
    with published(folder) as temporary:
        _write(temporary, dict(sorted({**own, **settings}.items())), tensors)
        yield temporary


def task_type_of(model: nn.Module) -> str | None:
    """As PEFT names it: a model that classifies texts or their tokens, or one that generates, with an encoder or
    without."""
    name = type(model).__name__
    for ending, task_type in OF_CLASSIFIERS.items():
        if name.endswith(ending):
            return task_type
    if not hasattr(model, "prepare_inputs_for_generation"):
        return None
    config: Any = model.config
    return "SEQ_2_SEQ_LM" if getattr(config, "is_encoder_decoder", False) else "CAUSAL_LM"


def rewrite(weights: AdapterWeights, folder: Path, extra_files: Mapping[str, Any], fill: Fill | None = None) -> None:
    """Write a LoRA whose model is not loaded, whole or not at all, and read it back before it takes its name."""
    assert weights.settings["peft_type"] == "LORA", "as_lora first"
    with published(folder) as temporary:
        _write(temporary, *stored_lora(weights))
        _write_beside(temporary, extra_files, fill)
        check_same(read_weights(temporary), weights, folder)


def as_lora(weights: AdapterWeights, *, empty: bool = False) -> AdapterWeights:
    """Another method of PEFT's as a plain LoRA with the same change; a LoRA is returned as it is.

    AdaLoRA's singular values are in B already. The scale, alpha / (init_r + 1e-5), goes into B as well, so that alpha
    is the rank in each layer. Layers without a rank are left out, or stay with `empty`, for formats that fill them with
    zeros.
    """
    if weights.settings["peft_type"] == "LORA":
        return weights
    factors = {path: part.padded(part.rank) for path, part in weights.factors.items() if part.rank or empty}
    return replace(weights, settings=settings_after(weights.settings, factors), factors=factors)


def _write(folder: Path, settings: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, settings)


def _write_beside(folder: Path, extra_files: Mapping[str, Any], fill: Fill | None) -> None:
    for file, value in extra_files.items():
        write_json(folder / file, value)
    if fill is not None:
        fill(folder)


def stored_lora(weights: AdapterWeights) -> Stored:
    tensors = {PREFIX + name: value for name, value in weights.heads.items()}
    tensors |= {f"{PREFIX}{path}.{TOKENS}": rows.values for path, rows in weights.tokens.items()}
    experts = stored_names([path for path, part in weights.factors.items() if part.experts])
    for path, part in weights.factors.items():
        names = ("lora_embedding_A", "lora_embedding_B") if part.embedding else ("lora_A.weight", "lora_B.weight")
        stored = f"{PREFIX}{experts.get(path, path)}"
        keys = [f"{stored}.{name}" for name in (*names, "lora_magnitude_vector")[: len(part.values)]]
        tensors |= zip(keys, joined_experts(part.A, part.B) if part.experts else part.values, strict=True)
    return weights.settings, {key: value.contiguous() for key, value in tensors.items()}


def weights_of(adapters: AdapterSet, name: str) -> AdapterWeights:
    """Copy the numbers of an adapter and its heads to the CPU, in float32. Layers of rank 0 are left out, as they
    change nothing and PEFT refuses them."""
    check_decided(adapters, name)
    trained, heads = adapters.adapters(name), adapters.trained_heads(name)
    layers = {path: layer.base_layer for path, layer in adapters.layers.items() if path in trained}
    factors = {path: part for path, adapter in trained.items() if (part := _factors(adapter, layers[path])).rank}
    dropout = max((adapter.dropout for adapter in trained.values()), default=0.0)
    settings = settings_of(factors, {path: layers[path] for path in factors}, host_view(adapters.model))
    whole = {f"{path}.{key}": value.detach().to("cpu", torch.float32)
             for path, module in heads.items() for key, value in module.state_dict().items()}  # fmt: skip
    tokens = {path: TokenValues(rows.ids, rows.of(name).detach().to("cpu", torch.float32))
              for path, rows in adapters.token_rows(name).items()}  # fmt: skip
    indices = {path: list(rows.ids) for path, rows in tokens.items()}
    settings |= {"lora_dropout": dropout, "modules_to_save": sorted(heads) or None}
    settings |= {"trainable_token_indices": indices} if indices else {}
    return AdapterWeights(settings, factors, whole, tokens)


def _factors(adapter: Adapter, base_layer: nn.Module) -> Factors:
    """PEFT's convolutions hold their factors as filters."""
    if isinstance(adapter, DoRA):
        refuse_scaled_dora("this adapter", adapter.share)
    A, B, *magnitude = (value.detach().to("cpu", torch.float32) for value in factors_of(adapter))
    if is_conv2d(base_layer):
        A, B = A.view(len(A), *weight_of(base_layer).shape[1:]), B[:, :, None, None]
    return Factors(A, B, adapter.scale, *magnitude, embedding=is_embedding(base_layer))


def factors_of(adapter: Adapter) -> tuple[Tensor, ...]:
    """All stored tensors of an adapter, in the order of its keys."""
    return (*adapter.factors(), adapter.magnitude) if isinstance(adapter, DoRA) else adapter.factors()


def read_peft(
    model: nn.Module, folder: Path | str, *, name: str = "default", into: AdapterSet | None = None,
    callback: Callback = silent,
) -> AdapterSet:  # fmt: skip
    """Load the adapter in `folder`, in any supported format, onto `model`, or with `into` onto a model that already
    has adapters. PEFT's LoRA and AdaLoRA both become plain LoRA. If the folder belongs to a run, it must be what
    training wrote."""
    check_folder(Path(folder), silent)
    return lay_peft(model, folder, name=name, into=into, callback=callback)


def lay_peft(
    model: nn.Module, folder: Path | str, *, name: str = "default", into: AdapterSet | None = None,
    callback: Callback = silent,
) -> AdapterSet:  # fmt: skip
    """Do the same without a look at the run that the folder lies in."""
    weights = reported(read_adapter(Path(folder), host_view(model)), callback)
    return lay(model, weights, name=name, into=into)


def lay(
    model: nn.Module, weights: AdapterWeights, *, name: str = "default", into: AdapterSet | None = None
) -> AdapterSet:
    """Lay the factors over a model that has the layers, and the heads in the place of its own."""
    adapters = into if into is not None else AdapterSet(model)
    is_there = name in adapters.names
    try:
        names, paths = weights.settings.get("modules_to_save") or [], host_view(model)
        # PEFT names every head that a classifier might have; those with parameters are the model's
        adapters.add_heads([head for head in names if any(f".{path}".endswith(f".{head}") for path in paths)], name)
        adapters.add_token_rows({path: rows.ids for path, rows in weights.tokens.items()}, name)
        choices = [Choice(path, part.rank, part.scale) for path, part in weights.ranked.items()]
        adapters.attach(choices, name, float(weights.settings.get("lora_dropout", 0.0)), dora=weights.is_dora)
        copy_into(adapters, weights, name)
    except BaseException:
        if into is None:
            adapters.remove()
        elif not is_there:
            discard(adapters, name)
        raise
    return adapters


@torch.no_grad()
def copy_into(adapters: AdapterSet, weights: AdapterWeights, name: str = "default") -> None:
    """Copy the numbers into an adapter that has these layers, heads and rows of tokens."""
    for path, adapter in adapters.adapters(name).items():
        for own, value in zip(factors_of(adapter), weights.factors[path].values, strict=True):
            own.copy_(value.view(own.shape))
    for path, head in adapters.trained_heads(name).items():
        for own, parameter in head.state_dict().items():
            parameter.copy_(weights.heads[f"{path}.{own}"])
    for path, rows in weights.tokens.items():
        adapters.token_rows(name)[path].of(name).copy_(rows.values)
