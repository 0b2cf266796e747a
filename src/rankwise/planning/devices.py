"""What computes: its memory, and how fast it multiplies.

Rates are of dense products. Vendors' headlines are often with sparsity, twice as much, and for GeForce cards with sums
in float16, twice as much again; training has neither. `bfloat16` is the rate of 16-bit products summed in float32, None
where the card cannot multiply bfloat16 (rankwise computes in float32 there); `float32` that of its ordinary units.

A device is one of the list, or what is here: this processor and its free memory, the cards that nvidia-smi tells of, or
Apple's chip. A processor's rate in float32 is measured, by a few matrix products of numpy: neither the clock nor the
number of cores that a system tells says what a virtual machine or a laptop can do. The rate in bfloat16 is a multiple
of it, by the widest products that the flags name. A probe (time.py) measures whole steps instead.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from rankwise.config.experiment import Planned
from rankwise.errors import ConfigError, ResourceError, did_you_mean
from rankwise.system.cache import cache_folder
from rankwise.system.files import write_atomic
from rankwise.system.memory import available_memory
from rankwise.system.processor import (
    BFLOAT16,
    HALF_RATE,
    float32_rate,
    is_fast_in_int8,
    processor_flags,
    processor_name,
    processor_vendor,
    usable_cores,
    with_rates,
)

Kind = Literal["datacentre", "consumer", "apple", "processor"]
GIB = 1024**3
TERA = 1e12


@dataclass(frozen=True)
class Device:
    name: str
    kind: Kind
    memory: int
    """Bytes that it has; of this machine, that are free."""
    reserved: int
    """Bytes that a training cannot have: an assumption, see RESERVED."""
    bfloat16: float | None
    """Operations per second, as `float32`."""
    float32: float | None
    source: str
    holds: Literal["bfloat16", "float32"] | None = None
    """What `dtype: auto` becomes there, where that does not follow from the rates."""
    flags: frozenset[str] = frozenset()
    """Flags of a processor; none of other devices, and where they are not known."""

    @property
    def int8(self) -> bool:
        """Whether its products of numbers in int8 are faster than others."""
        return is_fast_in_int8(self.flags)

    @property
    def usable(self) -> int:
        return max(0, self.memory - self.reserved)

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        """What `dtype: auto` becomes there; of a card that is not known, what cards of these years do."""
        if self.holds is not None:
            return self.holds
        known = self.kind == "processor" or self.float32 is not None
        return "float32" if self.bfloat16 is None and known else "bfloat16"

    def rate(self, dtype: str) -> float | None:
        return self.float32 if dtype == "float32" else self.bfloat16

    def with_memory(self, memory: int) -> Device:
        """A copy of this device with so many bytes of memory."""
        return replace(self, memory=memory)

    def within_limit(self, limit: int | None) -> Device:
        """This device with at most as much memory as a forecast may need under a limit of so many bytes; unchanged for
        None. ConfigError for a GPU, to which the limit does not apply."""
        if limit is None:
            return self
        if self.kind != "processor":
            raise ConfigError([
                f"model.memory limits the memory of a training on the CPU, but this one is on {self.name}. Leave it "
                "out, or use --set model.device=cpu."
            ])  # fmt: skip
        return self.with_memory(min(self.memory, round(OF_LIMIT * limit)))


OF_LIMIT = 0.92
"""The share of a memory limit that a forecast may reach, as it may be a few % low (bench/plan-accuracy.md)."""
RESERVED = {"datacentre": 2 * GIB, "consumer": int(1.5 * GIB)}
"""Assumed, not measured: the driver and the context of CUDA, a few hundred MB each; on a card in a desktop also what is
shown on the screen; on a data centre's also what is never reported (of an A100's 40 GB its driver has 39.5 to give,
upb-pc2.atlassian.net)."""
APPLE_SOURCE = (
    "GPU cores x 128 lanes x 2 x clock; cores: tweaktown.com/news/94324, of M4 goodnewsapodcast.com, gamebastion.com, "
    "of M3 Ultra techpowerup.com; clocks: hmc-tech.com/gpu (M1 Max and Ultra, M2, M3, M4, M4 Max); float16 as fast as "
    "float32: philipturner/metal-benchmarks; memory for the GPU: 2/3 "
    "of it up to 36 GB, 3/4 above, macOS's default: thinkdifferent.blog, stencil.io"
)
SHARE_OF_SMALL_MAC, SHARE_OF_LARGE_MAC, LARGE_MAC = 2 / 3, 3 / 4, 36
LANES = 128
SMALLEST_MAC, LARGEST_MAC = 8, 512
"""Gigabytes that they are sold with."""
APPLE: dict[str, tuple[int, float]] = {
    "m1": (8, 1.296), "m1-pro": (16, 1.296), "m1-max": (32, 1.296),
    "m1-ultra": (64, 1.290), "m2": (10, 1.398), "m2-pro": (19, 1.398),
    "m2-max": (38, 1.398), "m2-ultra": (76, 1.398), "m3": (10, 1.398),
    "m3-pro": (18, 1.398), "m3-max": (40, 1.398), "m3-ultra": (80, 1.398),
    "m4": (10, 1.470), "m4-pro": (20, 1.470), "m4-max": (40, 1.678),
}  # fmt: skip
"""GPU cores, and their clock in GHz. The clock of a chip that none is known for is its generation's."""


