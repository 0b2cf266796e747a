"""`rankwise watch`: follow runs in a terminal, with their curves; plain lines elsewhere, or their records as JSON.

Each column of a curve is the mean of its share of the values:

    3.21 |#.
         |##..
    1.87 |####....

With UTF-8 the blocks of Unicode divide each line into eight levels; without, a line has the two levels of `.` and `#`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rankwise.cli.display import SECONDS_BETWEEN_LINES
from rankwise.cli.failures import report_failures
from rankwise.cli.options import argument, option
from rankwise.cli.words import visible
from rankwise.config.base import JsonObject
from rankwise.reporting.quantities import rough_duration
from rankwise.reporting.sparkline import bucket_means
from rankwise.runs.listing import run_names

if TYPE_CHECKING:
    from rankwise.commands.watch import WatchedRun


NARROWEST = 46
"""Columns that a run needs beside another one; with fewer, runs stand one above the other."""
LABEL, FEWEST, LOSS_LINES = 24, 8, 5
"""Columns of a label and, at least, of a curve; lines of the curve of the loss."""
CURVES = (
    ("validation", "validation", "loss", "{:.4f}"), ("learning rate", "step", "learning_rate", "{:.2e}"),
    ("gradient norm", "step", "gradient_norm", "{:.3f}"), ("tokens/s", "step", "tokens_per_second", "{:,.0f}"),
    ("memory GB", "step", "resident_bytes", "{:.2f}"), ("KL to base", "step", "divergence", "{:.3f}"),
    ("margin", "step", "margin", "{:.3f}"), ("mean rank", "ranks", "mean", "{:.2f}"),
)  # fmt: skip
"""Label, kind of record, name and form of the last value. Those without values are left out."""
BLOCKS, SIGNS = " ▁▂▃▄▅▆▇█", " .#"
EMPTY = ""


def watch(
    runs: Annotated[
        list[str] | None,
        argument(
            "Run names. Runs that haven't started yet are waited for.  [default: the runs in training now]",
            autocompletion=run_names,
        ),
    ] = None,
    as_json: Annotated[
        bool, option("Print each record as a line of JSON with the run's name.", "--json")
    ] = False,
) -> None:  # fmt: skip
    """Watch runs train in other processes, with live curves, until they end. Exit codes: 0 finished, 1 failed,
    130 interrupted."""
    with report_failures(as_json):
        from rankwise.commands.watch import exit_code, watched

        followed = watched(runs or ())
        console = Console(highlight=False)
        if as_json:
            _stream(followed)
        elif console.is_terminal and not console.is_dumb_terminal:
            _live(followed, console)
        else:
            _lines(followed)
    raise typer.Exit(exit_code(followed))


def _stream(runs: Sequence[WatchedRun]) -> None:
    from rankwise.commands.watch import watch as looks

    for news in looks(runs):
        for run, rows in news:
            for row in rows:
                print(json.dumps({"run": run.name, **row}), flush=True)
    for run in runs:
        end = {"run": run.name, "kind": "end", "status": run.state, "problem": run.problem, "exit_code": run.exit_code}
        print(json.dumps(end), flush=True)


def _lines(runs: Sequence[WatchedRun]) -> None:
    """One line for each validation, and for a step every ten seconds."""
    from rankwise.commands.watch import watch as looks

    written, states = dict[str, float](), dict[str, str]()
    for news in looks(runs):
        for run, rows in news:
            for text in _news(run, rows, written, changed=states.get(run.name) != run.state):
                typer.echo(f"{visible(run.name)}: {text}")
            states[run.name] = run.state


def _news(run: WatchedRun, rows: Sequence[JsonObject], printed: dict[str, float], changed: bool) -> Iterator[str]:
    """Lines of one run; `printed` has the time of its last line of a step."""
    if changed and not run.has_ended:
        yield WORDS[run.state]
    yield from _events(rows)
    steps = [row for row in rows if row["kind"] == "step"]
    last = bool(steps) and steps[-1].get("step") == steps[-1].get("steps")
    if steps and (last or time.monotonic() - printed.get(run.name, -1e9) >= SECONDS_BETWEEN_LINES):
        printed[run.name] = time.monotonic()
        yield _step_line(run, steps[-1])
    if changed and run.has_ended:
        yield _ended(run)


WORDS = {
    "waiting": "has not begun yet; waiting for it (Ctrl-C stops)", "starting": "is starting", "running": "is training",
}  # fmt: skip


def _ended(run: WatchedRun) -> str:
    return run.state if run.problem is None else f"{run.state}: {visible(run.problem)}"


def _events(rows: Sequence[JsonObject]) -> Iterator[str]:
    for row in rows:
        match row["kind"]:
            case "validation":
                yield f"validation loss after step {_count(row, 'step')}: {_number(row.get('loss'), '{:.4f}')}"
            case "budget":
                divergence = _number(row.get("divergence"), "{:.4f}")
                yield f"forgetting after step {_count(row, 'step')}: {divergence} nats per token"
            case "back-off":
                yield f"training diverged and went back to step {_count(row, 'step')}"


def _step_line(run: WatchedRun, row: JsonObject) -> str:
    parts = [
        f"step {_count(row, 'step')}/{_count(row, 'steps')}", f"loss {_number(row.get('loss'), '{:.4f}')}",
        f"gradient norm {_number(row.get('gradient_norm'), '{:.3f}')}",
        f"{_number(row.get('tokens_per_second'), '{:,.0f}')} tokens/s",
        f"{_number(row.get('resident_bytes'), '{:.1f}', 1e9)} GB",
    ]  # fmt: skip
    left = run.seconds_left
    return "  ".join(parts) + ("" if left is None else f", {rough_duration(left)} left")


def _number(value: Any, form: str, unit: float = 1.0) -> str:
    from rankwise.commands.watch import is_number

    return form.format(value / unit) if is_number(value) else "-"


def _count(row: JsonObject, name: str) -> str:
    return _number(row.get(name), "{:.0f}")


def _live(runs: Sequence[WatchedRun], console: Console) -> None:
    from rankwise.commands.watch import watch as looks

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        shown: object = None
        for news in looks(runs):
            states = [run.state for run in runs]
            if any(rows for _, rows in news) or (console.width, states) != shown:
                live.update(picture(runs, console.width, _has_blocks(console)), refresh=True)
                shown = console.width, states


def _has_blocks(console: Console) -> bool:
    return console.encoding.lower().replace("-", "") == "utf8"


def picture(runs: Sequence[WatchedRun], width: int, blocks: bool) -> RenderableType:
    """All runs, side by side where there is room."""
    beside = max(1, min(len(runs), width // NARROWEST))
    each = (width - 2 * (beside - 1)) // beside
    grid = Table.grid(padding=(0, 2, 0, 0), collapse_padding=True, pad_edge=False)
    for _ in range(beside):
        grid.add_column(width=each, no_wrap=True, overflow="crop")
    for at in range(0, len(runs), beside):
        grid.add_row(*(one_run(run, each, blocks) for run in runs[at : at + beside]))
    return grid


def one_run(run: WatchedRun, width: int, blocks: bool) -> Group:
    """The lines of one run, none wider than `width`."""
    lines = [Text(visible(run.name)[:width], style="bold"), *(Text(line[:width]) for line in _head(run, width))]
    room = width - LABEL
    losses = run.curve("step", "loss")
    if losses and room >= FEWEST:
        columns = chart(losses, room, LOSS_LINES, blocks)
        labels = [f"loss {losses[-1]:.4f}", f"high {max(losses):.4f}", "", "", f"low {min(losses):.4f}"]
        lines += [_line(*both) for both in zip(labels, columns, strict=True)]
    elif losses:
        lines.append(Text(f"loss {losses[-1]:.4f}"))
    for label, kind, name, form in CURVES:
        values = _ranks(run) if kind == "ranks" else run.curve(kind, name)
        if values:
            last = form.format(values[-1] / (1e9 if name == "resident_bytes" else 1))
            [line] = chart(values, room, 1, blocks) if room >= FEWEST else [""]
            lines.append(_line(f"{label} {last}", line))
    for line in lines:
        line.truncate(width)
    return Group(*lines)


def _line(label: str, curve: str) -> Text:
    return Text(f"{label:<{LABEL}}") + Text(curve, style="cyan")


def _ranks(run: WatchedRun) -> list[float]:
    from rankwise.commands.watch import is_number

    ranks = [row["ranks"] for row in run.of_kind("ranks") if isinstance(row.get("ranks"), dict) and row["ranks"]]
    return [sum(map(float, one.values())) / len(one) for one in ranks if all(map(is_number, one.values()))]


def _head(run: WatchedRun, width: int) -> Iterator[str]:
    from rankwise.commands.watch import is_number

    steps = run.of_kind("step")
    if steps:
        row, left = steps[-1], run.seconds_left
        done, total = row.get("step"), row.get("steps")
        share = max(0.0, min(1.0, done / total)) if is_number(done) and is_number(total) and total >= 1 else 0.0
        bar = max(0, min(20, width - 40))
        filled = round(bar * share)
        counted = f"{_number(done, '{:,.0f}')}/{_number(total, '{:,.0f}')}"
        yield f"{'#' * filled}{'-' * (bar - filled)} {counted} {share:.0%}" + (
            "" if left is None else f"  {rough_duration(left)} left"
        )
    yield _ended(run) if run.has_ended else WORDS[run.state]


def chart(values: Sequence[float], width: int, height: int, blocks: bool = True) -> list[str]:
    """Lines from the top, each of `width` characters at most. Values that are not finite leave their column empty."""
    columns = bucket_means(values, width)
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return [EMPTY] * height
    low, high, levels = min(finite), max(finite), BLOCKS if blocks else SIGNS
    fine = len(levels) - 1
    heights = [
        1 + round(_share(one, low, high) * (height * fine - 1)) if math.isfinite(one) else None for one in columns
    ]
    return ["".join(_sign(one, line, levels) for one in heights).rstrip() for line in reversed(range(height))]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if 0 < high - low < math.inf else 0.5


def _sign(filled: int | None, line: int, levels: str) -> str:
    fine = len(levels) - 1
    return levels[0] if filled is None else levels[max(0, min(fine, filled - line * fine))]
