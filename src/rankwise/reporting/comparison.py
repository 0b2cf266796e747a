"""The report that compares several runs: each is compared with the first, and only differences are listed."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.reporting.charts import losses_chart
from rankwise.reporting.document import Document, Section, figure, folded, paragraph, table
from rankwise.reporting.markup import Content, Markup, Rows, element, joined
from rankwise.reporting.quality import chip, difference_cells, undecided, value
from rankwise.reporting.quantities import figure as number
from rankwise.reporting.quantities import recorded, share, within
from rankwise.reporting.training import outcome
from rankwise.reporting.verdict import FOLLOWING, counted, primary
from rankwise.runs.evaluations import ComparedForgetting, ComparedTask, Comparison, Differing, Forgetting
from rankwise.runs.snapshot import Candidate


def comparison_report(
    candidates: Sequence[Candidate], comparisons: Sequence[Comparison], *, drawn: bool = True
) -> Document:
    """Without drawings nothing is read of the steps."""
    listed = (
        ("settings", "Settings", [one.settings for one in comparisons]),
        ("data", "Data", [one.data for one in comparisons]),
        ("base_model", "Base model", [one.base_model for one in comparisons]),
        ("environment", "Versions and machine", [one.made_with for one in comparisons]),
    )
    sections = [_quality(comparisons), _forgetting(candidates, comparisons), _losses(candidates) if drawn else None,
            _cost(candidates, comparisons),
            *(_differing(key, title, candidates, differing) for key, title, differing in listed)]  # fmt: skip
    return Document(
        title=" \u00b7 ".join(one.name for one in candidates),
        over="rankwise comparison",
        verdict=_verdict(comparisons),
        remarks=[
            f"{one.name} is not finished ({one.run.manifest.status})."
            for one in candidates if one.run and one.run.manifest.status != "finished"
        ],
        sections=[section for section in sections if section is not None],
    )  # fmt: skip


def _verdict(comparisons: Sequence[Comparison]) -> str:
    parts = [_sentence(one) for one in comparisons]
    if len(comparisons) > 1:
        parts.append("each is compared with the first, without correction for multiple comparisons")
    return f"{'; '.join(parts)}."


def _sentence(comparison: Comparison) -> str:
    paired = {task.task: primary(task.differences)[1] for task in comparison.tasks if task.differences}
    counts = counted(list(paired.values()))
    where = next(iter(paired)) if len(paired) == 1 else f"{len(paired)} tasks"
    if not paired and any(task.set_apart for task in comparison.tasks):
        return f"no measurement of {comparison.b} and {comparison.a} can be compared, so neither can be called better"
    if not paired:
        return (
            f"{comparison.b} and {comparison.a} were not evaluated on the same items, so neither can be called better"
        )
    if set(counts) == {"cannot tell"}:
        sentence = f"no difference between {comparison.b} and {comparison.a} is significant on {where}"
    else:
        first, *rest = counts
        part = "" if len(paired) == 1 else f"{counts[first]:,} of "
        sentence = f"{comparison.b} is {first} than {comparison.a} on {part}{where}"
        sentence += "".join(f", {FOLLOWING[kind]} on {counts[kind]:,}" for kind in rest)
    verdict = comparison.forgetting.verdict if comparison.forgetting else None
    moved = {"better": "less", "worse": "more"}.get(verdict or "")
    return f"{sentence}; it moved {moved} from the base on unrelated text" if moved else sentence


def _quality(comparisons: Sequence[Comparison]) -> Section:
    blocks: list[Markup] = []
    for one in comparisons:
        if one.tasks:
            heads = ("task", "metric", "n", one.a, one.b, "difference", "", "p", "verdict")
            rows = [row for task in one.tasks for row in _task_rows(task)]
            compared = table(heads, rows, words=(0, 1, 8), label="quality", lead=2, judged=True)
            blocks += [element("h3", f"{one.b} against {one.a}"), compared, _notes(one)]
        for only, name in ((one.only_a, one.a), (one.only_b, one.b)):
            if only:
                blocks.append(paragraph(f"Only {name} was evaluated on {', '.join(only)}."))
    if not blocks:
        blocks.append(paragraph("No run was evaluated. Evaluate each on the same task: rankwise evaluate RUN."))
    return Section(
        "comparisons", "Quality", comparisons, blocks,
        about="Compared item by item if the items are the same. Intervals are 95 % intervals. A verdict says whether "
        "the second is better or worse; it needs interval and test to agree.",
    )  # fmt: skip


def _task_rows(task: ComparedTask) -> Rows:
    rows: Rows = []
    for metric in [*task.a, *(name for name in task.b if name not in task.a)]:
        n = f"{task.n_a:,}" if task.n_a == task.n_b else f"{task.n_a:,} / {task.n_b:,}"
        both = value(task.a.get(metric)), value(task.b.get(metric))
        rows.append([task.task, metric, n, *both, *difference_cells(task.differences.get(metric))])
    return rows


def _notes(comparison: Comparison) -> Markup:
    notes = [f"{task.task}: {task.unpaired}." for task in comparison.tasks if task.unpaired]
    notes += [f"{task.task}: {metric} is not compared: {why}." for task in comparison.tasks
              for metric, why in task.set_apart.items()]  # fmt: skip
    notes += [
        f"{task.task} was evaluated with different settings:  "
        + "; ".join(f"{one.key} is {one.a} in one and {one.b} in the other" for one in task.settings) + "."
        for task in comparison.tasks if task.settings
    ]  # fmt: skip
    reasons = [note for task in comparison.tasks for note in undecided(task.task, task.differences)]
    return joined([element("p", note, class_="about") for note in notes], reasons)


def _forgetting(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> Section | None:
    if not any(one.forgetting for one in candidates):
        return None
    first, *others = candidates
    on_texts = {measured.sha256: measured for one in comparisons if one.forgetting and (measured := one.forgetting.a)}
    of_first = list(on_texts.values()) or [first.forgetting]
    rows: Rows = [[first.name, *_moved(measured), "\u2013", "compared with"] for measured in of_first]
    by_run: dict[str, Forgetting | None] = {first.name: of_first[-1]}
    for candidate, one in zip(others, comparisons, strict=True):
        by_run[candidate.name] = one.forgetting.b if one.forgetting else candidate.forgetting
        rows.append([candidate.name, *_moved(by_run[candidate.name]), *_judged(one.forgetting)])
    heads = ("run", "KL from the base", "increase of the loss on the text", "next tokens unchanged", "text",
             "difference of KL", "verdict")  # fmt: skip
    return Section(
        "forgetting", "Forgetting",
        {name: measured.summary() if measured else None for name, measured in by_run.items()},
        [table(heads, rows, words=(0, 4, 6), label="forgetting", lead=1, judged=True)],
        about="KL(base || tuned) in nats per token, on text that the runs were not trained on, compared block by "
        "block. Moving less is better, but a run that learned less also moved less, so read it together with the "
        "quality.",
    )  # fmt: skip


def _judged(compared: ComparedForgetting | None) -> list[Content]:
    if compared is None:
        return ["\u2013", "\u2013"]
    moved = compared.differences.get("kl")
    change = within(moved.difference, moved.low, moved.high, signed=True) if moved else "\u2013"
    return [
        change,
        chip(compared.verdict) if compared.verdict else element("span", compared.incomparable or "", class_="quiet"),
    ]


def _moved(forgetting: Forgetting | None) -> list[Content]:
    if forgetting is None:
        return ["not measured", "\u2013", "\u2013", "\u2013"]
    return [
        within(forgetting.kl, forgetting.low, forgetting.high),
        number(forgetting.delta_nll, True),
        share(forgetting.agreement, 1),
        forgetting.measured_on,
    ]


def _losses(candidates: Sequence[Candidate]) -> Section | None:
    shown = {one.name: one.run.history.steps for one in candidates if one.run and len(one.run.history.steps) > 1}
    if not shown:
        return None
    return Section(
        "loss", "Loss", {name: [step.loss for step in steps] for name, steps in shown.items()},
        [figure(losses_chart(shown), "Training losses, averaged over about a twentieth of each run. Losses of runs on "
        "different rows or with different templates cannot be compared.")],
    )  # fmt: skip


def _cost(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> Section | None:
    results = {one.name: one.run.manifest.results for one in candidates if one.run}
    if not any(results.values()):
        return None
    outcomes = [dict(outcome(one.run, "")) if one.run else {} for one in candidates]
    names = dict.fromkeys(name for one in outcomes for name in one)
    rows: Rows = [[name, *(one.get(name, "\u2013") for one in outcomes)] for name in names]
    elsewhere = any(one.made_with for one in comparisons)
    return Section(
        "cost", "Cost", results,
        [table(("", *(one.name for one in candidates)), rows, words=range(1 + len(candidates)), label="cost")],
        about="The runs used different versions or machines, so times and rates are hardly "
            "comparable." if elsewhere else "",
    )  # fmt: skip


def _differing(
    key: str, title: str, candidates: Sequence[Candidate], differences: Sequence[Sequence[Differing]]
) -> Section | None:
    """List each value in which any run differs from the first."""
    by_key = [{one.key: one for one in each} for each in differences]
    both: Rows = []
    alone: Rows = []
    for name in dict.fromkeys(one for each in by_key for one in each):
        of = [each.get(name) for each in by_key]
        there = list(filter(None, of))
        cells = (_value(one.b) if one else element("em", "the same") for one in of)
        part = alone if any(one.one_sided for one in there) else both
        part.append([name, _value(there[0].a), *cells])
    if not (both or alone):
        return None
    data = [{"of": one.name, "differing": listed} for one, listed in zip(candidates[1:], differences, strict=True)]
    heads = ("", *(one.name for one in candidates))
    blocks = [table(heads, both, words=range(len(heads)), label=title)] if both else []
    if alone:
        blocks.append(
            folded("Settings that only some runs have", table(heads, alone, words=range(len(heads)), label=title))
        )
    return Section(key, title, data, blocks, about="Only values that differ between the runs.")


def _value(value: object) -> Content:
    return element("em", recorded(value)) if value is None else recorded(value)
