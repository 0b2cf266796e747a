"""`rankwise compare`: compare evaluated runs with the first of them, item by item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rankwise.cli.display import print_result
from rankwise.cli.failures import report_failures
from rankwise.cli.options import Json, argument
from rankwise.cli.words import aligned

if TYPE_CHECKING:
    from rankwise.runs.evaluations import ComparedTask, Comparison, Differing

HEADS = ("task", "metric", "n", "a", "b", "difference", "95 %", "p", "verdict")
LONGEST_VALUE, MOST_DIFFERING = 60, 12


def compare(
    runs: Annotated[
        list[str],
        argument("The run to compare with, then the other runs: names, folders, or files of `evaluate --out`."),
    ],
    as_json: Json = False,
) -> None:
    """Compare evaluated runs: scores with confidence intervals, settings, data and cost."""
    with report_failures(as_json):
        from rankwise.commands.compare import compare as compare_command

        compared = compare_command(runs)
        blocks = ["\n".join(_lines(one)) for one in compared.comparisons]
        print_result(as_json, compared.summary(), "\n\n".join(blocks))


def _lines(one: Comparison) -> list[str]:
    lines = [f"b {one.b} against a {one.a}"]
    rows = [row for task in one.tasks for row in _rows(task)]
    if rows:
        lines += aligned([HEADS, *rows])
    else:
        lines.append("no task was evaluated for both runs, so it is not known which one is better")
    lines += [f"{task.task}: {task.unpaired}" for task in one.tasks if task.unpaired]
    lines += [f"{task.task}: {metric} is not compared: {why}" for task in one.tasks
              for metric, why in task.set_apart.items()]  # fmt: skip
    lines += [f"{task.task}: {metric} cannot tell: {difference.undecided}" for task in one.tasks
              for metric, difference in task.differences.items() if difference.undecided]  # fmt: skip
    lines += [line for task in one.tasks for line in _listed(f"different settings of {task.task}", task.settings)]
    lines += [f"only {name} was evaluated on {', '.join(only)}"
              for name, only in ((one.a, one.only_a), (one.b, one.only_b)) if only]  # fmt: skip
    lines += _forgetting(one)
    for what, differing in (("settings", one.settings), ("data", one.data), ("base model", one.base_model)):
        lines += _listed(what, differing)
    lines += _cost(one.cost)
    return lines + _listed("versions and machine", one.made_with)


def _rows(task: ComparedTask) -> list[tuple[str, ...]]:
    rows = []
    for metric in [*task.a, *(name for name in task.b if name not in task.a)]:
        a, b = (f"{side[metric].value:.4g}" if metric in side else "-" for side in (task.a, task.b))
        n = f"{task.n_a:,}" if task.n_a == task.n_b else f"{task.n_a:,}/{task.n_b:,}"
        difference = task.differences.get(metric)
        cells = ("-", "-", "-", "not compared") if difference is None else (
            f"{difference.difference:+.4g}", f"{difference.low:+.4g} to {difference.high:+.4g}",
            f"{difference.p:.4f}", difference.verdict,
        )  # fmt: skip
        rows.append((task.task, metric, n, a, b, *cells))
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
        f"; {name} by {change.difference:+.4g} ({change.low:+.4g} to {change.high:+.4g})"
        for name, change in one.forgetting.differences.items()
    )
    return [f"change from the base model, KL in nats per token: a {a}; b {b}{apart}: {verdict}"]


def _listed(what: str, differing: list[Differing]) -> list[str]:
    """List values that differ. Settings that only one of the two methods has are counted and not listed."""
    if not differing:
        return []
    both = [one for one in differing if not one.one_sided]
    shown = [f"  {one.key}: {_short(one.a)} and {_short(one.b)}" for one in both[:MOST_DIFFERING]]
    rest, alone = len(both) - len(shown), len(differing) - len(both)
    more = [f"  and {rest} more (--json has all)"] if rest else []
    only = [f"  {alone} in only one of the two (--json lists them)"] if alone else []
    return [f"{what}:", *shown, *more, *only]


def _cost(differing: list[Differing]) -> list[str]:
    from rankwise.reporting.quantities import COSTS, cost_text

    shown = [f"  {COSTS[one.key][0]}: {cost_text(one.key, one.a)} and {cost_text(one.key, one.b)}"
             for one in differing if one.key in COSTS]  # fmt: skip
    return ["cost:", *shown] if shown else []


def _short(value: object) -> str:
    from rankwise.reporting.quantities import recorded

    text = " ".join(recorded(value).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
