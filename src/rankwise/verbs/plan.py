"""What a training would take, before anything is loaded: parameters, memory, time, what fits, and what to change.

Everything is arithmetic on the model's shape and on some of its rows; torch is not imported. With `measured`, what two
probe steps said takes the place of the assumed speed (verbs/probe.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwise.errors import SpecError
from rankwise.planning.advice import Advice, Asked, advise
from rankwise.planning.devices import CARDS, COMMON_MACS, Device, apple, find_device
from rankwise.planning.fitting import Fit, Remedy, fit_of, remedies
from rankwise.planning.forecast import Adapting, AtOnce, Forecast, at_once, forecast, operations_of
from rankwise.planning.machine import graphics_cards, this_machine
from rankwise.planning.memory import FORMATS, weights_bytes
from rankwise.planning.operations import Load
from rankwise.planning.papers import GPT3_REMARK, GPT3_SAID
from rankwise.planning.parameters import Parameters
from rankwise.planning.reading import shape_of
from rankwise.planning.rows import PlannedRows, average_step
from rankwise.planning.shape import ModelShape
from rankwise.planning.time import Cost, Duration, Probe, Speed, Step, cost, duration, speed_of
from rankwise.run.hub import folder_here
from rankwise.spec.adapters import AdaLoraSpec, FullSpec, LoraSpec
from rankwise.spec.planning import Planned
from rankwise.spec.reading import with_settings
from rankwise.verbs.planned_rows import rows_of

HERE = (None, "auto", "cpu", "cuda", "mps")
"""Names of what this machine has."""
UNKNOWN_LENGTH = 1024
"""Tokens of a document, where no rows are given and no limit is."""


@dataclass(frozen=True)
class Plan:
    asked: Planned
    shape: ModelShape
    device: Device
    rows: PlannedRows | None
    amount: AtOnce
    made: Forecast
    speed: Speed | Probe | None
    watts: float | None = None
    price: float | None = None
    here: bool = True
    """Whether the device is one of this machine, so that its speed can be measured."""

    @property
    def trained(self) -> bool:
        """Whether rankwise trains such a model: of the others the counts are told alone."""
        return len(self.shape.stacks) == 1 and self.shape.stacks[0].causal and bool(self.shape.vocabulary)

    @property
    def remark(self) -> str:
        """Where a paper counts this model otherwise."""
        if self.shape.name != "gpt3-175b":
            return ""
        return f"{GPT3_SAID / self.made.parameters.trainable:,.0f} times fewer by the paper's count. {GPT3_REMARK}"

    @cached_property
    def steps(self) -> int | None:
        training = self.asked.training
        return training.steps if self.rows is None else self.rows.steps(training)

    @cached_property
    def load(self) -> Load:
        """What goes through the model, as a sample of documents."""
        if self.rows is not None and self.rows.lengths:
            return self.rows.load
        count = max(1, self.amount.tokens // self.amount.longest)
        return Load((self.amount.longest,) * count, float(self.amount.longest * count))

    @cached_property
    def flops_per_token(self) -> float:
        return operations_of(self.made, self.load).total / self.load.tokens

    @cached_property
    def step(self) -> Step:
        made, training = operations_of(self.made, self.load), self.asked.training
        if self.rows is not None and self.rows.lengths:
            return average_step(made, self.rows, training)
        tokens = training.batch_size * self.amount.longest
        return Step(self.flops_per_token * tokens, tokens, -(-tokens // training.micro_batch_tokens))

    @cached_property
    def duration(self) -> Duration | None:
        """Of one step where it is not known how many there are."""
        if self.speed is None or not self.trained:
            return None
        error = self.rows.error if self.rows is not None else 0.0
        return duration(self.step, self.steps or 1, self.speed, error=error)

    @cached_property
    def cost(self) -> Cost | None:
        if self.duration is None or self.steps is None or (self.watts is None and self.price is None):
            return None
        return cost(self.duration.total, watts=self.watts, price=self.price)

    @cached_property
    def fit(self) -> Fit:
        return fit_of(self.made, self.device, self.amount.longest)

    @cached_property
    def fits_elsewhere(self) -> list[Fit]:
        """On cards that are known, of the method that was asked for."""
        return [fit_of(self.on(device), device, self.amount.longest) for device in known_devices()]

    @property
    def weights_by_format(self) -> dict[str, int]:
        return {dtype: round(weights_bytes(self.shape, dtype)) for dtype in FORMATS}

    @cached_property
    def remedies(self) -> list[Remedy]:
        return remedies(self.made, self.device.usable, self.amount.longest, self.changed)

    @cached_property
    def advice(self) -> list[Advice]:
        if self.rows is None or not self.trained:
            return []
        adapted = self.made.parameters.adapted
        linear = [one for one in self.shape.layers if one.kind in ("linear", "conv1d") and one.path != self.shape.head]
        data = self.asked.data
        assert data is not None, "there are rows"
        return advise(Asked(
            adapter=self.asked.adapter, training=self.asked.training, data=data, rows=self.rows,
            width=self.shape.stacks[-1].width, parameters=self.shape.parameters,
            trainable=self.made.parameters.trainable, ends=sum(one.inputs + one.outputs for one in linear),
            ranks={one.layer.path: sum(one.ranks) for one in adapted}, context=self.shape.context,
        ))  # fmt: skip

    def on(self, device: Device) -> Forecast:
        return self._of(self.asked, self.asked.adapter, device, self.made.parameters)

    @cached_property
    def methods(self) -> dict[str, Forecast]:
        """The one that was asked for, and the others with what is usual for them."""
        usual = {"lora": LoraSpec(), "adalora": AdaLoraSpec(), "full": FullSpec()}
        others = {
            method: self._of(self.asked, spec, self.device)
            for method, spec in usual.items()
            if method != self.asked.adapter.method
        }
        return {self.asked.adapter.method: self.made} | others

    def _of(self, asked: Planned, spec: Adapting, device: Device, counted: Parameters | None = None) -> Forecast:
        dtype = device.dtype if asked.model.dtype == "auto" else asked.model.dtype
        return forecast(self.shape, spec, asked.training, device, dtype, self.amount, counted)

    def changed(self, setting: str) -> Forecast | None:
        """The same with one setting otherwise; None where that means nothing here."""
        if setting.startswith("data.") and self.asked.data is None:
            return None
        changed = with_settings(self.asked, setting)
        rows, data = self.rows, changed.data
        limit = _limit(changed, self.shape)
        if rows is not None and data is not None and limit < self.amount.longest:
            rows = rows.shorter(limit)
        return planned(changed, self.shape, self.device, rows, None).made

    def summary(self) -> dict[str, Any]:
        """What `rankwise plan --json` prints."""
        counted, memory = self.made.parameters, self.made.memory
        told = self.duration if self.steps is not None else None
        return {
            "model": self.shape.name, "family": self.shape.family, "method": self.asked.adapter.method,
            "total_parameters": counted.total, "trainable_parameters": counted.trainable,
            "times_fewer": counted.ratio,
            "trainable_by_layer": {leaf: {"layers": n, "parameters": p} for leaf, (n, p) in counted.by_leaf.items()},
            "adapter_bytes": counted.file_bytes, "adapter_bytes_float16": counted.file_bytes_half,
            "memory_bytes": _memory(self.made) | {"peak": memory.peak},
            "memory_formulas": {part.name: part.formula for part in memory.parts},
            "memory_bytes_of_methods": {
                method: _memory(made) | {"peak": made.peak} for method, made in self.methods.items()
            },
            "weights_bytes": self.weights_by_format,
            "device": self.device.name, "form": self.made.job.form, "dtype": self.made.job.dtype,
            "fits": self.fit.fits, "blocks_to_recompute": self.fit.recomputed,
            "largest_micro_batch_tokens": self.fit.tokens,
            "largest_micro_batch_tokens_recomputed": self.fit.tokens_recomputed,
            "devices": {
                fit.device.name: {
                    "fits": fit.fits, "peak": fit.peak, "usable": fit.device.usable,
                    "blocks_to_recompute": fit.recomputed, "largest_micro_batch_tokens": fit.tokens,
                } for fit in self.fits_elsewhere
            },
            "flops_per_token": self.flops_per_token,
            "steps": self.steps, "tokens_per_step": self.step.tokens,
            "tokens": None if self.rows is None else _of(self.rows.tokens),
            "supervised_tokens": None if self.rows is None else _of(self.rows.supervised),
            "seconds": None if told is None else told.total.likely,
            "seconds_low": None if told is None else told.total.low,
            "seconds_high": None if told is None else told.total.high,
            "seconds_per_step": None if self.duration is None else self.duration.step.likely,
            "speed": None if self.speed is None else self.speed.origin,
            "kilowatt_hours": None if self.cost is None else _of(self.cost.kilowatt_hours),
            "money": None if self.cost is None else _of(self.cost.money),
            "remedies": [vars(remedy) for remedy in self.remedies] if not self.fit.fits else [],
            "advice": [vars(advice) for advice in self.advice],
            "trained_by_rankwise": self.trained,
        }  # fmt: skip


def plan(
    asked: Planned, *, device: str | None = None, watts: float | None = None, price: float | None = None,
    measured: Probe | None = None,
) -> Plan:  # fmt: skip
    """`device` is one of the list (`rtx-4090`) or `cpu`; by default the card or the processor that is here."""
    _refuse_negative(watts=watts, price=price)
    if measured is not None:
        refuse_elsewhere(device)
    shape = shape_of(asked.model.name)
    folder = Path(asked.model.name).expanduser()
    rows = None
    if asked.data is not None:
        rows = rows_of(asked.data, folder if folder.is_dir() else folder_here(asked.model.name), shape.context)
    return planned(asked, shape, _device(device, asked), rows, measured, watts, price, here=device in HERE)


def refuse_elsewhere(device: str | None) -> None:
    """Before a probe, which measures this machine."""
    if device not in HERE:
        raise SpecError([f'a probe measures this machine, and the plan is for "{device}". Leave out one of them.'])


def planned(
    asked: Planned, shape: ModelShape, device: Device, rows: PlannedRows | None, measured: Probe | None,
    watts: float | None = None, price: float | None = None, *, here: bool = True,
) -> Plan:  # fmt: skip
    amount = at_once(rows, asked.training, _limit(asked, shape))
    dtype = device.dtype if asked.model.dtype == "auto" else asked.model.dtype
    made = forecast(shape, asked.adapter, asked.training, device, dtype, amount)
    speed = measured or speed_of(device, made.job.dtype, shape.stacks[-1].count)
    return Plan(asked, shape, device, rows, amount, made, speed, watts or device.watts, price, here)


def known_devices() -> list[Device]:
    return [*CARDS, *(apple(name, size) for name, size in COMMON_MACS)]


def _device(name: str | None, asked: Planned) -> Device:
    if name not in HERE:
        return find_device(name)
    wanted = asked.model.device if name is None or name == "auto" else name
    cards = [] if wanted == "cpu" else graphics_cards()
    if cards:
        return cards[0]
    if wanted.startswith("cuda"):
        raise SpecError([
            f'device "{wanted}" is not here: nvidia-smi names no card. Name one to plan for, such as --device rtx-4090.'
        ])  # fmt: skip
    return this_machine()


def _limit(asked: Planned, shape: ModelShape) -> int:
    """Tokens of the longest document there may be."""
    limit = UNKNOWN_LENGTH if asked.data is None else asked.data.max_length
    return min(limit, shape.context or limit)


def _memory(made: Forecast) -> dict[str, int]:
    return {part.name: round(part.bytes) for part in made.memory.parts}


def _of(estimate: Any) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {"low": estimate.low, "likely": estimate.likely, "high": estimate.high}


def _refuse_negative(**given: float | None) -> None:
    wrong = [f"{name} is {value:g}; a number above 0 is wanted." for name, value in given.items()
             if value is not None and not 0 < value < 1e9]  # fmt: skip
    if wrong:
        raise SpecError(wrong)
