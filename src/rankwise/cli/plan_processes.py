"""The processes of a plan as text: how a step is shared, what is sent, and what a sharded base would take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.cli.plan_numbers import row_text, size_text

if TYPE_CHECKING:
    from rankwise.planning.plan import Plan
    from rankwise.planning.several import Several


def processes_of(plan: Plan) -> Iterator[str]:
    from rankwise.planning.several import several_of

    several = several_of(plan)
    if several is None:
        return
    count = several.processes.count
    own = "which share its cores and memory" if plan.device.kind == "processor" else "each with a card of its own"
    yield row_text("processes", f"{count} on one machine, {own}; {_share(several)}")
    if several.idle:
        yield row_text(
            "", f"{several.idle} of them have no rows, since a step has {several.rows}; raise --batch-size or use fewer"
        )
    yield row_text(
        "", f"they add up {size_text(several.gradients)} of gradients in each step, for which no time is counted"
    )
    if several.sharded_peak is not None:
        sizes = f"{size_text(several.sharded_peak)} of memory in each instead of {size_text(plan.forecast.peak)}"
        yield row_text("sharded", f"over {count} processes: {sizes}")


def _share(several: Several) -> str:
    least = -(-several.rows // several.processes.count)
    rows = f"{least} of the {several.rows} rows of a step"
    return f"the largest share has {rows}, {several.largest_share:.1%} of the tokens"
