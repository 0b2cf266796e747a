"""`rankwise compare`: evaluated runs against the first of them, item against item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.display import print_json
from rankwise.cli.failures import failures_told
from rankwise.cli.options import Json
from rankwise.cli.visible import visible

if TYPE_CHECKING:
    from rankwise.runs.comparisons import ComparedTask, Comparison, Differing

HEADS = ("task", "metric", "n", "a", "b", "difference", "95 %", "p", "verdict")
LONGEST_VALUE, MOST_DIFFERING = 60, 12


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="The run to compare with, and the others: names, folders, or files of `evaluate --out`.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say how evaluated runs differ, how sure that is, and what else is not the same."""
    with failures_told(as_json):
        from rankwise.commands.compare import compare as compare_verb

        compared = compare_verb(runs)
        if as_json:
            print_json(compared.summary())
        else:
            typer.echo(visible("\n\n".join("\n".join(_lines(one)) for one in compared.comparisons)))


def _lines(one: Comparison) -> list[str]:
    lines = [f"b {one.b} against a {one.a}"]
    rows = [row for task in one.tasks for row in _rows(task)]
    if rows:
        widths = [max(len(row[at]) for row in [HEADS, *rows]) for at in range(len(HEADS))]
        lines += ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
                  for row in [HEADS, *rows]]  # fmt: skip
    else:
        lines.append("no task was evaluated of both, so nothing can be said about which is better")
    lines += [f"{task.task}: {task.unpaired}" for task in one.tasks if task.unpaired]
    lines += [f"{task.task}: {metric} is not compared: {why}" for task in one.tasks
              for metric, why in task.set_apart.items()]  # fmt: skip
    lines += [f"{task.task}: {metric} cannot tell: {found.undecided}" for task in one.tasks
              for metric, found in task.differences.items() if found.undecided]  # fmt: skip
    lines += [line for task in one.tasks for line in _listed(f"{task.task} was asked with other", task.settings)]
    lines += [f"{name} alone was evaluated on {', '.join(only)}"
              for name, only in ((one.a, one.only_a), (one.b, one.only_b)) if only]  # fmt: skip
    lines += _forgetting(one)
    for what, found in (("settings", one.settings), ("data", one.data), ("base model", one.base_model)):
        lines += _listed(what, found)
    lines += _cost(one.cost)
    return lines + _listed("versions and machine", one.made_with)


def _rows(task: ComparedTask) -> list[tuple[str, ...]]:
    rows = []
    for metric in [*task.a, *(name for name in task.b if name not in task.a)]:
        a, b = (f"{side[metric].value:.4g}" if metric in side else "-" for side in (task.a, task.b))
        n = f"{task.n_a:,}" if task.n_a == task.n_b else f"{task.n_a:,}/{task.n_b:,}"
        found = task.differences.get(metric)
        told = ("-", "-", "-", "not compared") if found is None else (
            f"{found.difference:+.4g}", f"{found.low:+.4g} to {found.high:+.4g}", f"{found.p:.4f}", found.verdict
        )  # fmt: skip
        rows.append((task.task, metric, n, a, b, *told))
    return rows


def _forgetting(one: Comparison) -> list[str]:
    if one.forgetting is None:
        return []
    a, b = (
        f"{side.kl:.4g} ({side.low:.4g} to {side.high:.4g}) on {side.text}" if side else "not measured"
        for side in (one.forgetting.a, one.forgetting.b)
    )
    verdict = one.forgetting.verdict or f"not compared: {one.forgetting.incomparable}"
    apart = "".join(
        f"; {name} by {found.difference:+.4g} ({found.low:+.4g} to {found.high:+.4g})"
        for name, found in one.forgetting.differences.items()
    )
    return [f"moved from the base, KL in nats per token: a {a}; b {b}{apart}: {verdict}"]


def _listed(what: str, found: list[Differing]) -> list[str]:
    """What both have and is not the same. A setting that only one method has says nothing about the other."""
    if not found:
        return []
    both = [one for one in found if not one.one_sided]
    shown = [f"  {one.key}: {_short(one.a)} and {_short(one.b)}" for one in both[:MOST_DIFFERING]]
    rest, alone = len(both) - len(shown), len(found) - len(both)
    more = [f"  and {rest} more (--json has all)"] if rest else []
    only = [f"  {alone} that only one of the two has (--json lists them)"] if alone else []
    return [f"{what}:", *shown, *more, *only]


def _cost(found: list[Differing]) -> list[str]:
    from rankwise.reporting.costs import COSTS, cost_text

    shown = [f"  {COSTS[one.key][0]}: {cost_text(one.key, one.a)} and {cost_text(one.key, one.b)}"
             for one in found if one.key in COSTS]  # fmt: skip
    return ["cost:", *shown] if shown else []


def _short(value: object) -> str:
    from rankwise.reporting.quantities import recorded

    said = " ".join(recorded(value).split())
    return said if len(said) <= LONGEST_VALUE else f"{said[: LONGEST_VALUE - 3]}..."
