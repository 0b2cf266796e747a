"""No setting changes what transformers builds without changing what is planned: each is turned, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from planning_models import MADE_BY, SMALL, written_config
from rankwise.errors import ModelError
from rankwise.planning.architectures.known import FAMILIES, shape_of_config

NOT_TURNED = {"model_type", "architectures", "transformers_version", "dtype", "rope_parameters"}
READ_WITHOUT_BEING_DECLARED = {
    "head_dim": 10, "embedding_size": 12, "conv_kernel_size": 3, "conv_groups": 2, "share_att_key": True,
    "norm_rel_ebd": "layer_norm", "position_buckets": 7, "attention_head_size": 6, "is_gated_act": True,
    "num_labels": 5, "pooler_hidden_size": 20, "hidden_size": 48, "num_hidden_layers": 1, "tie_word_embeddings": False,
    "n_ctx": 77, "pruned_heads": {"0": [1]}, "use_cache": False,
}  # fmt: skip
"""Settings that the code of some family asks for by name, or that older config.json have."""


def turned(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 2]
    if isinstance(value, str):
        return ["layer_norm", "gated-gelu", "relu"]
    return [True, 8, "gelu"] if value is None else []


def changed(config: dict[str, Any]) -> list[dict[str, Any]]:
    own = [config | {key: other} for key, value in config.items() if key not in NOT_TURNED for other in turned(value)]
    return own + [config | {key: value} for key, value in READ_WITHOUT_BEING_DECLARED.items()]


def built(config: dict[str, Any]) -> int | None:
    """Parameters of the model that transformers makes, or None where it makes none."""
    kind = CONFIG_MAPPING[config["model_type"]]
    try:
        with torch.device("meta"):
            model = MADE_BY[FAMILIES[config["model_type"]].made_by].from_config(kind.from_dict(dict(config)))
    except Exception:  # whatever its checks raise
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def planned(config: dict[str, Any]) -> int | None:
    try:
        return shape_of_config(config, "", "config.json").parameters
    except ModelError:
        return None


@pytest.mark.parametrize("name", SMALL)
def test_no_setting_changes_the_model_unseen(name: str) -> None:
    wrong, agreeing = {}, 0
    for config in changed(written_config(*SMALL[name])):
        here, there = planned(config), built(config)
        if None not in (here, there):
            agreeing += here == there
            if here != there:
                wrong[str(config)] = (here, there)
    assert not wrong
    assert agreeing > 10
