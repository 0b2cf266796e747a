"""What carries numbers from one process to another: bytes a second, how much of them a sum reaches, and the wait.

    nvlink      between cards of one machine that have it, by generation
    pcie        between cards of one machine through their slots, by generation
    loopback    between processes of one machine without cards, measured (bench/processes.py --case exchange)
    network     between machines, by the Gbit/s of one machine's connection

Rates are those of the wire in one direction, as vendors give them. What a sum reaches of them is an Estimate, and so
is `hop`, the wait until a message is with the next process. NCCL's own model of its rings has 3.4 microseconds over
NVLink, 5.7 over PCIe and 9.6 over a network, after 8.4 for each sum (NVIDIA/nccl, src/graph/tuning.cc); they are taken
as the least.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.planning.devices import Device
from rankwise.planning.estimate import Estimate

GIGA, MICRO = 1e9, 1e-6
LINKS = ("nvlink", "pcie", "loopback")
NETWORK = 100.0
"""Gbit/s between machines where nothing is said."""


@dataclass(frozen=True)
class Link:
    name: str
    rate: float
    """Bytes per second."""
    share: Estimate
    hop: Estimate
    """Seconds."""
    start: float
    """Seconds before the first message of a sum."""
    source: str

    @property
    def reached(self) -> Estimate:
        """Bytes per second that a sum is likely to move."""
        return self.share.times(self.rate)

    def seconds(self, amount: float) -> Estimate:
        """That so many bytes take."""
        rate = self.reached
        return Estimate(amount / rate.high, amount / rate.likely, amount / rate.low)


NVLINK = {"v100": 150, "a100": 300, "h100": 450, "h200": 450, "b200": 900, "mi300x": 448}
"""GB/s of a card in one direction, by the first word of its name; AMD's is called Infinity Fabric."""
NEW_SLOTS, OLD_SLOTS = {"h100", "h200", "b200", "mi300x", "rtx-5090"}, {"t4", "v100"}
SLOT = 32.0
"""GB/s of PCIe 4.0 with 16 lanes; 5.0 has twice as many and 3.0 half."""
NCCL_START = 8.4 * MICRO
LOOPBACK = Link(
    "loopback", 0.25 * GIGA, Estimate(0.4, 0.7, 1.0), Estimate(190 * MICRO, 320 * MICRO, 1600 * MICRO), 0.0,
    "measured with gloo and two processes on two busy cores (bench/processes.py --case exchange); a machine at rest is "
    "faster",
)  # fmt: skip
OVER_TCP = Estimate(20 * MICRO, 50 * MICRO, 200 * MICRO)
"""Seconds of a hop through operating systems, between machines or beside GPUs: a guess."""


def link_of(device: Device, name: str | None) -> Link:
    """By name, or what is usual for the device."""
    name = name or ("loopback" if device.kind == "processor" else "nvlink" if _family(device) in NVLINK else "pcie")
    if name == "loopback":
        return LOOPBACK
    if name == "nvlink":
        return Link(
            name, NVLINK[_family(device)] * GIGA, Estimate(0.5, 0.67, 0.82), _hop(3.4), NCCL_START,
            "at most 82 %: 370 of an H100's 450 GB/s (NVIDIA/nccl-tests, issue 212); likely 67 %: 200 of an A100's "
            "300 GB/s (issue 149); at least half, which is a guess",
        )  # fmt: skip
    return Link(
        name, _slot(device) * GIGA, Estimate(0.2, 0.4, 0.62), _hop(5.7), NCCL_START,
        "at most 62 %: 20 of 32 GB/s between pairs of A100s (NVIDIA/nccl-tests, issue 178); less where cards share a "
        "bridge, which is a guess",
    )  # fmt: skip


def network_of(gigabits: float | None) -> Link:
    """Between machines with one connection each."""
    rate = (gigabits or NETWORK) / 8 * GIGA
    source = "50 to 95 % of the wire, likely 80 %, which is a guess; at best NCCL's own 9.6 microseconds to the next"
    return Link("network", rate, Estimate(0.5, 0.8, 0.95), Estimate(9.6 * MICRO, 20 * MICRO, 50 * MICRO), NCCL_START,
                source)  # fmt: skip


def misfit(device: Device, name: str) -> str | None:
    """Why a link cannot connect such devices, as a sentence's end."""
    if name not in LINKS:
        return f"is not one of {', '.join(LINKS)}"
    if (name == "loopback") != (device.kind == "processor"):
        return f"connects {'processors' if name == 'loopback' else 'cards'}, and {device.name} is none"
    if name == "nvlink" and _family(device) not in NVLINK:
        return f"is not known of {device.name}; those that have it are {', '.join(NVLINK)}"
    return None


def _hop(microseconds: float) -> Estimate:
    return Estimate(microseconds * MICRO, 2 * microseconds * MICRO, 4 * microseconds * MICRO)


def _family(device: Device) -> str:
    return device.name.partition("-")[0]


def _slot(device: Device) -> float:
    names = {device.name, _family(device)}
    return SLOT * 2 if names & NEW_SLOTS else SLOT / 2 if names & OLD_SLOTS else SLOT
