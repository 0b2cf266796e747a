"""The device that a plan is for: one that was named, or what is here: this processor and its free memory, the cards
that nvidia-smi tells of, or Apple's chip.

A processor's rate is cores x clock x operations in each cycle, by the widest products that its flags name. It is an
assumption: virtual machines tell a base clock, laptops a clock they cannot hold, and not every core has two units. A
probe (time.py) knows better.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from rankwise.config.experiment import Planned
from rankwise.errors import ConfigError
from rankwise.planning.devices import GIB, RESERVED, Device, find_device
from rankwise.runs.manifest import processor_name, usable_cores
from rankwise.system.memory import available_memory

HERE = (None, "auto", "cpu", "cuda", "mps")
"""Names of what this machine has."""
CPUINFO = Path("/proc/cpuinfo")
HIGHEST_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
PATIENCE = 5.0
"""Seconds that another program may take to answer."""


@dataclass(frozen=True)
class Instructions:
    """`cycle` is operations of one core in one cycle."""

    flag: str
    dtype: str
    cycle: int
    source: str


HALF_RATE = "avx512_bf16 at half the rate of float32"
"""In place of `avx512_bf16` where a processor has the instruction and is slower for it."""
LANES = "two units of 512 bits: 16 sums each in float32"
INSTRUCTIONS = (
    Instructions("amx_bf16", "bfloat16", 1024, "Intel: 1,024 bfloat16 operations in each cycle of a core with AMX"),
    Instructions("avx512_bf16", "bfloat16", 128, f"VDPBF16PS, two products for each sum (wikichip.org); {LANES}"),
    Instructions("avx512f", "float32", 64, LANES),
    Instructions("avx2", "float32", 32, "two units of 256 bits: 8 sums each in float32"),
    Instructions(HALF_RATE, "bfloat16", 32, "VDPBF16PS in every second cycle: half the sums of float32 (design/0004)"),
)
"""The first that a processor has decides for its dtype."""


@dataclass(frozen=True)
class Processor:
    name: str
    cores: int
    clock: float | None
    """Cycles per second, as the system tells it."""
    flags: frozenset[str]

    def instructions(self, dtype: str) -> Instructions | None:
        return next((known for known in INSTRUCTIONS if known.flag in self.flags and known.dtype == dtype), None)

    def rate(self, dtype: str) -> float | None:
        known = self.instructions(dtype)
        return self.cores * self.clock * known.cycle if known is not None and self.clock else None


BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags of processors that multiply faster in it than in float32."""


def with_rates(flags: frozenset[str], vendor: str) -> frozenset[str]:
    """`flags` with `HALF_RATE` where it holds: on Intel's processors since Sapphire Rapids (they have AVX512-FP16), of
    which a virtual machine may show all but AMX."""
    slow = "GenuineIntel" in vendor and {"avx512_bf16", "avx512_fp16"} <= flags and "amx_bf16" not in flags
    return (flags - {"avx512_bf16"}) | {HALF_RATE} if slow else flags


def planned_device(name: str | None, config: Planned) -> Device:
    if name not in HERE:
        return find_device(name)
    wanted = config.model.device if name is None or name == "auto" else name
    if wanted == "cpu":
        return this_processor()
    cards, number = graphics_cards(), int(wanted.partition(":")[2] or 0)
    if wanted != "mps" and number < len(cards):
        return cards[number]
    found = this_machine()
    if wanted.startswith("cuda") or (wanted == "mps" and found.kind != "apple"):
        raise ConfigError([
            f'no device "{wanted}" was found on this machine. Name one to plan for, such as --device rtx-4090.'
        ])  # fmt: skip
    return found


def refuse_elsewhere(device: str | None) -> None:
    """Before a probe, which measures this machine."""
    if device not in HERE:
        raise ConfigError([f'--probe measures this machine, but --device plans for "{device}". Leave out one of them.'])


def this_machine() -> Device:
    """Its processor as a device, with the memory that is free now. A Mac's is its GPU."""
    return _mac() or this_processor()


def this_processor() -> Device:
    found = processor()
    dtype = "bfloat16" if found.flags.intersection(BFLOAT16) else "float32"
    known = found.instructions(dtype)
    clock = f"{found.clock / 1e9:.2f} GHz" if found.clock else "an unknown clock"
    how = (
        f"{known.cycle} operations per cycle ({known.flag}; {known.source})"
        if known
        else "an unknown number of operations per cycle"
    )
    return Device(
        found.name, "processor", available_memory(), 0, found.rate("bfloat16"), found.rate("float32"),
        f"assumed: {found.cores} cores x {clock} x {how}", dtype, known and known.flag,
    )  # fmt: skip


def processor() -> Processor:
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    return read_processor(text, processor_name(), usable_cores(), _highest_clock())


def processor_vendor() -> str:
    """As the processor calls its maker, such as `GenuineIntel`; empty where the system does not tell it."""
    return _vendor(CPUINFO.read_text() if CPUINFO.exists() else "") or platform.processor()


def _vendor(cpuinfo: str) -> str:
    line = re.search(r"^vendor_id\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return line[1] if line is not None else ""


def read_processor(cpuinfo: str, name: str, cores: int, highest: float | None = None) -> Processor:
    """`highest`, or the clock in the name, or the fastest that a core runs with now."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    listed = frozenset(found[1].split()) if found is not None else frozenset[str]()
    flags = with_rates(listed, _vendor(cpuinfo))
    named = re.search(r"@ ([\d.]+)GHz", name)
    told = [float(clock) * 1e6 for clock in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)]
    clock = highest or (float(named[1]) * 1e9 if named is not None else max(told, default=None))
    return Processor(name, cores, clock, flags)


def graphics_cards() -> list[Device]:
    """The cards that nvidia-smi names, with the memory that is free now; none where it is not there or does not
    answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    return read_cards(_answer(asked))


def read_cards(text: str) -> list[Device]:
    """Of a card that is not known the memory is all that can be said."""
    cards = []
    for line in text.splitlines():
        name, *memory = [cell.strip() for cell in line.split(",")]
        if len(memory) != 2 or not all(amount.isdecimal() for amount in memory):
            continue
        total, free = (int(amount) * 1024**2 for amount in memory)
        try:
            known = find_device(f"{name}-{round(total / GIB)}gb" if re.search(r"A100|V100", name) else name)
        except ConfigError:
            known = Device(name, "consumer", total, RESERVED["consumer"], None, None, "nvidia-smi")
        cards.append(known.with_memory(min(total, free + known.reserved)))
    return cards


def _mac() -> Device | None:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return None
    chip = _answer(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    try:
        return find_device(f"{chip}-{round(psutil.virtual_memory().total / GIB)}gb")
    except ConfigError:
        return None


def _answer(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _highest_clock() -> float | None:
    try:
        return float(HIGHEST_CLOCK.read_text()) * 1e3
    except (OSError, ValueError):
        return None
