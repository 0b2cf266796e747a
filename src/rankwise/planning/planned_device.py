"""The device that a plan is for: one that was named, or what this machine has, within a limit of memory."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.config.experiment import Planned
from rankwise.errors import ConfigError
from rankwise.planning.devices import Device, find_device, with_memory
from rankwise.planning.machine import graphics_cards, this_machine, this_processor
from rankwise.planning.processes import Processes

HERE = (None, "auto", "cpu", "cuda", "mps")
"""Names of what this machine has."""
OF_LIMIT = 0.92
"""Of a limit, what a forecast may need: the forecast may be some hundredths too low (docs/plan.md)."""


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


def for_each(processes: Processes, device: Device, name: str | None) -> Device:
    """What each process has of a device. ConfigError where they cannot train on such devices, or there are too few."""
    if not processes.is_several:
        return device
    is_card_here = name in HERE and device.kind != "processor"
    processes.check(device, len(graphics_cards()) if is_card_here else None)
    return with_memory(device, processes.memory_of(device))


def within_limit(device: Device, limit: int | None) -> Device:
    """The same device with at most as much memory as a forecast may need under a limit of so many bytes. ConfigError
    for a GPU, whose memory no limit is for."""
    if limit is None:
        return device
    if device.kind != "processor":
        raise ConfigError([
            f"model.memory limits the memory of a training on the CPU, but this one is on {device.name}. Leave it out, "
            "or use --set model.device=cpu."
        ])  # fmt: skip
    return with_memory(device, min(device.memory, round(OF_LIMIT * limit)))


def is_possible(settings: Sequence[str], config: Planned, device: Device, *, has_rows: bool, alone: bool) -> bool:
    """Whether a training on the device could have these settings, of which `config` has none. `alone` is a training by
    one process."""
    model, data = config.model, config.data
    shortens = any(setting.startswith("data.") for setting in settings)
    if shortens and (not has_rows or data is None or data.too_long == "split"):
        return False
    if "model.dtype=bfloat16" in settings and device.bfloat16 is None and device.dtype == "float32":
        return False
    limits = any(setting.startswith("model.memory=") for setting in settings)
    in_the_way = model.memory or model.sharded or model.new_tokens or device.kind != "processor"
    return not limits or bool(alone and not in_the_way)


def refuse_elsewhere(device: str | None) -> None:
    """Before a probe, which measures this machine."""
    if device not in HERE:
        raise ConfigError([f'--probe measures this machine, but --device plans for "{device}". Leave out one of them.'])
