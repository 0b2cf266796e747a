"""Should one train at all? Three ways to answer held-out rows, measured in about a third of a run of 100 steps.

    base                        the model as it is; of a classifier, the frequencies of the labels
    base with examples          five training rows in the prompt; of a classifier, its head fitted to the frozen model
    adapter                     a tenth of the run's steps, at least 20, with a schedule that decays within them
    adapter on a part           a quarter of these steps on a quarter of the rows, so each is seen as often
    adapter, other questions    the same answers behind the questions of other rows

The last says whether the answers depend on the questions at all (evaluation/few_shot.py), and costs one pass over
the held-out rows, where a control adapter that is trained on shuffled answers would cost as much as the adapter itself.
Labels that are predicted better than by their frequencies depend on the inputs. The part is a point of the learning
curve as epochs count it: more rows make a run longer, and both are in the slope. A classifier's curve is that of its
fitted head on half of the rows, which costs nothing. Held-out rows are as many as the budget pays for, and no fewer
than 24.

    solved        the base's answers are already the rows', or neither way gains more than the margin
    unrelated     the adapter's answers do not depend on the questions: what it learned is how answers look
    train         the adapter is better than the best way without training by more than the margin
    prompt        examples gain as much as the adapter will
    undecided     an interval reaches to both sides of a border

A classifier is worth training where its adapter, or its fitted head, is better than the frequencies of the labels. The
margin is the least gain that counts: a fiftieth of the best loss without training, and no less than 0.02. The full run
is expected to gain more than the short one: by half of what the learning curve promises for each doubling from the
short run's length to the full one's, since such curves flatten.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.adapters import Adapting
from rankwise.config.training import TrainingConfig
from rankwise.evaluation.class_metrics import one_target
from rankwise.evaluation.few_shot import with_examples, with_other_questions
from rankwise.evaluation.intervals import difference, with_interval
from rankwise.evaluation.likelihood import Likelihood, likelihoods
from rankwise.evaluation.metrics import METRICS
from rankwise.inference.kv_cache import LogitsAfter, can_share
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.advice import Advice, AdviceCost, Advised, AdvisedSide, LabelAdvice, Reason, paragraph
from rankwise.runs.manifest import BackendName
from rankwise.runs.measured import Difference, Measurement
from rankwise.runs.records import Callback, ProgressUpdate, silent
from rankwise.training.short_runs import ShortRun, short_run
from rankwise.training.workload import Presentation

EXAMPLES, FEWEST_STEPS, TENTH, PART = 5, 20, 10, 4
BUDGET = 0.3
"""The share of the full run's work that advising should take at most."""
FEWEST_ROWS, MOST_ROWS = 24, 256
LEAST_PROBABILITY = 1e-6
LEAST, SHARE = 0.02, 0.02
BLURRED = 0.25
"""The largest share of an answer's uncertainty that the question may still explain where nothing is said to depend on
it."""
FLATTENING = 0.5
MOST_TO_DECIDE = 100_000
SHORT_ANSWER = 16
"""Tokens of an answer, on average, up to which exact answers are shown."""
Way = tuple[Advised, Reason]
Decision = tuple[Advised, Reason, int | None]
"""The verdict, its reason, and the held-out rows that would decide where these do not."""


@dataclass(frozen=True)
class AdviceSide:
    losses: list[list[float]]
    """[loss, count] of each row."""
    hits: list[list[float]] | None = None
    """[hit, 1] of each row."""

    @property
    def loss(self) -> Measurement:
        return with_interval(METRICS["loss"], self.losses)

    @property
    def score(self) -> Measurement | None:
        return None if self.hits is None else with_interval(METRICS["accuracy"], self.hits)

    def against(self, other: AdviceSide) -> Difference:
        """The loss of this side minus that of another, row by row."""
        return difference(METRICS["loss"], other.losses, self.losses)

    def shown(self, scored: bool) -> AdvisedSide:
        return AdvisedSide(loss=self.loss, score=self.score if scored else None)


@dataclass(frozen=True)
class Untrained:
    """What `examples` training rows say without training, and what a part of them says."""

    side: AdviceSide | None
    examples: int = 0
    of_half: AdviceSide | None = None


@dataclass(frozen=True)
class Design:
    """How many steps and rows the short runs take. Their cost is counted in steps of the full run."""

    full_steps: int
    steps: int
    part_steps: int
    """0 where there are too few rows or steps for a part."""
    part_rows: int
    rows: int
    probed: int
    """Training rows that a classifier's head is fitted on."""
    work: float


