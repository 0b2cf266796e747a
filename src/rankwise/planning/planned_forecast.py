"""The forecast of a training by its settings: the number format, how weights are stored, and as many blocks computed
twice as training would choose by itself.
"""

from __future__ import annotations

from dataclasses import replace

from rankwise.config.experiment import Planned
from rankwise.config.method import MethodConfig
from rankwise.planning.devices import Device
from rankwise.planning.fitting import least_recomputed
from rankwise.planning.forecast import AtOnce, Forecast, forecast
from rankwise.planning.parameters import Parameters
from rankwise.planning.shape import ModelShape
from rankwise.planning.stored_weights import storage_of
from rankwise.planning.validation import validation_of


def planned_forecast(
    config: Planned, shape: ModelShape, device: Device, amount: AtOnce, spec: MethodConfig | None = None,
    counted: Parameters | None = None, compiled: bool = False,
) -> Forecast:  # fmt: skip
    """Of what is asked for or of another method, with as many blocks computed twice as training chooses."""
    dtype = device.dtype if config.model.dtype == "auto" else config.model.dtype
    answers = validation_of(config, None, None, 0.0, writes=not shape.is_classifier).writes_answers
    spec, limited = spec or config.adapter, config.model.memory is not None and device.kind == "processor"
    storage = storage_of(config.model.quantize, shape, trains_base=spec.trains_base, given_back=limited)
    first = forecast(
        shape, spec, config.training, device, dtype, amount, counted, answers, compiled, storage, limited
    )  # fmt: skip
    if config.training.activation_checkpointing != "auto" or first.needed <= device.usable:
        return first
    twice = least_recomputed(first, device.usable)
    return first if twice is None else first.with_job(replace(first.job, recomputed=twice))
