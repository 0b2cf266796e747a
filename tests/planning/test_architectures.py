"""Whatever transformers can build is counted to the last parameter, also what our source never names.

One of each kind: layers that are several in one, experts of three kinds, blocks without attention, two kinds of blocks
in one model, encoders, two towers, and an encoder with a decoder. Each is built at the size of its own default config
on the meta device, with five blocks (enough for both kinds of a model that mixes two), counted apart from the plan, and
adapted as a training would adapt it. Whole models are counted in test_catalogue.py, and the families that the source
names in test_parameters.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

import rankwise
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.inject import inject
from rankwise.planning.parameters import parameters_of
from rankwise.planning.shape import shape_from_json, shape_to_json

CAUSAL = ("mpt", "bloom", "glm", "codegen", "xglm", "mixtral", "gpt_oss", "deepseek_v3", "lfm2", "mamba")
TEXT_ENCODERS = ("distilbert", "modernbert")
OTHERS = ("clip", "whisper")
AUTO = dict.fromkeys(CAUSAL, AutoModelForCausalLM) | dict.fromkeys((*TEXT_ENCODERS, *OTHERS), AutoModel)
BLOCKS = 5
WITHOUT_FORWARD = (*OTHERS, "mixtral", "gpt_oss", "deepseek_v3")
"""Of these the parameters are planned alone."""


SHORT = {"mamba": {"max_position_embeddings": 12}}
"""A pass is made at lengths within the positions, and goes through Mamba's tokens one by one."""


def built(family: str) -> tuple[dict[str, Any], nn.Module]:
    blocks = {"num_hidden_layers": BLOCKS} if family in (*CAUSAL, *TEXT_ENCODERS) else {}
    config = CONFIG_MAPPING[family](**blocks, **SHORT.get(family, {}))
    with torch.device("meta"):
        return config.to_dict(), AUTO[family].from_config(config)


@pytest.mark.parametrize("family", AUTO)
def test_an_architecture_is_counted_as_it_is_built_and_adapted(family: str) -> None:
    config, model = built(family)
    shape = shape_of_config(config, family, "config.json")
    assert shape.parameters == sum({id(weight): weight.numel() for weight in model.parameters()}.values())
    assert shape_from_json(shape_to_json(shape), family).layers == shape.layers
    assert bool(shape.stacks[-1].saved) == (family not in WITHOUT_FORWARD)
    for spec in (LoraConfig(rank=3), AdaLoraConfig(budget="3")):
        counted, adapters = parameters_of(shape, spec), inject(model, spec)
        try:
            assert counted.trainable == sum(one.numel() for one in adapters.parameters())
            assert [one.layer.path for one in counted.adapted] == list(adapters.layers)
        finally:
            adapters.remove()


def test_many_of_them_are_named_nowhere_in_our_source() -> None:
    source = "".join(
        path.read_text().lower()
        for path in Path(rankwise.__file__).parent.rglob("*")
        if path.suffix in (".py", ".json")
    )
    assert len([family for family in AUTO if family not in source]) >= 8