@dataclass
class Advising(ABC):
    """One measurement. `config` are the full run's settings with its steps and learning rate named."""

    adapter_config: Adapting
    presentation: Presentation
    config: TrainingConfig
    model: LoadedModel
    objective: Any
    prepared: Prepared
    callback: Callback = silent
    examples: int = EXAMPLES
    _done: float = field(default=0.0, init=False)
    advice: ClassVar[type[Advice]]
    passes: ClassVar[int]
    """Over the measured rows, without that of a part."""
    forward: ClassVar[float]
    """The work of measuring a row, as a share of the work of learning from it, by what advising took beside its steps
    (lab/advising.md)."""
    most_probed: ClassVar[int] = 0
    in_parts: ClassVar[bool] = False
    """Whether an adapter learns from a part of the rows, for the learning curve."""
    other_ways: ClassVar[tuple[Way, Way]]
    """What is advised where training rows say enough without training: if the full run is expected to gain no more
    than they do, and if it is."""
    solved_at: ClassVar[float] = math.inf
    """Share of exact answers of the base, at the lower end of its interval, from which a task counts as solved."""

    @abstractmethod
    def base(self) -> AdviceSide: ...

    @abstractmethod
    def untrained(self) -> Untrained: ...

    @abstractmethod
    def adapter(self) -> AdviceSide:
        """The model as it is now."""
        ...

    def unrelated(self) -> AdviceSide | None:
        """The model as it is, where each answer belongs to another row; None where rows have no questions."""
        return None

    @property
    def shows_scores(self) -> bool:
        """Whether the rows' scores say something."""
        return True

    def curve(self, examples: int) -> tuple[int, int]:
        """Rows at the end of the learning curve and at its beginning."""
        return examples, examples // 2

    @cached_property
    def design(self) -> Design:
        rows, config = len(self.prepared.trained), self.config
        full, batch = config.total_steps(rows), config.rows_per_step(rows)
        steps = min(full, max(FEWEST_STEPS, math.ceil(full / TENTH)))
        part_steps = steps // PART if self.in_parts and rows >= 2 * PART else 0
        passes = self.passes + bool(part_steps)
        room = (BUDGET * full - steps - part_steps) * batch / self.forward
        probed = min(rows, self.most_probed, max(2 * FEWEST_ROWS, int(room / 2)))
        most = min(len(self.prepared.validation), MOST_ROWS)
        read = min(most, max(FEWEST_ROWS, int((room - probed) / passes)))
        work = steps + part_steps + self.forward * (passes * read + probed) / batch
        return Design(full, steps, part_steps, part_rows=max(1, rows // PART), rows=read, probed=probed, work=work)

    @cached_property
    def rows(self) -> list[Tokens]:
        """The validation rows that are measured, spread evenly over all of them."""
        return list(evenly(self.prepared.measured_rows, self.design.rows))

    def drawn(self, count: int) -> list[Tokens]:
        """Training rows that the seed draws."""
        rows = self.prepared.trained_rows
        order = np.random.default_rng([self.config.seed, 5]).permutation(len(rows))
        return [rows[int(number)] for number in order[:count]]

    def part(self) -> Prepared:
        """The prepared rows with only a part of the training rows, drawn by the seed."""
        trained = self.prepared.trained
        order = np.random.default_rng([self.config.seed, 11]).permutation(len(trained))[: self.design.part_rows]
        return replace(self.prepared, trained=trained[np.sort(order)])

    def short(
        self, steps: int, prepared: Prepared, callback: Callback, backend: BackendName | None = None
    ) -> AbstractContextManager[ShortRun]:
        """The model with what a short training taught it."""
        config = self.config.model_copy(update={"steps": steps})
        return short_run(
            self.adapter_config, config, self.model, self.objective, prepared, self.presentation, callback=callback,
            stepped=lambda: self.did(1), backend=backend,
        )  # fmt: skip

    def did(self, work: float) -> None:
        """Steps of the full run, or what is worth as much."""
        self._done = min(self._done + work, self.design.work)
        self.callback(ProgressUpdate("Advising", round(self._done, 1), round(self.design.work, 1), "steps' work"))

    def read(self, rows: int) -> None:
        self.did(self.forward * rows / self.config.rows_per_step(len(self.prepared.trained)))

    def measure(self, forecast: float | None) -> Advice:
        """`forecast` are the seconds that all of it should take."""
        began, design = time.perf_counter(), self.design
        base, known = self.base(), self.untrained()
        with self.short(design.steps, self.prepared, self.callback) as run:
            adapter, unrelated = self.adapter(), self.unrelated()
        part, whole, times = known.of_half, known.side, 2
        if design.part_steps:
            with self.short(design.part_steps, self.part(), silent, run.backend):
                part, whole, times = self.adapter(), adapter, PART
        self.did(design.work)
        cost = AdviceCost(
            full_steps=design.full_steps, short_steps=design.steps, part_steps=design.part_steps, work=design.work,
            forecast_seconds=forecast, seconds=time.perf_counter() - began,
            full_seconds=run.seconds * design.full_steps,
        )  # fmt: skip
        doubling = whole and part and doubling_of(whole, part, times)
        sides = {"base": base, "untrained": known.side, "adapter": adapter, "part": part}
        return self._advice(sides, unrelated, doubling, known.examples, cost)

    def _advice(
        self, sides: Mapping[str, AdviceSide | None], unrelated: AdviceSide | None, doubling: Measurement | None,
        examples: int, cost: AdviceCost,
    ) -> Advice:  # fmt: skip
        base, untrained, adapter = sides["base"], sides["untrained"], sides["adapter"]
        assert base is not None and adapter is not None, "they are always measured"
        doublings = math.log2(cost.full_steps / cost.short_steps)
        evidence = Evidence(
            base.loss.value, gain=adapter.against(base), untrained=untrained and untrained.against(base),
            over_untrained=untrained and adapter.against(untrained), content=unrelated and unrelated.against(adapter),
            expected=0.0 if doubling is None else FLATTENING * max(0.0, doubling.value) * doublings,
        )  # fmt: skip
        is_solved = base.score is not None and base.score.low >= self.solved_at
        verdict, reason, rows = ("neither", "solved", None) if is_solved else evidence.decide(self.other_ways)
        shown = {name: one and one.shown(self.shows_scores or is_solved) for name, one in sides.items()}
        end, beginning = self.curve(examples)
        advice = self.advice(
            verdict=verdict, reason=reason, **shown, examples=examples, gain=evidence.gain,
            untrained_gain=evidence.untrained, over_untrained=evidence.over_untrained, content=evidence.content,
            doubling=doubling, margin=evidence.margin, rows_to_decide=rows, training_rows=end, part_rows=beginning,
            measured_rows=self.design.rows, unit=self.prepared.data_report.learned.loss_unit,
            model=self.model.facts, seed=self.config.seed, cost=cost,
        )  # fmt: skip
        return advice.model_copy(update={"text": paragraph(advice)})


class AnswerAdvising(Advising):
    """Rows of a language model: answers are read with and without examples, and behind other rows' questions."""

    advice, passes, forward, in_parts = Advice, 4, 0.5, True
    other_ways, solved_at = (("prompt", "examples"), ("undecided", "too short")), 0.9

    def curve(self, examples: int) -> tuple[int, int]:
        return len(self.prepared.trained), self.design.part_rows

    @property
    def shows_scores(self) -> bool:
        return sum(row.loss_count for row in self.rows) <= SHORT_ANSWER * len(self.rows)

    def base(self) -> AdviceSide:
        return self.adapter()

    def untrained(self) -> Untrained:
        drawn, system, module = self.drawn(self.examples), self.prepared.data_report.system, self.model.module
        if not drawn or (context := with_examples(self.model, self.rows, drawn, system)) is None:
            return Untrained(None)
        shared = LogitsAfter(module, context.prefix) if can_share(module) else None
        answers = likelihoods(module, context.rows if shared else context.full_prompts, forward=shared, greedy=True)
        return Untrained(self._side(answers), context.examples)

    def adapter(self) -> AdviceSide:
        return self._side(likelihoods(self.model.module, self.rows, greedy=True))

    def unrelated(self) -> AdviceSide | None:
        swapped = with_other_questions(self.rows, self.config.seed, self.model.context_length)
        return None if swapped is None else self._side(likelihoods(self.model.module, swapped, greedy=True))

    def _side(self, answers: Sequence[Likelihood]) -> AdviceSide:
        self.read(len(answers))
        return AdviceSide([one.sums for one in answers], [[float(bool(one.greedy)), 1.0] for one in answers])


class LabelAdvising(Advising):
    """Rows of a classifier: labels are predicted by their frequencies, by its head alone, and by its adapter."""

    advice, passes, forward, most_probed = LabelAdvice, 3, 0.4, 320
    other_ways = (("train", "probe"), ("train", "probe"))

    def base(self) -> AdviceSide:
        """A guess without a model: the smoothed share of each class, so that none is 0, or the mean of numbers."""
        targets, labels = self.objective.targets, _labels(self.prepared.trained_rows)
        shares = np.array([float(np.mean(labels))])
        if targets.classes:
            counts = np.bincount(np.asarray(labels, np.int64), minlength=targets.outputs) + 1.0
            shares = np.asarray(counts / counts.sum(), np.float64)
        return self._side(np.tile(shares, (len(self.rows), 1)))

    def untrained(self) -> Untrained:
        """A head is fitted as a training begins with it."""
        drawn, half, side = self.drawn(self.design.probed), None, None
        if self.objective.fit_head(self.model, drawn[: len(drawn) // 2]):
            half = self.adapter()
        if self.objective.fit_head(self.model, drawn):
            side = self.adapter()
        self.read(len(drawn))
        return Untrained(side, len(drawn), half)

    def adapter(self) -> AdviceSide:
        self.read(len(self.rows))
        return self._side(self.objective.predicting.outputs_for(self.model.module, self.rows))

    def _side(self, outputs: np.ndarray) -> AdviceSide:
        """Score the outputs for the N rows: probabilities (N, C) of classes, or numbers (N, 1)."""
        actual = _labels(self.rows)
        if not self.objective.targets.classes:
            return AdviceSide(
                [[float((value - one) ** 2), 1.0] for value, one in zip(outputs[:, 0], actual, strict=True)]
            )
        labels = np.asarray(actual, np.int64)
        nats = -np.log(np.maximum(outputs[np.arange(len(labels)), labels], LEAST_PROBABILITY))
        hits = outputs.argmax(1) == labels
        return AdviceSide([[float(one), 1.0] for one in nats], [[float(one), 1.0] for one in hits])


ADVISING: Mapping[str, type[Advising]] = {"answers": AnswerAdvising, "pairs": AnswerAdvising, "classes": LabelAdvising}


@dataclass(frozen=True)
class Evidence:
    """Differences of losses, which are below 0 for what is better."""

    loss: float
    """The loss of the base."""
    gain: Difference
    """The adapter's over the base."""
    untrained: Difference | None
    """That of training rows without training."""
    over_untrained: Difference | None
    content: Difference | None
    """How much higher the adapter's loss is behind other questions."""
    expected: float
    """What the full run is expected to gain beyond the short one."""

    @property
    def margin(self) -> float:
        """By the best loss without training: that of a base that has never seen the format may be huge."""
        return margin_of(self.loss + min(0.0, 0.0 if self.untrained is None else self.untrained.difference))

    def decide(self, other_ways: tuple[Way, Way]) -> Decision:
        margin, untrained, content, over = self.margin, self.untrained, self.content, self.over_untrained
        if content is not None and content.low <= 0:  # it is not seen to use the questions
            return ("neither", "unrelated", None) if content.high < BLURRED * content.b else undecided(content)
        hardest = over if over is not None and untrained is not None and untrained.difference < 0 else self.gain
        if self._counts(hardest):
            return "train", "better", None
        if untrained is not None and self._counts(untrained):
            return (*other_ways[self.expected - hardest.difference >= margin], None)
        best = min(self.gain.difference, 0.0 if untrained is None else untrained.difference)
        if self.expected - best < margin:
            return "neither", "no gain", None
        return undecided(hardest, 0.0 if -hardest.difference >= margin else margin)

    def _counts(self, change: Difference) -> bool:
        """Whether a gain is seen, and as large as the margin."""
        return change.high < 0 and -change.difference >= self.margin


def undecided(change: Difference, border: float = 0.0) -> Decision:
    """With the rows that an interval needs to leave a gain of `border` on one side."""
    distance, half = (
        abs(change.difference + border),
        max(change.high - change.difference, change.difference - change.low),
    )
    needed = change.n * (half / distance) ** 2 if distance > 0 else MOST_TO_DECIDE
    return "undecided", "too few rows", min(MOST_TO_DECIDE, max(change.n + 1, math.ceil(needed)))


def margin_of(loss: float) -> float:
    return max(LEAST, SHARE * loss)


def doubling_of(full: AdviceSide, part: AdviceSide, times: int) -> Measurement:
    """What the loss fell by for each doubling of rows and steps; the whole has so many times as many as the part."""
    change, doublings = full.against(part), math.log2(times)
    value, low, high = (-one / doublings for one in (change.difference, change.high, change.low))
    return Measurement(value=value, low=low, high=high)


def _labels(rows: Sequence[Tokens]) -> list[float]:
    return [one_target(row) for row in rows if row.target is not None]
