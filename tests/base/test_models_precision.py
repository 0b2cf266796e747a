"""The number format follows what the processor can do, and a device that is not there is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankwise.base.loading import load
from rankwise.base.precision import choose_precision, computes_bfloat16
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, ModelError

CPUINFO = Path("/proc/cpuinfo")


def test_auto_is_bfloat16_exactly_where_the_device_computes_it():
    precision = choose_precision(ModelConfig(name="any", device="cpu"))
    able, why = computes_bfloat16(torch.device("cpu"))
    assert precision.dtype == (torch.bfloat16 if able else torch.float32)
    assert precision.why == why


@pytest.mark.skipif(not CPUINFO.exists(), reason="no list of the processor's features but torch's own")
def test_a_processor_has_bfloat16_if_and_only_if_the_system_lists_the_feature():
    lines = CPUINFO.read_text().splitlines()
    listed = ("flags", "Features", "vendor_id")
    words = {word for line in lines if line.startswith(listed) for word in line.split()}
    able, why = computes_bfloat16(torch.device("cpu"))
    slow = {"avx512_bf16", "avx512_fp16", "GenuineIntel"} <= words
    assert able == bool(words & {"amx_bf16", "bf16"} or ("avx512_bf16" in words and not slow))
    assert ("has no" in why or "half the rate" in why) != able


FLAGS = frozenset({"avx2", "avx512f", "avx512_bf16", "avx512_fp16"})


@pytest.mark.parametrize(
    ("vendor", "amx", "expected"),
    [("GenuineIntel", False, False), ("GenuineIntel", True, True), ("AuthenticAMD", False, True), ("", False, True)],
)
def test_bfloat16_is_slow_on_intels_processors_that_hide_amx(monkeypatch, vendor, amx, expected):
    monkeypatch.setattr("rankwise.base.precision.processor_flags", lambda: FLAGS | ({"amx_bf16"} if amx else set()))
    monkeypatch.setattr("rankwise.base.precision.processor_vendor", lambda: vendor)
    able, why = computes_bfloat16(torch.device("cpu"))
    assert able == expected
    assert ("half the rate of float32" in why) != expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_asked_for_is_what_is_loaded(tiny_folder, dtype):
    loaded = load(ModelConfig(name=str(tiny_folder), dtype=dtype, device="cpu"))
    assert {str(parameter.dtype) for parameter in loaded.module.parameters()} == {f"torch.{dtype}"}
    assert loaded.facts.dtype == dtype and loaded.precision.why == "by the settings"


@pytest.mark.parametrize("device", ["cuda:99", "cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(device):
        pytest.skip(f"{device} is there")
    with pytest.raises(ModelError, match=f'"{device}".*cpu'):
        choose_precision(ModelConfig(name="any", device=device))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0;", "meta", ""])
def test_a_device_of_no_known_kind_is_no_setting(device):
    with pytest.raises(ConfigError, match="device"):
        ModelConfig(name="any", device=device)
