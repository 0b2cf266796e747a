"""The device and dtype of a base model, and the reason for the choice.

bfloat16 halves the memory. On hardware with bfloat16 arithmetic (AVX512-BF16, AMX, ARM BF16, CUDA from Ampere, Apple
GPUs from macOS 14) it also more than doubles the speed; elsewhere it is emulated and float32 is faster. So it is on
Intel's processors from Sapphire Rapids on where AMX is hidden, as in many virtual machines: their AVX512-BF16 does half
of what float32 does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError
from rankwise.system.processor import (
    BFLOAT16,
    HALF_RATE,
    is_fast_in_int8,
    processor_flags,
    processor_vendor,
    with_rates,
)


@dataclass(frozen=True)
class Precision:
    device: torch.device
    dtype: torch.dtype
    why: str


def choose_precision(config: ModelConfig) -> Precision:
    device = torch.device(_device(config.device))
    able, why = computes_bfloat16(device)
    if config.dtype != "auto":
        return Precision(device, getattr(torch, config.dtype), "by the settings")
    return Precision(device, torch.bfloat16 if able else torch.float32, why)


def _device(name: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, usable in there.items() if usable)
    kind, _, number = name.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        usable = ", ".join(name for name, is_there in there.items() if is_there)
        raise ModelError(f'device "{name}" is not available; this torch ({torch.__version__}) can use {usable}.')
    return name


def computes_bfloat16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, f"{torch.cuda.get_device_name(device)} {'computes' if able else 'does not compute'} bfloat16"
    if device.type == "mps":
        able = torch.backends.mps.is_macos_or_newer(14, 0)
        return able, f"this macOS {'has' if able else 'lacks'} bfloat16 on its GPU"
    flags = with_rates(instructions(), processor_vendor())
    if (fast := next((flag for flag in BFLOAT16 if flag in flags), None)) is not None:
        return True, f"the processor has {fast}"
    return False, f"the processor has {HALF_RATE if HALF_RATE in flags else 'no bfloat16 arithmetic'}"


def multiplies_int8() -> bool:
    """Whether products of numbers in int8 are faster than others."""
    return is_fast_in_int8(instructions())


def instructions() -> frozenset[str]:
    """The names of the processor's instructions: as Linux lists them, and elsewhere as torch does, if it does."""
    if listed := processor_flags():
        return listed
    named = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return frozenset(name for name, there in named.items() if there is True)
