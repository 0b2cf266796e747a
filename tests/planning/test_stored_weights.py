"""What a plan says of weights in fewer bits, held against models that are really loaded, and against the formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kit.planning_models import SMALL, shape_of, written_config
from rankwise.base.gguf.header import USABLE, GgufHeader, matrix_bytes
from rankwise.base.kind import CAUSAL_LM
from rankwise.base.packed import BLOCK, OUTER
from rankwise.base.quantized_folder import quantized_folder
from rankwise.config.adapters import LoraConfig
from rankwise.config.experiment import Planned
from rankwise.forward.model_shape import shape_of_config
from rankwise.kernels.quantized import gguf as gguf_blocks
from rankwise.kernels.quantized import nf4
from rankwise.kernels.quantized.formats import FORMATS, multiply_in_int8
from rankwise.kernels.quantized.tensor import QuantizedTensor, stored_bytes
from rankwise.planning.batches import AtOnce
from rankwise.planning.devices import find_device, this_processor
from rankwise.planning.forecast import forecast
from rankwise.planning.shape import ModelShape
from rankwise.planning.stored_weights import (
    conversion_of,
    copied_bytes,
    multiplied_layers,
    packed_bytes,
    packed_layers,
    rest_bytes,
    storage_of,
    unpacked_numbers,
    unpacking_bytes,
    unpacking_rate,
)
from rankwise.planning.time import Probe, Speed, Step, duration, speed_of
from rankwise.runs.records import silent

STARTER = shape_of("smollm2-135m")
HERE = replace(this_processor(), memory=int(20e9), flags=frozenset())
WIDE = {"llama": {"hidden_size": 64, "intermediate_size": 192}, "gpt2": {"n_embd": 64, "n_positions": 36}}


def made(folder: Path, name: str) -> ModelShape:
    """A folder of random weights, and its shape."""
    family, settings = SMALL[name]
    config = written_config(family, settings | WIDE.get(name, {}))
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family].from_dict(config))
    model.save_pretrained(folder)
    return shape_of_config(config, name, "config.json")


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_plan_counts_the_bytes_of_a_loaded_model(tmp_path, name, quantize):
    shape = made(tmp_path, name)
    state = quantized_folder(tmp_path, CAUSAL_LM, quantize, silent).state
    assert sum(map(stored_bytes, state.values())) == packed_bytes(shape, quantize) + rest_bytes(shape, quantize, 4)
    assert packed_layers(shape, quantize), "else it proves nothing"


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_plan_counts_the_copy_for_products_in_int8(tmp_path, quantize):
    shape = made(tmp_path, "llama")
    state = quantized_folder(tmp_path, CAUSAL_LM, quantize, silent).state
    for weight in state.values():
        if isinstance(weight, QuantizedTensor):
            multiply_in_int8(weight, ())
    held = sum(map(stored_bytes, state.values()))
    assert held == packed_bytes(shape, quantize, int8=True) + rest_bytes(shape, quantize, 4)


def test_products_in_int8_are_planned_where_a_training_computes_them():
    copy = copied_bytes(STARTER, "nf4")
    faster = replace(HERE, flags=frozenset({"avx512_vnni"}), memory=int(4 * copy), reserved=0)
    for device, quantize, products, taken in (
        (faster, "nf4", "auto", True), (faster, "nf4", "bfloat16", False), (faster, "none", "auto", False),
        (replace(faster, memory=int(4 * copy) - 4), "nf4", "auto", False), (HERE, "int8", "auto", False),
        (replace(faster, memory=1), "int8", "auto", True), (replace(faster, memory=1), "nf4", "int8", True),
    ):  # fmt: skip
        model = {"name": "m", "dtype": "bfloat16", "quantize": quantize}
        config = Planned.model_validate({"model": model, "training": {"matmul": products}})
        planned = forecast(config, STARTER, device, AtOnce(1024, 500, 256), LoraConfig())
        assert planned.int8 == taken and (planned.unpacked == 0) == (taken or quantize == "none")
        assert planned.memory["weights"] == packed_bytes(STARTER, planned.storage, int8=taken) + rest_bytes(
            STARTER, planned.storage, 2
        )


def test_of_a_file_with_products_in_int8_the_head_alone_is_unpacked():
    shape = replace(STARTER, file_bytes=90_000_000)
    head = shape.vocabulary * shape.blocks.width
    assert unpacked_numbers(shape, "file", lowest=0, recomputed=0, int8=True) == 2 * head
    assert unpacking_bytes(shape, "file", 2, given_back=False, int8=True) == 2 * head
    linear = sum(one.inputs * one.outputs for one in multiplied_layers(shape, "file"))
    kept = packed_bytes(shape, "file", int8=True) - copied_bytes(shape, "file")
    assert kept == pytest.approx(90e6 * head / (head + linear))


def test_sizes_of_blocks_are_those_of_the_formats():
    assert (BLOCK, OUTER) == (nf4.BLOCK, nf4.OUTER)


def test_a_file_is_used_as_it_lies_exactly_where_there_are_kernels_for_its_types():
    assert {*gguf_blocks.FORMATS, "F32"} == USABLE


def test_a_gguf_file_takes_what_its_tensors_do_or_is_converted():
    header = GgufHeader(
        tensors={"a": (64, 3), "b": (64,), "c": (256, 2), "d": (7, 5)}, types={"a": 3, "b": 0, "c": 14, "d": 0}
    )
    assert matrix_bytes(header) == 6 * 20 + 2 * 210 + 35 * 4
    header.types["c"] = GGMLQuantizationType.Q2_K
    assert matrix_bytes(header) == 0


def test_what_is_stored_how():
    of_file = replace(STARTER, file_bytes=90_000_000)
    for quantize, shape, given_back, expected in (
        ("auto", STARTER, False, "none"), ("nf4", STARTER, True, "nf4"), ("int8", of_file, False, "int8"),
        ("auto", of_file, False, "file"), ("none", of_file, False, "none"), ("none", of_file, True, "mapped"),
    ):  # fmt: skip
        assert storage_of(quantize, shape, given_back=given_back) == expected


def of(storage, spec=None, given_back=False, **training):
    config = Planned.model_validate({"model": {"name": "m", "dtype": "bfloat16"}, "training": training})
    config = config.model_copy(update={"adapter": spec or LoraConfig()})
    made = forecast(config, STARTER, HERE, AtOnce(1024, 500, 256))
    return replace(made, storage=storage, given_back=given_back)


def test_fewer_bits_take_less_and_weights_that_are_given_back_least():
    peaks = [of("none").peak, of("int8").peak, of("nf4").peak, of("nf4", given_back=True).peak]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    head = 2 * (STARTER.parameters - sum(one.inputs * one.outputs for one in packed_layers(STARTER, "nf4")))
    assert of("nf4", given_back=True).memory["weights"] == head


def test_each_weight_is_unpacked_forward_backward_and_again():
    numbers = sum(one.inputs * one.outputs for one in packed_layers(STARTER, "nf4"))
    assert unpacked_numbers(STARTER, "nf4", lowest=0, recomputed=0) == 2 * numbers
    assert unpacked_numbers(STARTER, "nf4", lowest=0, recomputed=30) == 3 * numbers
    assert unpacked_numbers(STARTER, "nf4", lowest=30, recomputed=0) == numbers
    assert of("nf4", activation_checkpointing=15).unpacked == 2.5 * numbers
    assert of("none").unpacked == 0


def test_without_the_library_nf4_takes_the_same_memory_and_more_time(monkeypatch):
    needed, rates = [], []
    for installed in (True, False):
        monkeypatch.setattr("rankwise.planning.stored_weights.has_library", lambda installed=installed: installed)
        needed.append(unpacking_bytes(STARTER, "nf4", 2, given_back=False))
        rates.append(unpacking_rate("nf4").likely)
    assert needed[0] == needed[1] == (2 + 12 / 64) * 576 * 1536
    assert rates[1] < rates[0]


def test_unpacking_takes_time_in_each_micro_batch_of_a_processor_alone():
    by = speed_of(HERE, "float32", 0, None, "nf4")  # a rate that every processor has
    assert isinstance(by, Speed) and by.unpacking is not None
    without, once, thrice = (
        duration(Step(1e12, 100, count, numbers), 1, by).step for count, numbers in ((1, 0), (1, 6e9), (3, 6e9))
    )
    assert once.likely - without.likely == pytest.approx(6e9 / by.unpacking.likely)
    assert thrice.likely - without.likely == pytest.approx(3 * (once.likely - without.likely))
    card = speed_of(find_device("rtx-4090"), "bfloat16", 1, None, "nf4")
    assert isinstance(card, Speed) and card.unpacking is None
    probed = Probe(1.0, 0.0, "here", "now", unpacking=0.5)
    assert duration(Step(1e12, 100, 3, 6e9), 2, probed).total.likely == 5.0


def test_a_conversion_is_told_before_it():
    conversion = conversion_of(shape_of("llama-2-7b"), "nf4")
    assert conversion is not None and conversion.disk == pytest.approx(3.34e9, rel=1e-3) and conversion.seconds > 60
    assert conversion_of(STARTER, "none") is None is conversion_of(STARTER, "file")


def test_the_formats_take_the_layers_that_the_plan_says():
    for layer in STARTER.linear:
        for name, format in FORMATS.items():
            assert format.takes((layer.outputs, layer.inputs)) == (layer in packed_layers(STARTER, name))