def apple(name: str, gigabytes: int) -> Device:
    """An M1 to M4 with so much memory; the most cores that the chip was sold with."""
    cores, gigahertz = APPLE[name]
    rate = cores * LANES * 2 * gigahertz * 1e9
    share = SHARE_OF_SMALL_MAC if gigabytes <= LARGE_MAC else SHARE_OF_LARGE_MAC
    memory = gigabytes * GIB
    reserved = memory - int(share * memory)
    return Device(
        f"{name}-{gigabytes}gb", "apple", memory, reserved=reserved, bfloat16=rate, float32=rate, source=APPLE_SOURCE
    )


COMMON_MACS = (
    ("m1", 8), ("m1", 16), ("m1-pro", 16), ("m1-max", 32), ("m1-ultra", 64), ("m2", 16), ("m2-pro", 32),
    ("m2-max", 64), ("m2-ultra", 128), ("m3", 16), ("m3-pro", 36), ("m3-max", 64), ("m3-ultra", 256), ("m4", 16),
    ("m4-pro", 48), ("m4-max", 64),
)  # fmt: skip
"""To list; other sizes are understood too."""


def _card(name: str, kind: Kind, gigabytes: float, half: float | None, single: float | None, source: str) -> Device:
    rates = half and half * TERA, single and single * TERA
    return Device(name, kind, int(gigabytes * GIB), RESERVED[kind], *rates, source)


