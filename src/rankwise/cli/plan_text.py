"""A plan as text: trained parameters, memory, whether it fits, processes, time, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.config.incompatible import excludes
from rankwise.config.objectives import OBJECTIVES
from rankwise.reporting.quantities import rough_duration, size

if TYPE_CHECKING:
    from rankwise.planning.estimate import Estimate
    from rankwise.planning.plan import Plan

COLUMN = 14
BACKENDS = {"fast": "fused", "plain": "eager"}
PROBE = "; --probe measures it"


def lines_of(plan: Plan) -> list[str]:
    trained = _disk, _memory, _conversion, _fit, _processes, _time, _tuning, _devices, _to_change
    others = trained if plan.trained else (_memory_at_least, _conversion)
    return [line for part in (_model, _parameters, _rows, *others) for line in part(plan)]


def _model(plan: Plan) -> Iterator[str]:
    shape, made, method = plan.shape, plan.forecast, plan.config.adapter.method
    yield row_text("model", f"{shape.name}: {shape.parameters:,} parameters, {shape.family}, {_blocks(plan)}")
    yield row_text(
        "training", f"{method} in {made.dtype}{_storage(plan)} on {plan.device.name}, {BACKENDS[made.form]} backend"
    )
    if shape.outputs is not None:
        predicts = "a number" if shape.outputs == 1 else f"one of {shape.outputs:,} {shape.task.names}"
        assumed = "" if plan.rows is not None else ", which is assumed, since no --data is given"
        row = shape.task.unit.format(shape.image)
        yield row_text("", f"a classifier that predicts {predicts} for each {row}{assumed}")
    if not plan.trained:
        yield from _untrained(plan)


def _storage(plan: Plan) -> str:
    made = plan.forecast
    stored = {"nf4": " over a base in nf4", "int8": " over a base in int8", "file": " over the GGUF file as it lies"}
    return stored.get(made.storage, "") + (", weights given back after each use," if made.given_back else "")


def _untrained(plan: Plan) -> Iterator[str]:
    objective = OBJECTIVES["auto"].decided(plan.shape.nature, lambda: False)
    yield row_text("", plan.shape.task.unplanned)
    if not excludes("adapter.method=head", "objective", objective.name):
        yield row_text("", f"with --data or --objective {objective.name}, a classifier with a new head is planned")


def _blocks(plan: Plan) -> str:
    if plan.shape.block_count == 1:
        return f"{len(plan.shape.layers):,} layers"
    return " + ".join(f"{stack.count} blocks of width {stack.width:,}" for stack in plan.shape.stacks)


def _parameters(plan: Plan) -> Iterator[str]:
    from rankwise.planning.parameters import target_notes

    counted = plan.forecast.parameters
    most = "" if counted.exact else "at most "
    if counted.trainable == counted.total:
        yield row_text("parameters", f"all {counted.total:,} are trained")
        return
    yield row_text(
        "parameters",
        f"{most}{counted.trainable:,} of {counted.total:,} are trained ({counted.share:.4%}); full fine-tuning would "
        f"train {counted.ratio:,.0f} times as many",
    )
    for leaf, (layers, trainable) in counted.by_leaf.items():
        yield row_text("", f"{leaf:<18}{layers:>5} layer{'s' if layers > 1 else ' '}  {trainable:>15,}")
    yield from (row_text("", note) for note in target_notes(plan.shape, plan.config.adapter))
    if (left := counted.left) is not None:
        first, last = left.in_units
        yield row_text(
            "",
            f"pruned from {first:,} {left.unit} to {last:,}, which leaves {left.least:,} to {left.most:,} parameters",
        )
    if counted.file_bytes is not None and counted.file_bytes_half is not None:
        yield row_text(
            "adapter",
            f"{most}{size(counted.file_bytes)} in float32; in float16 {size(counted.file_bytes_half)}, "
            f"of which {size(2 * counted.written_bytes)} are values and the rest is the header",
        )


def _disk(plan: Plan) -> Iterator[str]:
    disk = plan.disk
    if disk is None:
        return
    parts = [f"{size(disk.result)} for the result"]
    if disk.checkpoints:
        parts.append(
            f"{disk.checkpoints} x {size(disk.checkpoint)} for checkpoints (--keep-checkpoints "
            f"{disk.checkpoints - 1}, and one while it is written)"
        )
    if disk.snapshots:
        parts.append(f"{disk.snapshots} x {size(disk.result)} for the best so far")
    yield row_text("disk", f"{size(disk.total)} while it trains: {', '.join(parts)}")


def _rows(plan: Plan) -> Iterator[str]:
    rows = plan.rows
    if rows is None:
        if plan.trained:
            what = f"{plan.shape.task.documents} of {plan.amount.longest:,} tokens"
            yield row_text("rows", f"no --data: assumes full micro-batches and {what}")
        return
    if plan.shape.image is not None:
        yield from _images(plan)
        return
    about = "" if rows.exact else "about "
    yield row_text(
        "rows",
        f"{about}{rows.documents.likely:,.0f} {'pairs' if rows.of_pairs else 'sequences'}, "
        f"{rows.tokens.likely:,.0f} tokens{between_text(rows.tokens, '{:,.0f}')}, "
        f"{plan.shape.task.learned_share(rows.supervised_share)}; "
        f"{plan.shape.task.lengths.format(rows.median, rows.longest_text)}",
    )
    if rows.replayed:
        yield row_text("", f"{rows.replayed:,.0f} of the sequences are replay rows")
    if rows.too_long >= 1:
        yield row_text("", f"about {rows.too_long:,.0f} rows are longer than --max-length")
    if plan.steps is not None:
        tokens = f"{plan.step.tokens:,.0f} tokens{plan.shape.task.padding}"
        yield row_text("steps", f"{plan.most}{plan.steps:,}, each of about {tokens}")


def _images(plan: Plan) -> Iterator[str]:
    rows, each = plan.rows, plan.shape.patches
    assert rows is not None, "only called with rows"
    yield row_text(
        "images", f"{rows.documents.likely:,.0f}, each counted as {each:,} tokens (patches of 16 x 16 pixels)"
    )
    if plan.steps is not None:
        tokens = plan.step.tokens
        yield row_text(
            "steps", f"{plan.most}{plan.steps:,}, each of about {tokens / each:,.0f} images ({tokens:,.0f} tokens)"
        )


def _memory(plan: Plan) -> Iterator[str]:
    methods = plan.methods
    yield row_text("memory", "".join(f"{method:>12}" for method in methods) + f"   formula for {next(iter(methods))}")
    for part in plan.forecast.memory.parts:
        cells = "".join(f"{size(forecast.memory[part.name]):>12}" for forecast in methods.values())
        yield row_text(f"  {part.name}", f"{cells}   {part.formula}")
    yield row_text("  peak", "".join(f"{size(forecast.peak):>12}" for forecast in methods.values()))


def _memory_at_least(plan: Plan) -> Iterator[str]:
    """The least memory that a language model needs whose activations are not known, such as a mixture of experts."""
    if plan.shape.task.planned:
        memory = plan.forecast.memory
        learning = memory.at_least - memory["weights"]
        yield row_text(
            "memory",
            f"at least {size(memory.at_least)}: {size(memory['weights'])} of weights, and "
            f"{size(learning)} of what is trained, its gradients and the optimizer's averages; "
            "activations are not counted",
        )


def _conversion(plan: Plan) -> Iterator[str]:
    if (conversion := plan.conversion) is not None:
        disk, seconds = size(conversion.disk), rough_duration(conversion.seconds)
        yield row_text("conversion", f"once for each model: {disk} on disk, about {seconds}")


def _fit(plan: Plan) -> Iterator[str]:
    fit, twice = plan.fit, plan.forecast.recomputed
    each = f" for each of {plan.processes.count} processes" if plan.processes.is_several else ""
    room = f"{size(fit.device.usable)} on {fit.device.name}{each}"
    blocks = f", with activation checkpointing of {twice} of {plan.shape.block_count} blocks" if twice else ""
    if fit.fits:
        text = f"yes: {size(fit.peak)} of {room}{blocks}; up to {fit.tokens:,} tokens fit into one micro-batch"
    else:
        text = f"no: needs {size(fit.peak)}{blocks}, but only {room} are available"
    yield row_text("fits", text)


def _processes(plan: Plan) -> Iterator[str]:
    count, rows, sharded = plan.processes.count, plan.rows_in_step, plan.sharded_peak
    if not plan.processes.is_several:
        return
    own = "which share its cores and memory" if plan.device.kind == "processor" else "each with a card of its own"
    share = f"the largest share has {-(-rows // count)} of the {rows} rows of a step, "
    share += f"{plan.largest_share:.1%} of the tokens"
    yield row_text("processes", f"{count} on one machine, {own}; {share}")
    if (idle := count - rows) > 0:
        yield row_text("", f"{idle} of them have no rows, since a step has {rows}; raise --batch-size or use fewer")
    gradients = size(plan.forecast.memory["gradients"])
    yield row_text("", f"they add up {gradients} of gradients in each step, for which no time is counted")
    if sharded is not None:
        sizes = f"{size(sharded)} of memory in each instead of {size(plan.forecast.peak)}"
        yield row_text("sharded", f"over {count} processes: {sizes}")


def _time(plan: Plan) -> Iterator[str]:
    yield row_text("operations", f"{plan.flops_per_token / 1e9:,.3g} GFLOP per token")
    duration, speed = plan.duration, plan.speed
    if duration is None or speed is None:
        yield row_text("time", "not known for this device" + (PROBE if plan.here else ""))
        return
    step = f"{duration.step.likely:.3g} s per step" + ("" if plan.fit.fits else ", if it fit into memory")
    if plan.steps is None:
        yield row_text("time", f"{step}{between_text(duration.step, '{:.2g}')}")
    else:
        yield row_text(
            "time", f"{plan.most}{rough_duration(duration.total.likely)}{spread_text(duration.total)}, {step}"
        )
        yield row_text("", f"{plan.most}{rough_duration(duration.command)} with start, loading and encoding")
    yield row_text("", _speed(plan))
    if (money := plan.money) is not None:
        yield row_text("money", f"{money.likely:,.2f}{between_text(money, '{:,.2f}')} at {plan.price:g} per hour")


def _tuning(plan: Plan) -> Iterator[str]:
    from rankwise.planning.tuning import TOO_COSTLY, tuning_of

    planned = tuning_of(plan)
    if planned is None:
        return
    trials, seconds = planned
    if trials is None:
        yield row_text("tuning", f"the default learning rate, because {TOO_COSTLY}")
        return
    time = "" if seconds is None else f", {rough_duration(seconds.likely)}{spread_text(seconds)}"
    share = trials.cost / trials.run_steps
    yield row_text(
        "tuning", f"{trials.trials} trials, as long as {trials.cost:.0f} steps ({share:.0%} of the run){time}"
    )


def _speed(plan: Plan) -> str:
    speed = plan.speed
    assert speed is not None, "only called with a speed"
    if speed.origin == "measured":
        line = f"{speed.constant:.3g} s per step and {speed.per_token * 1e3:.3g} ms per token"
        return f"measured: {line}, {speed.when}, {speed.machine}"
    share, rate = speed.efficiency.share, f"{speed.rate / 1e12:,.3g} TFLOP/s"
    assumed = f"assumed: {share.likely:.0%} ({share.low:.0%} to {share.high:.0%}) of the device's {rate}"
    if (beside := speed.preparation.likely) > 0:
        assumed += f", and {beside:.2g} s beside it for each micro-batch"
    return assumed + (PROBE if plan.here else "")


def _devices(plan: Plan) -> Iterator[str]:
    fits = plan.fits_elsewhere
    fitting = [fit.device.name for fit in fits if fit.fits and not fit.recomputed]
    checkpointed = [fit.device.name for fit in fits if fit.recomputed]
    too_small = [fit.device.name for fit in fits if not fit.fits and fit.recomputed is None]
    if fitting:
        yield row_text("fits on", " ".join(fitting))
    if checkpointed:
        yield row_text("fits on", "with activation checkpointing: " + " ".join(checkpointed))
    if too_small:
        yield row_text("too large for", " ".join(too_small))


def _to_change(plan: Plan) -> Iterator[str]:
    """Where it does not fit, after what it would; where it does, what takes less memory."""
    name, remedies = ("less memory", plan.savings) if plan.fit.fits else ("to change", plan.remedies)
    if not remedies and not plan.fit.fits:
        yield row_text(name, "no setting makes it fit; use a smaller model or a device with more memory")
    for at, remedy in enumerate(remedies):
        yield row_text("" if at else name, f"{remedy.settings}  ({size(remedy.peak)}): {remedy.price}")


def row_text(name: str, text: str) -> str:
    return f"{name:<{COLUMN}}{' '.join(text.splitlines())}"


def between_text(estimate: Estimate, form: str) -> str:
    return "" if estimate.exact else f" ({form.format(estimate.low)} to {form.format(estimate.high)})"


def spread_text(estimate: Estimate) -> str:
    return "" if estimate.exact else f" ({rough_duration(estimate.low)} to {rough_duration(estimate.high)})"
