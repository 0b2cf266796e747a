"""The modules of a base model with the shapes of their weights and no memory for them, from its config.json alone.

Files of other tools name layers in their own way; these modules say which layers there are and how large.
"""

from __future__ import annotations

from torch import nn

from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError
from rankwise.models.kind import ModelKind
from rankwise.models.skeleton import built
from rankwise.models.sources import find
from rankwise.planning.config_check import checked_config
from rankwise.runs.records import Callback
from rankwise.system.foreign_json import read_json


def modules_without_weights(spec: ModelConfig, callback: Callback) -> dict[str, nn.Module]:
    """By path. ModelError where transformers cannot build a model that generates text or classifies from it."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = find(spec, callback).folder / "config.json"
    settings = checked_config(read_json(file), str(file))
    family = settings["model_type"]
    if family not in CONFIG_MAPPING:
        raise ModelError(f'{file}: model_type "{family}" is not known to transformers.')
    causal = family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    images = family in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    task = "CausalLM" if causal else "ImageClassification" if images else "SequenceClassification"
    model = built(file.parent, ModelKind(f"AutoModelFor{task}", f"a model of the class AutoModelFor{task}"))
    return {path: module for path, module in model.named_modules() if path}