GEFORCE = "SMs x 512 x boost clock, as hmc-tech.com has 165.2 for the 4090's 128 x 512 x 2.52 GHz; "
V100 = "sysrqmts.com on the V100 PCIe: 14.13 float32; 112 float16 (io-tech.fi), no bfloat16"
CARDS = (
    _card("rtx-3060-12gb", "consumer", 12, 25.5, 12.7,
          GEFORCE + "28 SMs, 1.777 GHz: sysrqmts.com, topcpu.net"),
    _card("rtx-3090", "consumer", 24, 71.4, 35.7,
          GEFORCE + "82 SMs of 128 lanes, 1.70 GHz: cpu-gpu.alldbin.com"),
    _card("rtx-4060-ti-16gb", "consumer", 16, 44.1, 22.1,
          GEFORCE + "34 SMs, 2.535 GHz: thefpsreview.com"),
    _card("rtx-4070", "consumer", 12, 58.3, 29.2,
          GEFORCE + "46 SMs, 2.475 GHz: topcpu.net"),
    _card("rtx-4090", "consumer", 24, 165.2, 82.6,
          "hmc-tech.com/gpus: 165.2 bfloat16 (330.3 sparse), 82.58 float32"),
    _card("rtx-5090", "consumer", 32, 209.5, 104.8,
          "codesota.com/hardware/rtx-5090: 209.5 dense; 170 SMs x 512 x 2.407 GHz, fpsbench.com; the "
          "838 that is advertised is sparse, with float16 sums"),
    _card("t4", "datacentre", 16, None, 8.1,
          "hmc-tech.com/gpu: 65.1 float16, no bfloat16, 8.14 float32"),
    _card("v100-16gb", "datacentre", 16, None, 14.1, V100),
    _card("v100-32gb", "datacentre", 32, None, 14.1, V100),
    _card("a10", "datacentre", 24, 125, 31.2,
          "winston-zhang-orz/gpu-specs: 125 dense (250 sparse), 31.2 float32"),
    _card("a10g", "datacentre", 24, 70, None,
          "baseten.co on A10 and A10G: 24 GB, 70 dense as quoted from it; float32 not found"),
    _card("l4", "datacentre", 24, 121, 30.3,
          "grokipedia.com on L4 and L40S: 242 sparse; fpsbench.com: 30.29 float32"),
    _card("l40s", "datacentre", 48, 362, 91.6,
          "mullet.se, from NVIDIA's datasheet: 362.05 (733 sparse), 91.6 float32"),
    _card("a100-40gb", "datacentre", 40, 312, 19.5,
          "glennklockwood.com/garden/processors/A100: 312 (624 sparse), 19.5 float32"),
    _card("a100-80gb", "datacentre", 80, 312, 19.5,
          "glennklockwood.com/garden/processors/A100: as the one of 40 GB"),
    _card("h100", "datacentre", 80, 989.4, 66.9,
          "glennklockwood.com/garden/processors/h100: SXM, 989.4 (1978.9 sparse), 66.9 float32"),
    _card("h200", "datacentre", 140.4, 989, 66.9,
          "itkb.uw.cz 2026/06: 989 dense; 143,771 MiB by nvidia-smi in public logs; float32: H100's"),
    _card("b200", "datacentre", 179, 2250, 75.0,
          "rooflinenotes.dev/accelerators: 2.25 PFLOPS; hmc-tech.com: 75.02 float32; 183,359 MiB by "
          "nvidia-smi in public logs"),
    _card("mi300x", "datacentre", 192, 1307.4, 163.4,
          "hmc-tech.com: 1.31 PFLOPS (2.61 sparse), 163.43 float32; aiwiki.ai: 192 GB"),
)  # fmt: skip
OTHER_BOARDS = {"h100": {"pcie", "nvl"}, "h200": {"nvl"}}
"""Words of the same name that mean a slower card."""
DEVICES: dict[str, Device] = {
    device.name: device for device in (*CARDS, *(apple(name, size) for name, size in COMMON_MACS))
}


def find_device(name: str) -> Device:
    """By its name, as people write it: `RTX 4090`, `NVIDIA H100 80GB HBM3`, `Apple M4 Max` with its memory (`64gb`)."""
    plain = _plain(name)
    mac = re.fullmatch(r"(m[1-9](?:-(?:pro|max|ultra))?)-(\d{1,4})gb", plain)
    if mac is not None and mac[1] in APPLE and SMALLEST_MAC <= int(mac[2]) <= LARGEST_MAC:
        return apple(mac[1], int(mac[2]))
    fitting = [device.name for device in CARDS if _fits(plain.split("-"), device.name)]
    if len(fitting) == 1:
        return DEVICES[fitting[0]]
    if fitting:
        raise ConfigError([f'"{name}" is sold with several sizes of memory; give one of {" or ".join(fitting)}.'])
    if plain in APPLE:
        raise ConfigError(
            [f'"{name}" is sold with several sizes of memory; give the size too, for example {plain}-16gb.']
        )
    known = ", ".join(DEVICES)
    raise ConfigError([f'"{name}" is not a known device.{did_you_mean(plain, DEVICES)} Known devices: {known}.'])


