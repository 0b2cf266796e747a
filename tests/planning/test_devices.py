"""Devices: their figures agree with each other and are not those with sparsity; names as people write them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from rankwise.errors import ConfigError
from rankwise.planning.devices import (
    DEVICES,
    GIB,
    apple,
    find_device,
    graphics_cards,
    read_cards,
    this_machine,
    this_processor,
)
from rankwise.system import processor
from rankwise.system.memory import available_memory

SPARSE = {"l4": 242, "l40s": 733, "a10": 250, "a100-40gb": 624, "h100": 1979, "rtx-4090": 330, "rtx-5090": 838}
STREAMING = {
    "rtx-3060-12gb": (28, 1.777), "rtx-3090": (82, 1.70), "rtx-4060-ti-16gb": (34, 2.535), "rtx-4070": (46, 2.475),
    "rtx-4090": (128, 2.52), "rtx-5090": (170, 2.407),
}  # fmt: skip
"""Multiprocessors, and their clock in GHz."""


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_device_says_where_its_figures_come_from(device):
    assert re.search(r"[a-z0-9-]+\.(com|dev|net|se|cz|co|blog)|winston-zhang-orz", device.source)
    assert 0 < device.usable < device.memory
    for rate in (device.bfloat16, device.float32):
        assert rate is None or 1e12 < rate < 1e16
    if device.bfloat16 is not None and device.float32 is not None:
        assert device.bfloat16 >= device.float32


@pytest.mark.parametrize("name", SPARSE)
def test_rates_are_of_dense_products(name):
    assert DEVICES[name].bfloat16 < 0.52e12 * SPARSE[name]


@pytest.mark.parametrize("name", STREAMING)
def test_geforce_rates_are_multiprocessors_times_clock(name):
    count, gigahertz = STREAMING[name]
    assert DEVICES[name].bfloat16 == pytest.approx(count * 512 * gigahertz * 1e9, rel=0.005)
    assert DEVICES[name].float32 == pytest.approx(count * 256 * gigahertz * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 4090", "rtx-4090"), ("4090", "rtx-4090"), ("NVIDIA GeForce RTX 3060", "rtx-3060-12gb"),
        ("rtx-4060-ti", "rtx-4060-ti-16gb"), ("NVIDIA H100 80GB HBM3", "h100"), ("A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"), ("Tesla V100-SXM2-32GB", "v100-32gb"), ("Tesla T4", "t4"),
        ("A10G", "a10g"), ("NVIDIA A10", "a10"), ("AMD Instinct MI300X", "mi300x"),
        ("Apple M4 Max 64 GB", "m4-max-64gb"), ("m1-8gb", "m1-8gb"), ("M2 24GB", "m2-24gb"),
    ],
)  # fmt: skip
def test_names_are_understood_as_people_write_them(written, name):
    assert find_device(written).name == name


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("A100", "a100-40gb or a100-80gb"), ("M4 Max", "m4-max-16gb"), ("RTX 4070 Ti", "rtx-4070"),
        ("H100 PCIe", "h100"), ("RTX 4090 Laptop GPU", "rtx-4090"), ("RTX 3090 Ti", "rtx-3090"),
        ("toaster", "rtx-4090"), ("", "h100"), ("m9-16gb", "m4-16gb"),
    ],
)  # fmt: skip
def test_another_model_is_not_taken_for_one_that_is_known(written, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        find_device(written)


def test_every_name_finds_itself():
    assert {name: find_device(name).name for name in DEVICES} == {name: name for name in DEVICES}


def test_where_bfloat16_is_not_multiplied_the_rate_is_that_of_float32():
    t4 = DEVICES["t4"]
    assert (t4.dtype, t4.rate("bfloat16"), t4.rate("float32")) == ("float32", None, 8.1e12)
    assert DEVICES["l4"].dtype == "bfloat16"


def test_a_larger_mac_gives_its_gpu_more():
    assert apple("m4-max", 36).usable == pytest.approx(24 * GIB)
    assert apple("m4-max", 64).usable == pytest.approx(48 * GIB)
    assert apple("m1", 16).rate("bfloat16") == pytest.approx(2.65e12, rel=0.01)


AMX = "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
ZEN = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16\n"
XEON = "vendor_id : GenuineIntel\nflags : avx2 avx512f avx512_bf16 avx512_fp16 avx_vnni\n"


@pytest.mark.parametrize(
    ("cpuinfo", "times", "dtype"),
    [
        (AMX, 16, "bfloat16"), (ZEN, 2, "bfloat16"), (XEON, 0.5, "float32"),  # Intel's without AMX is slower
        (XEON.replace("avx_vnni", "amx_bf16"), 16, "bfloat16"),
        ("flags : avx2\n", None, "float32"), ("Features : asimd bf16\n", None, "bfloat16"), ("", None, "float32"),
    ],
)  # fmt: skip
def test_a_processors_rate_in_bfloat16_is_a_multiple_of_that_in_float32(tmp_path, monkeypatch, cpuinfo, times, dtype):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.CPUINFO.write_text(cpuinfo)
    found = this_processor()
    assert (found.rate("float32"), found.rate("bfloat16"), found.dtype) == (2e11, times and times * 2e11, dtype)


@pytest.mark.parametrize(
    ("cores", "processes", "given", "times"),
    [(4, 1, "1", 1), (4, 4, "1", 4), (4, 2, "2,1", 2), (4, 2, "8", 1), (4, 2, "", 1), (128, 1, "", 2)],
)
def test_the_rate_in_float32_is_that_of_products_on_all_cores(monkeypatch, cores, processes, given, times):
    clock = iter([0.0, 0.02, 1.0, 1.01, 2.0, 2.03, 3.0, 3.5])  # a product takes what lies between two
    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(processor, "usable_cores", lambda: cores)
    monkeypatch.setattr(processor, "processes_here", lambda: processes)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert processor.float32_rate() == pytest.approx(times * 2 * processor.SIDE**3 / 0.01)


def test_this_machine_has_the_memory_that_is_free():
    machine = this_machine()
    assert machine.usable == pytest.approx(available_memory(), rel=0.2) or machine.kind == "apple"
    assert "cores" in machine.source


def test_cards_that_answer_are_found_and_a_card_that_is_not_known_has_its_memory():
    text = (
        "NVIDIA A100-SXM4-40GB, 40960, 30000\nTesla V100-PCIE-32GB, 32768, 32500\n"
        "NVIDIA GeForce RTX 3070, 8192, 8000\nNVIDIA-SMI has failed\nNVIDIA H100 80GB HBM3, 81559, [N/A]\n"
    )
    a100, v100, other = read_cards(text)
    assert (a100.name, v100.name, other.name) == ("a100-40gb", "v100-32gb", "NVIDIA GeForce RTX 3070")
    assert a100.usable == 30000 * 1024**2  # what another program holds is not ours
    assert (other.memory, other.rate("bfloat16"), other.dtype) == (8192 * 1024**2, None, "bfloat16")


def test_without_nvidia_smi_there_are_no_cards(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert graphics_cards() == []


@pytest.mark.parametrize("script", ["exit 9", "echo nothing", "printf '\\377'"])
def test_an_nvidia_smi_that_fails_is_no_card(script, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert graphics_cards() == []
