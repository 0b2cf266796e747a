"""The processes of a plan as text: how a step is shared, what is sent, and what a sharded base would take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.cli.plan_numbers import row_text, size_text, wait_text

if TYPE_CHECKING:
    from rankwise.planning.exchange import Exchange
    from rankwise.planning.plan import Plan
    from rankwise.planning.several import Several


def processes_of(plan: Plan) -> Iterator[str]:
    from rankwise.planning.several import several_of

    several = several_of(plan)
    if several is None:
        return
    count = several.processes.count
    yield row_text("processes", f"{_where(several, plan)}; {_share(several)}")
    if several.idle:
        yield row_text(
            "", f"{several.idle} of them have no rows, since a step has {several.rows}; raise --batch-size or use fewer"
        )
    yield row_text("all-reduce", _sums(several.exchange))
    if several.speedup is not None:
        yield row_text("", f"a step is {several.speedup:.3g} times as fast as with one process")
    if (base := several.sharded) is not None:
        yield row_text(
            "sharded",
            f"over {count} processes: {size_text(base.peak)} of memory in each instead of "
            f"{size_text(plan.forecast.peak)}; each receives {size_text(base.received)} of weights in a step, "
            f"{wait_text(base.seconds)} where nothing overlaps",
        )


def _where(several: Several, plan: Plan) -> str:
    processes = several.processes
    machines = "one machine" if processes.nodes == 1 else f"{processes.nodes} machines"
    if plan.device.kind == "processor":
        return f"{processes.count} on {machines}, which share its cores and memory"
    return f"{processes.count} on {machines}, each with a card of its own"


def _share(several: Several) -> str:
    least = -(-several.rows // several.processes.count)
    rows = f"{least} of the {several.rows} rows of a step"
    return f"the largest share has {rows}, {several.largest_share:.1%} of the tokens"


def _sums(exchange: Exchange) -> str:
    links = ", ".join(
        f"{link.name} {link.rate / 1e9:,.3g} GB/s of which {link.share.likely:.0%} ({link.share.low:.0%} to "
        f"{link.share.high:.0%})" for link in exchange.links
    )  # fmt: skip
    return (
        f"{size_text(exchange.gradients)} of gradients in float32, of which each process sends "
        f"{size_text(exchange.sent)} in a step: {wait_text(exchange.seconds)}; assumed: {links}"
    )
