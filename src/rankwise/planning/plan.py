"""What a training would take, before anything is loaded: parameters, memory, time, what fits, and what to change.

Everything is arithmetic on the model's shape and on some of its rows; torch is not imported. With `probe`, what two
probe steps said takes the place of the assumed speed (training/probe.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from rankwise.base.packed import EXACT
from rankwise.config.adapters import COMPARED
from rankwise.config.experiment import Planned
from rankwise.config.reading import with_settings
from rankwise.errors import ConfigError
from rankwise.planning.batches import AtOnce, average_step, largest_batches, longest_of, padded_load, validation_work
from rankwise.planning.devices import DEVICES, HERE, Device, planned_device, refuse_elsewhere
from rankwise.planning.estimate import Estimate
from rankwise.planning.forecast import FORMATS, STEP_OF_TOKENS, Disk, Fit, Forecast, planned_forecast, weights_bytes
from rankwise.planning.operations import Load
from rankwise.planning.processes import ONE_PROCESS, Processes, rows_in_step, sharded_peak
from rankwise.planning.rows import PlannedRows, rows_of_training
from rankwise.planning.shape import ModelShape
from rankwise.planning.stored_weights import Conversion, conversion_of
from rankwise.planning.time import (
    COMPILED_AFTER,
    SECONDS_OF_HOUR,
    Duration,
    Probe,
    Speed,
    Step,
    decoding_seconds,
    duration,
    speed_of,
)
from rankwise.planning.tokens import TokenCounter

SLOWER_WHEN_SMALL = 1.5
"""By how much a small step may take longer for each token than the steps of a training."""
SMALLER = "a smaller adapter can learn less"
SAME, SAME_IN_PARTS = "the same result", "the same result, in more micro-batches"
LEFT_IN_FILE = "the same result but for rounding; weights stay in their file and are read from it at each use"
SHORTER = "data.too_long says whether longer rows are left out or shortened"
BLOCKS, TOKENS = "training.activation_checkpointing={}", "training.max_batch_tokens={}"


@dataclass(frozen=True)
class Remedy:
    changes: tuple[str, ...]
    """Each as `--set` takes it."""
    peak: int
    price: str

    @property
    def settings(self) -> str:
        return " ".join(f"--set {change}" for change in self.changes)


@dataclass(frozen=True)
class Plan:
    config: Planned
    shape: ModelShape
    device: Device
    rows: PlannedRows | None
    amount: AtOnce
    forecast: Forecast
    speed: Speed | Probe | None
    price: float | None = None
    here: bool = True
    """Whether the device is one of this machine, so that its speed can be measured."""
    processes: Processes = ONE_PROCESS
    """The processes that train. With several, the device and the memory are those of each one, and time is that of all
    together."""

    @property
    def trained(self) -> bool:
        """Whether rankwise trains such a model: of the others the counts are told alone."""
        return self.shape.task.planned and self.shape.is_measured

    @cached_property
    def steps(self) -> int | None:
        training = self.config.training
        return training.steps if self.rows is None else self.rows.steps(training)

    @property
    def most(self) -> str:
        """Before the steps and the time of a run that ends where its validation stops improving."""
        return "" if self.config.validation.patience is None else "up to "

    @cached_property
    def load(self) -> Load:
        """What goes through the model, as a sample of documents."""
        if self.rows is not None and self.rows.drawn:
            own = self.processes.of_one(self.config.training, self.rows)
            return padded_load(self.rows, own) if self.shape.task.padding else self.rows.load
        count = max(1, self.amount.tokens // self.amount.longest)
        written = round(self.amount.longest * self.amount.output_share)
        learned = count * self.shape.task.learned(written or self.amount.longest)
        return Load((self.amount.longest,) * count, float(learned), (written,) * count if written else ())

    @cached_property
    def flops_per_token(self) -> float:
        return self.forecast.operations(self.load).total / self.load.tokens

    @property
    def step(self) -> Step:
        """The average step of all processes together."""
        return self._with_penalty(self._rows_of_step)

    @cached_property
    def own_step(self) -> Step:
        """The part of a step that falls to the process with the most to compute."""
        return self._with_penalty(self.processes.slowest(self._rows_of_step, self.config.training, self.rows))

    @cached_property
    def _rows_of_step(self) -> Step:
        operations, training = self.forecast.operations(self.load), self.config.training
        if self.rows is not None and self.rows.drawn:
            return average_step(operations, self.rows, training, self.load)
        tokens = training.batch_size * self.amount.longest
        pieces = -(-tokens // training.max_batch_tokens)
        return Step(self.flops_per_token * tokens, tokens, pieces)

    def _with_penalty(self, step: Step) -> Step:
        """What the method computes once a step, such as AdaLoRA's penalty, is added."""
        own, adapted = self.config.adapter, self.forecast.parameters.adapted
        extra = sum(own.step_operations(one.layer, sum(one.ranks)) for one in adapted)
        extra += self.forecast.anchor_operations(self.config.training.anchor, self.steps)
        return replace(step, operations=step.operations + extra, unpacked=self.forecast.unpacked)

    @cached_property
    def duration(self) -> Duration | None:
        """How long the run takes, or one step where the number of steps is not known; None where no speed is known or
        the model cannot be trained."""
        if self.speed is None or not self.trained:
            return None
        error = self.rows.error if self.rows is not None else 0.0
        steps = self.steps or 1
        speed = self.processes.speed(self.speed, self.device)
        tokens, decoded = validation_work(self.config, self.rows, self.steps, self.step.tokens, self.shape.task)
        made = self.forecast
        read = tokens / self.processes.count
        # half of a training step for each token, since nothing is learned from it
        validation = Step(made.operations(self.load).forward / self.load.tokens * read, read / 2) if read else None
        answering = decoded * decoding_seconds(self.device, made.memory["weights"], made.shape.block_count)
        return duration(self.own_step, steps, speed, error=error, validation=validation, answering=answering)

    @property
    def may_compile(self) -> bool:
        """Whether training uses torch's compiler, or may find by a small step that it takes long enough for it. Such a
        step unpacks weights, and says nothing of a training with products in int8."""
        backend, told = self.config.training.backend, self.duration
        if backend == "auto" and self.steps is not None and told is not None:
            longest = told.total.likely if self.forecast.int8 else SLOWER_WHEN_SMALL * told.total.high
            return longest > COMPILED_AFTER
        return backend == "compiled"

    @cached_property
    def money(self) -> Estimate | None:
        """In the currency of the price, which is for an hour."""
        if self.duration is None or self.steps is None or self.price is None:
            return None
        return self.duration.total.times(self.price / SECONDS_OF_HOUR)

    @cached_property
    def fit(self) -> Fit:
        return self.forecast.fit(self.device)

    @cached_property
    def fits_elsewhere(self) -> list[Fit]:
        """On cards that are known, of the method that was asked for."""
        return [self.on(device).fit(device) for device in DEVICES.values()]

    @property
    def weights_by_format(self) -> dict[str, int]:
        return {dtype: round(weights_bytes(self.shape, dtype)) for dtype in FORMATS}

    @cached_property
    def remedies(self) -> list[Remedy]:
        return self.remedies_for(self.device.usable)

    def remedies_for(self, room: int) -> list[Remedy]:
        """Changes after which it fits, the cheapest first. A change is tried as the plan would try it, by the same
        arithmetic, so what is said to fit is forecast to fit."""
        return [remedy for remedy in self._tried(room) if remedy.peak <= room]

    @cached_property
    def savings(self) -> list[Remedy]:
        """What takes less memory than is planned, and what it costs."""
        if not self.trained:
            return []
        fewer, tokens = self.config.adapter.fewer_bits, max(self.amount.longest, self.forecast.amount.tokens // 2)
        tried = [*(self._with(price, f"model.quantize={name}") for name, price in fewer.items())]
        tried += [
            self._with(SAME, BLOCKS.format(self.forecast.blocks)),
            self._with(SAME_IN_PARTS, TOKENS.format(tokens)),
        ]
        return [remedy for one in tried for remedy in one]

    def _tried(self, room: int) -> Iterator[Remedy]:
        made, at_once, spec = self.forecast, self.amount.tokens, self.config.adapter
        tokens, least = (made.most_at_once(room, twice) for twice in (made.recomputed, made.blocks))
        if 0 < tokens < at_once:
            yield from self._with(SAME_IN_PARTS, TOKENS.format(tokens))
        twice, chosen = made.least_recomputed(room), self.config.training.activation_checkpointing
        if twice is not None and twice > made.recomputed and chosen != "auto":
            yield from self._with(SAME, BLOCKS.format(twice))
        if twice is None and 0 < least < at_once:
            yield from self._with(SAME_IN_PARTS, BLOCKS.format(made.blocks), TOKENS.format(least))
        device, data, memory = self.device, self.config.data, self.config.model.memory
        alone = device.kind == "processor" and not self.processes.is_several
        if room >= 10**8 and alone and not memory and not self.config.model.new_tokens:
            yield from self._with(LEFT_IN_FILE, f"model.memory={room // 10**8 / 10:.1f}GB")
        for name, price in spec.fewer_bits.items():
            yield from self._with(price, f"model.quantize={name}")
        if made.dtype == "float32":
            setting, price = spec.lighter_base
            if setting != "model.dtype=bfloat16" or device.bfloat16 is not None or device.dtype != "float32":
                yield from self._with(price, setting)
        if self.rows is not None and data and data.too_long != "split" and self.amount.longest > 2 * STEP_OF_TOKENS:
            yield from self._with(SHORTER, f"data.max_length={self.amount.longest // 2}")
        for setting in spec.smaller if spec.start_from is None else ():
            yield from self._with(SMALLER, setting)

    def _with(self, price: str, *settings: str) -> Iterator[Remedy]:
        """Nothing where the change means nothing here or saves nothing. Its price in time is what a step takes after it
        over what it takes before."""
        changed = self.changed(*settings)
        if changed is None or changed.needed >= self.forecast.needed:
            return
        slower = self._seconds(changed) / self._seconds(self.forecast)
        yield Remedy(
            settings, changed.needed, price + (f"; takes about {slower:.2f} times as long" if slower > 1.02 else "")
        )

    def _seconds(self, forecast: Forecast) -> float:
        """Seconds that a step would take with another forecast, by what is assumed of the device; where nothing is, its
        operations."""
        tokens = self.own_step.tokens
        operations = forecast.operations(self.load).total / self.load.tokens * tokens
        step = Step(operations, tokens, max(1, -(-tokens // forecast.amount.tokens)), forecast.unpacked)
        by = _speed(self.shape, self.device, forecast)
        return operations if by is None else by.seconds(step).likely

    @property
    def disk(self) -> Disk | None:
        """What the run takes while it trains; None where its number of steps is not known."""
        if self.steps is None:
            return None
        trained, averages = self.forecast.parameters.trainable, self.config.adapter.averages
        each = EXACT * trained * (3 + averages)
        return Disk.of(trained, each, self.config.training, self.config.validation, self.steps)

    @property
    def conversion(self) -> Conversion | None:
        """That the first training of a base in fewer bits begins with."""
        return conversion_of(self.shape, self.forecast.storage)

    def on(self, device: Device) -> Forecast:
        counted, compiled = self.forecast.parameters, self.forecast.compiled
        return planned_forecast(self.config, self.shape, device, self.amount, counted=counted, compiled=compiled)

    @cached_property
    def methods(self) -> dict[str, Forecast]:
        """The one that was asked for, and the others with what is usual for them."""
        own = self.config.adapter.method
        usual = {spec.method: spec for spec in (config() for config in COMPARED)}
        usual.pop(own, None)
        return {own: self.forecast} | {
            method: planned_forecast(
                self.config, self.shape, self.device, self.amount, spec, compiled=self.forecast.compiled
            )
            for method, spec in usual.items()
        }

    @property
    def rows_in_step(self) -> int:
        """How many rows all processes together train on in one step."""
        return rows_in_step(self.config.training, self.rows)

    @property
    def largest_share(self) -> float:
        """The largest share of a step's tokens that one process has, for which all others wait."""
        return self.processes.largest_share(self.config.training, self.rows)

    @property
    def sharded_peak(self) -> int | None:
        """Bytes in each process where the base is split over all; None where it is stored in fewer bits."""
        return sharded_peak(self.forecast, self.processes)

    def changed(self, *settings: str) -> Forecast | None:
        """The forecast with some settings changed; None where they leave no row."""
        changed = with_settings(self.config.explicit, *settings)
        rows, limit = self.rows, longest_of(changed, self.shape)
        if rows is not None and limit < self.amount.longest:
            rows = rows.shorter(limit)
            if not rows.drawn:
                return None
        return planned(changed, self.shape, self.device, rows, None, processes=self.processes).forecast


def plan_for(
    shape: ModelShape, tokens: TokenCounter, config: Planned, *, device: str | None = None, price: float | None = None,
    probe: Probe | None = None, on: Device | None = None, processes: Processes = ONE_PROCESS,
) -> Plan:  # fmt: skip
    """`device` is one of the list (`rtx-4090`) or `cpu`, by default what is here; `on` is known to be used, with the
    memory that each process has."""
    if price is not None and not 0 < price < 1e9:
        raise ConfigError([f"price is {price:g}; a number above 0 is expected."])
    if probe is not None:
        refuse_elsewhere(device)
    rows, data = rows_of_training(config, shape, tokens), config.data
    apart = rows is not None and data is not None and bool(rows.held_out or data.validation)
    config = config.with_defaults(rows=rows.count if rows is not None else 1, has_validation=apart, by="loss")
    found = on or processes.part_of(planned_device(device, config), here=device in HERE)
    return planned(config, shape, found, rows, probe, price, here=device in HERE, processes=processes)


def planned(
    config: Planned, shape: ModelShape, device: Device, rows: PlannedRows | None, probe: Probe | None,
    price: float | None = None, *, here: bool = True, processes: Processes = ONE_PROCESS,
) -> Plan:  # fmt: skip
    device = device.within_limit(config.model.memory_bytes)
    own = config.model_copy(update={"training": processes.of_one(config.training, rows)})
    amounts = largest_batches(own, shape, rows)
    forecasts = [(amount, planned_forecast(config, shape, device, amount)) for amount in amounts]
    amount, first = max(forecasts, key=lambda item: item[1].peak)
    speed = probe or _speed(shape, device, first)
    plan = Plan(
        config,
        shape,
        device,
        rows=rows,
        amount=amount,
        forecast=first,
        speed=speed,
        price=price,
        here=here,
        processes=processes,
    )
    if not plan.may_compile:
        return plan
    again = planned_forecast(config, shape, device, amount, counted=first.parameters, compiled=True)
    return replace(plan, forecast=again)


def _speed(shape: ModelShape, device: Device, forecast: Forecast) -> Speed | None:
    blocks = shape.blocks
    return speed_of(
        device,
        forecast.dtype,
        blocks.count,
        images=shape.mostly,
        storage=forecast.storage,
        int8=forecast.int8,
        width=blocks.width,
        form=forecast.form,
    )
