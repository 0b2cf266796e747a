"""A model without its weights: modules on the meta device, and which tensor of its folder each parameter is read from.

transformers renames tensors while it loads them: prefixes that a folder lacks, names of older versions. Its own rules
give the name of each; a parameter that it assembles from several tensors has none, and cannot be changed in the files.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import rankwise.base.quiet as quiet
from rankwise.base.config_check import checked_config
from rankwise.base.kind import ModelKind, kind_for
from rankwise.base.sources import find
from rankwise.base.tensor_files import StoredTensor, read_header, weight_files
from rankwise.base.timm_models import need_timm
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, first_line, is_out_of_memory
from rankwise.runs.records import Callback
from rankwise.system.foreign_json import read_json


@dataclass(frozen=True)
class Skeleton:
    module: Any
    folder: Path
    files: Mapping[Path, Mapping[str, StoredTensor]]
    metadata: Mapping[Path, Mapping[str, str]]
    names: Mapping[str, str]
    """The parameter or buffer that each tensor of the files becomes; those that become none are not here."""
    assembled: frozenset[str]
    """Parameters that are made of several tensors."""

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By their name in the files."""
        return {name: tensor for tensors in self.files.values() for name, tensor in tensors.items()}

    @cached_property
    def keys(self) -> dict[str, str]:
        """The name in the files by that in the model."""
        return {ours: name for name, ours in self.names.items()}

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """For each parameter that several modules share, the names by which all of them know it."""
        groups: dict[int, list[str]] = {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        return {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}

    def mapped(self, names: Container[str] | None = None) -> dict[str, Tensor]:
        """These tensors of the files, or all, as views of the mapped files."""
        found: dict[str, Tensor] = {}
        for file, tensors in self.files.items():
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in tensors if names is None or name in names}
        return found

    def stored(self, name: str) -> StoredTensor | None:
        """What a parameter is read from: its own tensor, or that of one it is tied to."""
        key = next((self.keys[one] for one in (name, *self.tied.get(name, ())) if one in self.keys), None)
        return None if key is None else self.tensors[key]


def skeleton(folder: Path, kind: ModelKind) -> Skeleton:
    """Build the modules of a model without weights, from a folder that was inspected. No code that comes with a model
    is run."""
    module = built(folder, kind)
    files: dict[Path, Mapping[str, StoredTensor]] = {}
    metadata: dict[Path, Mapping[str, str]] = {}
    for file in weight_files(folder):
        files[file], metadata[file] = read_header(file)
    names, assembled = _names(module, [name for tensors in files.values() for name in tensors])
    return Skeleton(module, folder, files, metadata, names, assembled)


def built(folder: Path, kind: ModelKind) -> nn.Module:
    """The model of a folder's config.json, without memory for its weights; ModelError where it cannot be built."""
    import transformers

    quiet.hush()
    settings = read_json(folder / "config.json")
    kind = kind_for(kind, settings)
    need_timm(settings, str(folder))
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **kind.settings
        )
        with torch.device("meta"):
            module = getattr(transformers, kind.auto_class).from_config(config, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are architectures
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder} cannot be read as {kind.described}: {first_line(error)}") from None
    module.tie_weights()
    return module.eval()


def _names(module: Any, keys: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    own = module.state_dict()
    own |= dict(module.named_parameters(remove_duplicate=False))
    rules = get_model_conversion_mapping(module)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings: Any = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    names, assembled = {}, set()
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, module.base_model_prefix, own)
        if name not in own:
            continue
        if pattern is None:
            names[key] = name
        else:
            assembled.add(name)
    return names, frozenset(assembled)


def modules_without_weights(config: ModelConfig, callback: Callback) -> dict[str, nn.Module]:
    """By path. ModelError where transformers cannot build a model that generates text or classifies from it."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = find(config, callback).folder / "config.json"
    settings = checked_config(read_json(file), str(file))
    family = settings["model_type"]
    if family not in CONFIG_MAPPING:
        raise ModelError(f'{file}: model_type "{family}" is not known to transformers.')
    causal = family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    images = family in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    task = "CausalLM" if causal else "ImageClassification" if images else "SequenceClassification"
    model = built(file.parent, ModelKind(f"AutoModelFor{task}", f"a model of the class AutoModelFor{task}"))
    return {path: module for path, module in model.named_modules() if path}
