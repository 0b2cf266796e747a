"""The plan of a training: the shape of its model, found or built, and the arithmetic on it (planning/plan.py).

torch and transformers come in only for a model that neither the catalogue nor the cache of shapes has.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankwise.config.planning import Planned
from rankwise.planning.devices import Device
from rankwise.planning.plan import Plan, plan_for
from rankwise.planning.reading import read_shape
from rankwise.planning.shape import ModelShape
from rankwise.planning.time import Probe


def plan(
    config: Planned, *, device: str | None = None, watts: float | None = None, price: float | None = None,
    measured: Probe | None = None, on: Device | None = None,
) -> Plan:  # fmt: skip
    """What a training by `config` would take. `device` is one of the list (`rtx-4090`) or `cpu`; by default the card or
    the processor that is here. `on` is a device that is known to be used."""
    shape = shape_of(config.model.name, config.model.revision)
    return plan_for(shape, config, device=device, watts=watts, price=price, measured=measured, on=on)


def shape_of(name: str, revision: str | None = None) -> ModelShape:
    """The shape of the model that `rankwise plan --model` means by `name`."""
    return read_shape(name, revision, _built)


def _built(config: dict[str, Any], name: str, where: str) -> ModelShape:
    with _without_collection():
        from rankwise.forward.model_shape import shape_of_config

        return shape_of_config(config, name, where)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's garbage collector, which would search the many lasting objects of torch and transformers again and
    again while they are imported (0.7 s of 4.9)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
