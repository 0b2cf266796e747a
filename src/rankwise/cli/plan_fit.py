"""Whether a plan fits, where else it would, and what to change, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.cli.plan_numbers import row_text, size_text

if TYPE_CHECKING:
    from rankwise.planning.fitting import Remedy
    from rankwise.planning.plan import Plan


def fit_of_plan(plan: Plan) -> Iterator[str]:
    if not plan.trained:
        return
    fit, twice = plan.fit, plan.forecast.job.recomputed
    each = f" for each of {plan.processes.count} processes" if plan.processes.is_several else ""
    room = f"{size_text(fit.device.usable)} on {fit.device.name}{each}"
    blocks = f", with activation checkpointing of {twice} of {plan.shape.block_count} blocks" if twice else ""
    if fit.fits:
        text = f"yes: {size_text(fit.peak)} of {room}{blocks}; up to {fit.tokens:,} tokens fit into one micro-batch"
    else:
        text = f"no: needs {size_text(fit.peak)}{blocks}, but only {room} are available"
    yield row_text("fits", text)


def devices_of(plan: Plan) -> Iterator[str]:
    if not plan.trained:
        return
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


def remedies_of(plan: Plan) -> Iterator[str]:
    if not plan.trained or plan.fit.fits:
        return
    remedies = plan.remedies
    if not remedies:
        yield row_text("to change", "no setting makes it fit; use a smaller model or a device with more memory")
    yield from _listed("to change", remedies)


def savings_of(plan: Plan) -> Iterator[str]:
    """Where it fits. Where it does not, the changes after which it would are told instead."""
    if plan.trained and plan.fit.fits:
        yield from _listed("less memory", plan.savings)


def _listed(name: str, remedies: list[Remedy]) -> Iterator[str]:
    for at, remedy in enumerate(remedies):
        yield row_text("" if at else name, f"{remedy.settings}  ({size_text(remedy.peak)}): {remedy.price}")
