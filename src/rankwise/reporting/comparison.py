"""The report of several runs side by side: all are held against the first, and only what differs is listed."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.reporting.charts import losses_chart
from rankwise.reporting.costs import COSTS, cost_text
from rankwise.reporting.document import Document, Section, figure, folded, paragraph, table
from rankwise.reporting.markup import Content, Markup, element, joined
from rankwise.reporting.quality import chip, difference_cells, value
from rankwise.reporting.quantities import figure as number
from rankwise.reporting.quantities import interval, recorded, share
from rankwise.reporting.verdict import counted, primary
from rankwise.runs.comparisons import ComparedForgetting, ComparedTask, Comparison, Differing
from rankwise.runs.evaluations import Forgetting
from rankwise.runs.opened import Candidate


def comparison_report(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> Document:
    listed = (
        ("settings", "What was asked", [one.settings for one in comparisons]),
        ("data", "Data", [one.data for one in comparisons]),
        ("base_model", "Base model", [one.base_model for one in comparisons]),
        ("environment", "Versions and machine", [one.made_with for one in comparisons]),
    )
    made = [_quality(comparisons), _forgetting(candidates, comparisons), _losses(candidates),
            _cost(candidates, comparisons),
            *(_differing(key, title, candidates, found) for key, title, found in listed)]  # fmt: skip
    return Document(
        title=" \u00b7 ".join(one.name for one in candidates),
        over="rankwise comparison",
        verdict=_verdict(comparisons),
        remarks=[
            f"{one.name} is not finished ({one.run.manifest.status})."
            for one in candidates if one.run and one.run.manifest.status != "finished"
        ],
        sections=[section for section in made if section is not None],
    )  # fmt: skip


def _verdict(comparisons: Sequence[Comparison]) -> str:
    parts = [_sentence(one) for one in comparisons]
    if len(comparisons) > 1:
        parts.append("each is held against the first, without allowance for how many are")
    return f"{'; '.join(parts)}."


def _sentence(one: Comparison) -> str:
    paired = {task.task: primary(task.differences)[1] for task in one.tasks if task.differences}
    counts = counted(list(paired.values()))
    where = next(iter(paired)) if len(paired) == 1 else f"{len(paired)} tasks"
    if not paired and any(task.set_apart for task in one.tasks):
        return (
            f"nothing that was measured of {one.b} and {one.a} alike can be compared, so neither can be called better"
        )
    if not paired:
        return f"{one.b} and {one.a} were not evaluated on the same items, so neither can be called better"
    if set(counts) == {"cannot tell"}:
        found = f"{one.b} cannot be told from {one.a} on {where}"
    else:
        first, *rest = counts
        found = f"{one.b} is {first} than {one.a} on {'' if len(paired) == 1 else f'{counts[first]:,} of '}{where}"
        found += "".join(f", {'undecided' if kind == 'cannot tell' else kind} on {counts[kind]:,}" for kind in rest)
    kept = one.forgetting.verdict if one.forgetting else None
    moved = {"better": "less", "worse": "more"}.get(kept or "")
    return f"{found}; it moved {moved} from the base on other text" if moved else found


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
                blocks.append(paragraph(f"{name} alone was evaluated on {', '.join(only)}."))
    if not blocks:
        blocks.append(paragraph("None was evaluated. Evaluate each on the same task: rankwise evaluate RUN."))
    return Section(
        "comparisons", "Quality", [one.model_dump() for one in comparisons], blocks,
        about="Item against item, where the items are the same. Intervals are of 95 %; a verdict is of the second, and "
        "given only where interval and test agree.",
    )  # fmt: skip


def _task_rows(task: ComparedTask) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for metric in [*task.a, *(name for name in task.b if name not in task.a)]:
        n = f"{task.n_a:,}" if task.n_a == task.n_b else f"{task.n_a:,} / {task.n_b:,}"
        values = [value(side[metric]) if metric in side else "\u2013" for side in (task.a, task.b)]
        rows.append([task.task, metric, n, *values, *difference_cells(task.differences.get(metric))])
    return rows


def _notes(one: Comparison) -> Markup:
    notes = [f"{task.task}: {task.unpaired}." for task in one.tasks if task.unpaired]
    notes += [f"{task.task}: {metric} is not compared: {why}." for task in one.tasks
              for metric, why in task.set_apart.items()]  # fmt: skip
    notes += [
        f"{task.task} was asked with other settings: "
        + "; ".join(f"{setting.key} was {setting.a} and {setting.b}" for setting in task.settings) + "."
        for task in one.tasks if task.settings
    ]  # fmt: skip
    return joined([element("p", note, class_="about") for note in notes])


def _forgetting(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> Section | None:
    if not any(one.forgetting for one in candidates):
        return None
    first, *others = candidates
    on_texts = {found.sha256: found for one in comparisons if one.forgetting and (found := one.forgetting.a)}
    of_first = list(on_texts.values()) or [first.forgetting]
    rows: list[list[Content]] = [[first.name, *_moved(found), "\u2013", "compared with"] for found in of_first]
    kept: dict[str, Forgetting | None] = {first.name: of_first[-1]}
    for candidate, one in zip(others, comparisons, strict=True):
        kept[candidate.name] = one.forgetting.b if one.forgetting else candidate.forgetting
        rows.append([candidate.name, *_moved(kept[candidate.name]), *_judged(one.forgetting)])
    heads = ("run", "moved (KL)", "text less likely by", "same likeliest token", "text", "difference of KL", "verdict")
    return Section(
        "forgetting", "What they kept",
        {name: found.summary() if found else None for name, found in kept.items()},
        [table(heads, rows, words=(0, 4, 6), label="forgetting", lead=1, judged=True)],
        about="KL(base || tuned) in nats per token, on text that is not among the files of the run. Better is what "
        "moved less, block by block; what learned less also moved less, so read it beside the quality.",
    )  # fmt: skip


def _judged(found: ComparedForgetting | None) -> list[Content]:
    if found is None:
        return ["\u2013", "\u2013"]
    moved = found.differences.get("kl")
    told = f"{number(moved.difference, True)} ({interval(moved.low, moved.high, True)})" if moved else "\u2013"
    return [told, chip(found.verdict) if found.verdict else element("span", found.incomparable or "", class_="quiet")]


def _moved(one: Forgetting | None) -> list[Content]:
    if one is None:
        return ["not measured", "\u2013", "\u2013", "\u2013"]
    moved = f"{number(one.kl)} ({interval(one.low, one.high)})"
    return [moved, number(one.delta_nll, True), share(one.agreement, 1), one.measured_on]


def _losses(candidates: Sequence[Candidate]) -> Section | None:
    shown = {one.name: one.run.history.steps for one in candidates if one.run and len(one.run.history.steps) > 1}
    if not shown:
        return None
    return Section(
        "loss", "Loss", {name: [step.loss for step in steps] for name, steps in shown.items()},
        [figure(losses_chart(shown), "Training losses, each averaged over about a twentieth of its run. Runs on other "
                "rows or with other templates have other losses.")],
    )  # fmt: skip


def _cost(candidates: Sequence[Candidate], comparisons: Sequence[Comparison]) -> Section | None:
    results = {one.name: one.run.manifest.results for one in candidates if one.run}
    if not any(results.values()):
        return None
    rows: list[list[Content]] = [
        [
            called,
            *(
                cost_text(name, getattr(found, name)) if (found := results.get(one.name)) else "\u2013"
                for one in candidates
            ),
        ]
        for name, (called, _) in COSTS.items()
    ]
    elsewhere = any(one.made_with for one in comparisons)
    return Section(
        "cost", "Cost", {name: one.model_dump() if one else None for name, one in results.items()},
        [table(("", *(one.name for one in candidates)), rows, label="cost")],
        about="They ran with other versions or on other machines, so times and rates say little." if elsewhere else "",
    )  # fmt: skip


def _differing(
    key: str, title: str, candidates: Sequence[Candidate], found: Sequence[Sequence[Differing]]
) -> Section | None:
    """One row for each value in which any differs from the first."""
    keys = list(dict.fromkeys(one.key for each in found for one in each))
    if not keys:
        return None
    rows: dict[str, list[Content]] = {}
    one_sided: set[str] = set()
    for name in keys:
        of = [next((one for one in each if one.key == name), None) for each in found]
        first = next(one.a for one in of if one is not None)
        rows[name] = [name, _value(first), *(_value(one.b) if one else element("em", "the same") for one in of)]
        if any(one is not None and one.one_sided for one in of):
            one_sided.add(name)
    data = [
        {"of": one.name, "differing": [each.model_dump() for each in listed]}
        for one, listed in zip(candidates[1:], found, strict=True)
    ]
    heads = ("", *(one.name for one in candidates))
    both, alone = ([rows[name] for name in keys if (name in one_sided) == apart] for apart in (False, True))
    blocks = [table(heads, both, words=range(len(heads)), label=title)] if both else []
    if alone:
        blocks.append(folded("What not all of them have", table(heads, alone, words=range(len(heads)), label=title)))
    return Section(key, title, data, blocks, about="Only what differs.")


def _value(value: object) -> Content:
    return element("em", recorded(value)) if value is None else recorded(value)
