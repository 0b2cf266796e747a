"""The list of models: the size of each is the one that was published, and transformers builds the same."""

from __future__ import annotations

import pytest

from kit.planning_models import on_meta, shape_of
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.forward.model_shape import shape_of_config
from rankwise.methods.inject import inject
from rankwise.planning.parameters import parameters_of
from rankwise.planning.reading import catalogue, catalogue_model, catalogue_names
from rankwise.planning.shape import shape_from_json, shape_to_json

PUBLISHED = {
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800, "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384, "smollm3-3b": 3_075_098_624, "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360, "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264, "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896, "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952, "stablelm-3b": 2_795_443_200, "stablelm-2-1.6b": 1_644_515_328,
    "phi-3-mini": 3_821_079_552, "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632, "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320, "gpt2": 124_439_808, "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "gpt-j-6b": 6_050_882_784, "opt-125m": 125_239_296,
    "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800, "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280, "bert-base-uncased": 109_482_240, "bert-base-cased": 108_310_272,
    "bert-large-uncased": 335_141_888, "roberta-base": 124_645_632, "roberta-large": 355_359_744,
    "xlm-roberta-base": 278_043_648, "xlm-roberta-large": 559_890_432, "t5-small": 60_506_624, "t5-base": 222_903_552,
    "t5-large": 737_668_096, "t5-3b": 2_851_598_336, "t5-11b": 11_307_321_344, "bart-base": 139_420_416,
    "bart-large": 406_291_456, "vit-base-patch16-224": 86_389_248, "dinov2-small": 22_056_576,
    "dinov2-base": 86_580_480, "dinov2-large": 304_368_640, "dinov2-giant": 1_136_480_768,
    "deberta-v3-xsmall": 70_682_112, "deberta-v3-small": 141_304_320, "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160, "efficientnet-lite0": 3_371_008, "qwen-0.5b": 494_032_768 + 151_936 * 896,
}  # fmt: skip
"""As the weights on the hub add up, without the heads of tasks, and with a tied head once; the starter qwen-0.5b is
from a GGUF file, which stores its head apart."""
BUILT = (
    "smollm2-135m", "gemma-3-1b", "stablelm-2-1.6b", "dolly-v2-3b", "gpt-j-6b", "opt-350m", "deberta-v2-xxlarge",
    "flan-t5-base", "bart-large", "dinov2-giant", "phi-3-mini",
)  # fmt: skip


def test_models_of_the_list_have_as_many_parameters_as_were_published() -> None:
    assert {name: shape_of(name).parameters for name in PUBLISHED} == PUBLISHED


def test_every_name_of_the_list_has_a_shape() -> None:
    shapes = {name: shape_of(name) for name in catalogue()}
    assert {name: shape.name for name, shape in shapes.items()} == {name: name for name in shapes}
    assert [name for name, shape in shapes.items() if not all(blocks.count for blocks in shape.stacks)] == []


@pytest.mark.parametrize("name", BUILT)
def test_transformers_builds_what_the_list_says(name: str) -> None:
    model = on_meta(dict(catalogue()[name].config))
    assert sum(parameter.numel() for parameter in model.parameters()) == shape_of(name).parameters
    for spec in (LoraConfig(rank=1), AdaLoraConfig(budget="1")):
        adapters = inject(model, spec)
        try:
            counted = parameters_of(shape_of(name), spec)
            assert counted.trainable == sum(one.numel() for one in adapters.parameters())
            assert [planned.layer.path for planned in counted.adapted] == list(adapters.layers)
        finally:
            adapters.remove()


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "roberta-base", "t5-small"])
def test_the_catalogue_holds_the_shape_that_is_built_now(name: str) -> None:
    """Where this fails after an update of transformers, `python lab/make_catalogue.py` makes it anew."""
    stored = catalogue()[name]
    fresh = shape_of_config(dict(stored.config), name, name)
    assert shape_from_json(shape_to_json(fresh), name) == stored.shape


def test_a_name_of_the_hub_needs_no_network_and_no_care_for_capitals() -> None:
    assert shape_of("meta-llama/Llama-2-7b-hf") == shape_of("llama-2-7b")
    assert catalogue_model("huggingfacetb/smollm2-135m-instruct") is catalogue()["smollm2-135m"]
    assert catalogue_model("nobody/smollm2-135m") is None


def test_no_name_is_two_models() -> None:
    names = [name.lower() for model in catalogue().values() for name in (model.name, *model.hub)]
    assert len(names) == len(set(names)) == len(catalogue_names())