def _fits(words: list[str], known: str) -> bool:
    """A size of memory may be left out, and more may be said than we know, but no other model's word."""
    model, size = known.split("-"), _sizes(known.split("-"))
    others = {"ti", "super", "laptop", "mobile", "max", "d", "mig"} | OTHER_BOARDS.get(known, set())
    if any(re.fullmatch(r"x?\d{1,2}x?|x", word) for word in set(words) - set(model)):  # several, or a part of one
        return False
    if not set(model) - size <= set(words) or others & set(words) - set(model):
        return False
    told = round(next(card.memory for card in CARDS if card.name == known) / GIB)
    return not _sizes(words) or _sizes(words) == (size or {f"{told}gb"})


def _sizes(words: list[str]) -> set[str]:
    return {word for word in words if re.fullmatch(r"\d+gb", word)}


def _plain(name: str) -> str:
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    text = re.sub(r"(\d+)-?(?:gb|gib)\b", r"\1gb", text)
    text = re.sub(r"^(?:nvidia|amd|apple|geforce|tesla|instinct)-", "", text)
    text = re.sub(r"^(?:geforce|tesla|instinct)-", "", text)
    text = re.sub(r"^rtx(\d)", r"rtx-\1", text)
    return re.sub(r"^(\d{4})", r"rtx-\1", text)


HERE = (None, "auto", "cpu", "cuda", "mps")
"""Names of what this machine has."""
PATIENCE = 5.0
"""Seconds that another program may take to answer."""

INSTRUCTIONS = {
    "amx_bf16": (16, "Intel: 1,024 operations in each cycle of a core with AMX, and 64 in float32"),
    "avx512_bf16": (2, "VDPBF16PS, two products for each sum (wikichip.org)"),
    HALF_RATE: (0.5, "VDPBF16PS in every second cycle (design/0004)"),
}
"""By the flag of a processor: how many times as many operations it makes in bfloat16 as in float32, and the source. The
first that it has decides."""


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
    """This machine's processor, with the memory that is free now, or the GPU of a Mac with Apple silicon."""
    return _mac() or this_processor()


def this_processor() -> Device:
    """With the memory that is free now, and the fastest rate that was ever measured on it, since other programs may be
    busy now."""
    flags = with_rates(processor_flags(), processor_vendor())
    float32 = float32_rate()
    name = f"{processor_name()}, {usable_cores()}"
    file = cache_folder() / "rates.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # none yet, another processor's, or damaged
        float32 = max(float32, float(json.loads(file.read_text(encoding="utf-8"))[name]))
    with suppress(OSError, ResourceError):  # where nothing can be written, it is measured each time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({name: float32}).encode())
    times, why = next((INSTRUCTIONS[one] for one in INSTRUCTIONS if one in flags), (None, ""))
    half = f"; assumed: {times} times that in bfloat16, {why}" if times else ""
    return Device(
        processor_name(), "processor", available_memory(), reserved=0,
        bfloat16=times and times * float32, float32=float32,
        source=f"measured: {float32 / 1e9:.0f} GFLOP/s in float32 on {usable_cores()} cores{half}",
        holds="bfloat16" if flags.intersection(BFLOAT16) else "float32", flags=flags,
    )  # fmt: skip


def graphics_cards() -> list[Device]:
    """The cards that nvidia-smi names, with the memory that is free now; none where it is not there or does not
    answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    return read_cards(_answer(asked))


def read_cards(text: str) -> list[Device]:
    """The GPUs in the output of nvidia-smi, with the memory that is free now; of an unknown one, only the memory is
    known."""
    cards = []
    for line in text.splitlines():
        name, *memory = [cell.strip() for cell in line.split(",")]
        if len(memory) != 2 or not all(amount.isdecimal() for amount in memory):
            continue
        total, free = (int(amount) * 1024**2 for amount in memory)
        try:
            known = find_device(f"{name}-{round(total / GIB)}gb" if re.search(r"A100|V100", name) else name)
        except ConfigError:
            known = Device(
                name, "consumer", total, reserved=RESERVED["consumer"], bfloat16=None, float32=None, source="nvidia-smi"
            )
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
