"""Sections on quality: scores of base and tuned model by task and metric, forgetting, and sample answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwise.reporting.charts import strength_chart
from rankwise.reporting.document import Section, facts, figure, folded, paragraph, table
from rankwise.reporting.markup import Content, Markup, Rows, element, joined
from rankwise.reporting.quantities import chance, interval, plural, share, with_interval, within
from rankwise.reporting.quantities import figure as number
from rankwise.runs.evaluations import Evaluation, FieldFigures, Forgetting, Sample, StrengthCurve
from rankwise.runs.measured import Difference, FeatureForgetting, Measurement, Verdict
from rankwise.runs.records import SampleRecord
from rankwise.runs.snapshot import RunSnapshot

LONGEST, MOST_SAMPLES, OPEN_SAMPLES, MOST_FIELDS = 3000, 40, 4, 50
FIGURES_OF_FIELDS = ("exact", "F1 of lists", "near", "missing", "extra")
WIDTH, HEIGHT = 132, 18
"""The size of the small drawing of an interval, in pixels."""
CSS_OF: dict[Verdict, str] = {"better": "good", "worse": "bad", "cannot tell": "open"}
HEADS = ("task", "metric", "n", "base", "tuned", "difference", "", "p", "verdict")
OF_FEATURES = (
    "What became of the base's features on images that are not training data. Linear CKA is 1 if the features are the "
    "same up to rotation and scale, and 0 if they are unrelated. A linear probe shows whether other classes can still "
    "be told apart by them. A model that learned less also moved less, so read it together with the quality."
)
OF_TEXT = (
    "How far the tuned model moved from its base on text that it was not trained on: KL(base || tuned) in nats per "
    "token, averaged over all positions. It cannot be compared across base models. A model that learned less also "
    "moved less, so read it together with the quality."
)


def quality_section(run: RunSnapshot) -> Section | None:
    if not run.evaluations:
        return None
    every = run.evaluations.values()
    settings = [part for task, one in run.evaluations.items() for part in (element("h3", task), _settings(one))]
    return Section(
        "quality",
        "Quality", [_without_classes(one) for one in every],
        [*scored(every), *(block for one in every if one.tuned.fields for block in field_blocks(one.tuned.fields)),
         folded("Evaluation settings", *settings)],
        about="Intervals are 95 % intervals. Base and tuned model are compared item by item on the same items: "
        "intervals come from a bootstrap over items, p-values from random swaps within pairs, and a verdict needs "
        "both to agree. A lower loss is better.",
    )  # fmt: skip


def scored(evaluations: Iterable[Evaluation]) -> list[Markup]:
    """The scores of base and tuned model, and why a difference decides nothing."""
    evaluations = list(evaluations)
    rows = [row for one in evaluations for row in _rows(one)]
    if all(one.base is None for one in evaluations):
        alone = [[*row[:3], row[4]] for row in rows]
        return [table(("task", "metric", "n", "value"), alone, words=(0, 1), label="scores", lead=2)]
    notes = [note for one in evaluations for note in undecided(one.task, one.differences)]
    return [table(HEADS, rows, words=(0, 1, 8), label="before and after", lead=2, judged=True), *notes]


def field_blocks(fields: Sequence[FieldFigures]) -> list[Markup]:
    """The fields of JSON answers, those with the most rows first."""
    heads = ("field", "rows", *FIGURES_OF_FIELDS)
    rows: Rows = [[one.field, f"{one.rows:,}", *map(value, (one.exact, one.f1, one.near, one.missing, one.extra))]
                  for one in fields[:MOST_FIELDS]]  # fmt: skip
    return [table(heads, rows, label="fields", lead=1)]


def undecided(task: str, differences: Mapping[str, Difference]) -> list[Markup]:
    return [element("p", f"{task}: {metric} cannot tell: {one.undecided}.", class_="about")
            for metric, one in differences.items() if one.undecided]  # fmt: skip


def _settings(evaluation: Evaluation) -> Markup:
    given: list[tuple[str, Content]] = [
        ("items", f"{evaluation.data} (n = {evaluation.n:,})"),
        ("against", evaluation.against or "nothing"),
    ]
    return facts(
        [*given, ("created", evaluation.created), *((key, str(value)) for key, value in evaluation.settings.items())]
    )


def _without_classes(evaluation: Evaluation) -> dict[str, Any]:
    """Return the summary without what the section on classes has, and with its origin."""
    summary = {key: value for key, value in evaluation.summary().items() if key not in ("classification", "sets")}
    return summary | {"data": evaluation.data, "against": evaluation.against, "created": evaluation.created}


def _rows(evaluation: Evaluation) -> Rows:
    base = evaluation.base.metrics if evaluation.base else {}
    rows: Rows = []
    for metric, tuned in evaluation.tuned.metrics.items():
        difference = evaluation.differences.get(metric)
        rows.append([
            evaluation.task, metric, f"{evaluation.n:,}", value(base.get(metric)), value(tuned),
            *difference_cells(difference),
        ])  # fmt: skip
    return rows


def difference_cells(difference: Difference | None) -> list[Content]:
    if difference is None:
        return ["\u2013", "", "", element("span", "not compared", class_="chip open")]
    change = joined(number(difference.difference, True), _between(interval(difference.low, difference.high, True)))
    return [change, _difference_whisker(difference), chance(difference.p), chip(difference.verdict)]


def value(measurement: Measurement | None) -> Content:
    return (
        "\u2013"
        if measurement is None
        else joined(number(measurement.value), _between(interval(measurement.low, measurement.high)))
    )


def _between(ends: str) -> Markup:
    return joined(" ", element("span", f"({ends})", class_="interval"))


def chip(verdict: Verdict) -> Markup:
    return element("span", verdict, class_=f"chip {CSS_OF[verdict]}")


def _difference_whisker(difference: Difference) -> Markup:
    """Draw the interval of a difference relative to zero, on its own scale."""
    reach = 2.2 * max(abs(difference.low), abs(difference.high), 1e-12)
    places = [0.5 + end / reach for end in (difference.low, difference.difference, difference.high)]
    role = {"better": "good", "worse": "bad", "cannot tell": "quiet"}[difference.verdict]
    label = f"{number(difference.difference, True)}, from {interval(difference.low, difference.high, True)}"
    zero = element("line", x1=WIDTH / 2, x2=WIDTH / 2, y1=0, y2=HEIGHT, class_="s-quiet", stroke_opacity=0.6)
    return whisker(zero, [WIDTH * place for place in places], role, label)


def whisker(rule: Markup, ends: Sequence[float], role: str, label: str) -> Markup:
    """Draw an interval on a scale: `ends` are its low end, the value and its high end, in pixels."""
    (low, at, high), middle = (round(end, 2) for end in ends), HEIGHT / 2
    return element(
        "svg",
        rule,
        element("line", x1=low, x2=high, y1=middle, y2=middle, class_=f"s-{role}", stroke_width=2),
        element("circle", cx=at, cy=middle, r=3.5, class_=f"f-{role}"),
        class_="whisker", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label,
    )  # fmt: skip


def forgetting_section(run: RunSnapshot) -> Section | None:
    features = [one.feature_forgetting for one in run.evaluations.values() if one.feature_forgetting is not None]
    if run.forgetting is None and run.strength is None and not features:
        return None
    blocks: list[Markup] = list(map(feature_facts, features))
    if run.forgetting:
        blocks.append(forgetting_facts(run.forgetting))
    if run.strength:
        blocks += _strength(run.strength)
    data: dict[str, Any] = {
        "forgetting": run.forgetting.summary() if run.forgetting else None,
        "strength": run.strength,
        **({"features": features} if features else {}),
    }
    return Section(
        "forgetting", "Forgetting", data, blocks,
        about=OF_FEATURES if features and not run.forgetting else OF_TEXT,
    )  # fmt: skip


def feature_facts(forgetting: FeatureForgetting) -> Markup:
    pairs: list[tuple[str, Content]] = [
        ("images", f"{forgetting.images:,} of {forgetting.data}"),
        ("CKA of base and tuned features", with_interval(forgetting.cka)),
    ]
    if (probe := forgetting.probe) is not None:
        accuracies = f"{share(probe.b, 1)} with the tuned model's features, {share(probe.a, 1)} with the base's"
        change = within(probe.difference, probe.low, probe.high, signed=True)
        pairs.append(
            (
                f"linear probe of {len(forgetting.classes)} classes",
                joined(accuracies, "; ", change, " ", chip(probe.verdict)),
            )
        )
    return facts(pairs)


def forgetting_facts(forgetting: Forgetting) -> Markup:
    return facts([
        ("next tokens unchanged", f"{share(forgetting.agreement, 1)} (the most likely one is still the base's)"),
        ("KL(base || tuned)", within(forgetting.kl, forgetting.low, forgetting.high, unit=" nats per token")),
        ("increase of the loss on the text",
         within(forgetting.delta_nll, forgetting.delta_nll_low, forgetting.delta_nll_high, True, " nats per token")),
        ("text", f"{forgetting.measured_on}; {plural(forgetting.positions, 'position')}"),
    ])  # fmt: skip


def _strength(curve: StrengthCurve) -> list[Markup]:
    return [
        element("h3", "Strength"),
        figure(strength_chart(curve), "The adapter at several strengths. Lower is better at the task, left is closer "
               "to the base."),
        *strength_blocks(curve),
    ]  # fmt: skip


def strength_blocks(curve: StrengthCurve) -> list[Markup]:
    """The points of the curve, and the strength that they recommend."""
    base = curve.points[0].loss.value
    rows: Rows = [
        [f"{one.strength:g}{'*' * (one.strength == curve.recommended)}", one.loss.shown(".4f"),
         f"{base - one.loss.value:+.4f}", one.kl.shown(".4f"), f"{one.delta_nll:+.4f}"]
        for one in curve.points
    ]  # fmt: skip
    heads = ("strength", "loss on the task", "gain", "KL from the base", "change of NLL")
    return [table(heads, rows, label="strength"), facts([
        ("task", f"{curve.task}, {plural(curve.n, 'sequence')}; loss and gain in nats per loss token"),
        ("forgetting", f"{curve.text}; KL(base || tuned) and change in nats per token, intervals of 95 %"),
        ("recommended", f"{curve.recommended:g}, "
         f"{curve.why or 'the smallest strength with 95 % of the largest gain up to 1'}"),
    ])]  # fmt: skip


def samples_section(run: RunSnapshot) -> Section | None:
    measured_with = [(task, one) for task, evaluation in run.evaluations.items() for one in evaluation.samples]
    during = _during(run.history.samples)
    if not measured_with and not during:
        return None
    pairs = [_pair(task, one, ("base", "tuned")) for task, one in measured_with[:MOST_SAMPLES]]
    pairs += [_pair("during training", one, titles) for one, titles in during[:MOST_SAMPLES]]
    blocks, rest = pairs[:OPEN_SAMPLES], pairs[OPEN_SAMPLES:]
    if rest:
        blocks.append(folded(f"{len(rest)} more", *rest))
    data = {
        "evaluations": [{"task": task} | one.model_dump() for task, one in measured_with],
        "training": [record.as_row() for record in run.history.samples],
    }
    return Section("samples", "Samples", data, blocks, about="The first items of each task, without selection.")


def _during(records: list[SampleRecord]) -> list[tuple[Sample, tuple[str, str]]]:
    """Return for each prompt the answers at the first and the last sampled step."""
    pairs = []
    for prompt in dict.fromkeys(record.prompt for record in records):
        own = [record for record in records if record.prompt == prompt]
        first, last = own[0], own[-1]
        sample = Sample(prompt=prompt, target=last.target, base=first.answer, tuned=last.answer)
        pairs.append(
            (sample, ("base" if first.step == 0 else f"after step {first.step:,}", f"after step {last.step:,}"))
        )
    return pairs


def _pair(task: str, sample: Sample, titles: tuple[str, str]) -> Markup:
    def side(title: str, words: str | None, kind: str) -> Markup:
        right = words is not None and sample.target is not None and words.strip() == sample.target.strip()
        mark = element("span", "matches the target", class_="chip good") if right else Markup("")
        return element("div", element("h4", title, " ", mark), _words(words), class_=kind)

    target = [element("h4", "target"), _words(sample.target)] if sample.target is not None else []
    return element(
        "article",
        element("div", element("h4", task), _words(sample.prompt), target, class_="prompt"),
        element("div", side(titles[0], sample.base, "was"), side(titles[1], sample.tuned, "is"), class_="pair"),
        class_="sample",
    )


def _words(words: str | None) -> Markup:
    if words is None:
        return paragraph(element("em", "no answer recorded"))
    if not words:
        return paragraph(element("em", "empty"))
    rest = len(words) - LONGEST
    tail = element("em", f"\u2026 and {rest:,} more characters") if rest > 0 else ""
    return element("blockquote", words[:LONGEST], tail, dir="auto", tabindex=0)
