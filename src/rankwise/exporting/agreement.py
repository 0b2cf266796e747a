"""Whether an engine's replies are ours, up to what the number format may change.

    prompt ids         equal, for the prompts and for conversations rendered by the export's own template
    answers            the same greedy tokens, but for a token whose margin is below what rounding may change
    log-probabilities  mean and maximum of |log p(engine) - log p(ours)| below the tolerance of the number format

The tolerances were chosen, far above what correct exports were measured to differ by (bench/results; bfloat16 and the
smaller quantised formats were not measured): float32 engines add up in another order, bfloat16 keeps 8 significant
bits of each weight, float16 keeps 11, and a quantised format 4 to 8. An adapter that changes little must come closer
than that: not further than a quarter of its own change, in float32.

A classifier is asked held-out texts, words or images: texts as they lie in the rows' files, or where these are not here
what the tokenizer reads back from a row's ids; an image is the file that the row came from. An engine with a tokenizer
of its own must give our token ids. Outputs are the probability of each
class, in the order of the classes, or a number; of a token classifier they are those of each word that has a first
token of its own, one word after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from rankwise.errors import one_line, some
from rankwise.evaluation.validation_rows import as_written
from rankwise.exporting.engine_process import EngineReplies, EngineReply
from rankwise.exporting.reference import Reference, ReferenceQuestion, documents_of
from rankwise.inference.tuned_model import TunedModel
from rankwise.objectives.objective import Objective
from rankwise.objectives.predictions import THRESHOLD
from rankwise.runs.row_facts import Pooling

SHARE_OF_CHANGE = 0.25
BUILT_IN = "built-in texts"
PREDICTED = {"one": "classes", "several": "sets of classes", "tags": "tags of words"}
"""What is compared, by the form of the targets."""


@dataclass(frozen=True)
class Tolerance:
    """In nats."""

    mean: float
    max: float
    tie: float
    """A margin up to which another token may be chosen."""


TOLERANCES = {
    "float32": Tolerance(1e-4, 2e-3, 1e-3),
    "float16": Tolerance(0.01, 0.25, 0.05),
    "bfloat16": Tolerance(0.1, 2.0, 0.5),
    "quantised": Tolerance(0.5, 8.0, 2.0),
}
"""From the finest format to the coarsest."""
FLOOR = 2e-5
"""Mean difference in float32 that another order of summation may cause, however little the adapter changes."""


@dataclass(frozen=True)
class Figures:
    questions: int
    prompts_equal: int | None
    """None where the engine does not give its ids."""
    conversations_equal: int | None
    answers_equal: int | None
    answers_near: int
    """Answers that part where our two likeliest tokens are nearly equal."""
    mean_difference: float | None
    """Mean difference of the log-probabilities from ours, in nats; for a classifier, of its outputs from ours."""
    max_difference: float | None
    tolerance: float
    """Largest accepted mean difference; for a classifier, largest accepted difference of any output."""
    number_format: str
    max_logit_difference: float | None = None
    """Largest difference of the logits of our answers' tokens, before the softmax; None if the engine gives none."""
    milliseconds: float | None = None
    """What an answer usually takes, in an engine that measures it."""


@dataclass(frozen=True)
class EngineVerdict:
    engine: str
    status: Literal["right", "wrong", "not run"]
    why: str | None = None
    by: Literal["run", "rule"] = "run"
    version: str | None = None
    figures: Figures | None = None

    @classmethod
    def of(cls, replies: EngineReplies, problems: list[str], figures: Figures) -> EngineVerdict:
        status = "wrong" if problems else "right"
        return cls(replies.engine, status, "; ".join(problems) or None, "run", replies.version, figures)

    def summary(self) -> dict[str, Any]:
        """For JSON; `why` and the figures where there are any."""
        whole = {"status": self.status, "why": self.why, "by": self.by, "version": self.version}
        return whole | (asdict(self.figures) if self.figures is not None else {})

    def line(self) -> str:
        """For people, without the engine's version where nothing ran."""
        name = f"{self.engine} {self.version}" if self.version else self.engine
        return f"{name}: {self.status}" + (f": {self.why}" if self.why else "") + self._figures()

    def _figures(self) -> str:
        one = self.figures
        if one is None:
            return " (by rule; not run)" if self.by == "rule" else ""
        parts = []
        if one.answers_equal is not None:
            near = f" and {one.answers_near} up to a near tie" if one.answers_near else ""
            parts.append(f"{one.answers_equal} of {one.questions} answers equal{near}")
        if one.mean_difference is not None:
            parts.append(f"differences of {one.mean_difference:.2g} on average and {one.max_difference:.2g} at most")
        if one.milliseconds is not None:
            parts.append(f"{one.milliseconds:.3g} ms an answer")
        return f" ({', '.join(parts)})" if parts else ""


def coarser(*formats: str | None) -> str:
    order = list(TOLERANCES)
    known = [one if one in order else "quantised" for one in formats if one is not None]
    return max(known, key=order.index, default="float32")


def tolerance_of(number_format: str, change: float | None) -> Tolerance:
    """What is allowed of this number format, for an adapter that changes log-probabilities by `change` on average."""
    allowed = TOLERANCES[number_format]
    if number_format != "float32" or change is None:
        return allowed
    return replace(allowed, mean=max(FLOOR, min(allowed.mean, SHARE_OF_CHANGE * change)))


def compare(reference: Reference, replies: EngineReplies, number_format: str = "float32") -> EngineVerdict:
    """The verdict on one engine. `number_format` is that of the exported weights."""
    coarsest = coarser(number_format, replies.number_format)
    allowed = tolerance_of(coarsest, reference.change)
    pairs = list(zip(reference.questions, replies.replies, strict=True))
    answers = [_answer(question, reply, allowed) for question, reply in pairs]
    differences = [value for question, reply in pairs for value in _differences(question, reply)]
    given = [answer for answer in answers if answer is not None]
    figures = Figures(
        questions=len(pairs),
        prompts_equal=_count([_same(reply.prompt_ids, question.prompt_ids) for question, reply in pairs]),
        conversations_equal=_count([
            _same(ids, ours) for ids, (_, ours) in zip(replies.conversations, reference.conversations, strict=False)
        ]),
        answers_equal=sum(answer == "equal" for answer in given) if given else None,
        answers_near=sum(answer == "near" for answer in given),
        mean_difference=sum(differences) / len(differences) if differences else None,
        max_difference=max(differences, default=None), tolerance=allowed.mean, number_format=coarsest,
        max_logit_difference=max(_logit_differences(pairs), default=None),
    )  # fmt: skip
    problems = [*_problems(reference, replies, figures, allowed), *_wrong_answers(given)]
    if not given and not differences and not problems:
        return EngineVerdict(replies.engine, "not run", "it gave neither answers nor log-probabilities")
    return EngineVerdict.of(replies, problems, figures)


def _count(values: list[bool | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _same(theirs: list[int] | None, ours: tuple[int, ...]) -> bool | None:
    return None if theirs is None else tuple(theirs) == ours


def _problems(reference: Reference, replies: EngineReplies, figures: Figures, allowed: Tolerance) -> list[str]:
    problems = []
    if figures.prompts_equal not in (None, figures.questions):
        other = figures.questions - figures.prompts_equal
        problems.append(f"its tokenizer gives other token ids for {other} of {figures.questions} prompts")
    rendered = sum(ids is not None for ids in replies.conversations)
    if figures.conversations_equal not in (None, rendered):
        other = rendered - figures.conversations_equal
        problems.append(f"its chat template renders {other} of {rendered} conversations differently")
    sizes = zip(replies.conversation_sizes, reference.conversations, strict=False)
    if other := [f"{size} tokens and not {len(ours)}" for size, (_, ours) in sizes if size not in (None, len(ours))]:
        problems.append(f"its chat template renders conversations differently: {some(other, 3)}")
    if replies.end_id is not None and reference.end_id not in (None, replies.end_id):
        problems.append(f"its tokenizer's end token is {replies.end_id} and ours is {reference.end_id}")
    if replies.stop_ids is not None and (missing := sorted({*reference.end_ids} - {*replies.stop_ids})):
        problems.append(f"it does not stop at token {some(map(str, missing), 4)}, which ends our answers")
    mean, largest = figures.mean_difference, figures.max_difference
    if mean is not None and largest is not None and not (mean <= allowed.mean and largest <= allowed.max):
        problems.append(
            f"log-probabilities differ by {mean:.2g} on average and {largest:.2g} at most, and {figures.number_format} "
            f"allows {allowed.mean:.2g} and {allowed.max:.2g}"
        )
    return problems


def _wrong_answers(answers: list[str]) -> list[str]:
    wrong = [answer for answer in answers if answer not in ("equal", "near")]
    if not wrong:
        return []
    kinds = {kind: wrong.count(kind) for kind in dict.fromkeys(wrong)}
    return [f"{some(f'{count} of {len(answers)} answers {kind}' for kind, count in kinds.items())}"]


def _differences(question: ReferenceQuestion, reply: EngineReply) -> list[float]:
    theirs = reply.log_probabilities
    if theirs is None:
        return []
    ours = question.log_probabilities
    if question.ended_by_token and len(theirs) == len(ours) - 1:  # without the end token
        ours = ours[:-1]
    if len(theirs) != len(ours):
        return [float("inf")]
    return [abs(one - other) for one, other in zip(theirs, ours, strict=True)]


def _logit_differences(pairs: list[tuple[ReferenceQuestion, EngineReply]]) -> Iterator[float]:
    """No verdict depends on them: a softmax takes away what all logits have in common."""
    for question, reply in pairs:
        if reply.logits is not None and len(reply.logits) == len(question.logits):
            yield from (abs(one - other) for one, other in zip(reply.logits, question.logits, strict=True))


def _answer(question: ReferenceQuestion, reply: EngineReply, allowed: Tolerance) -> str | None:
    """`equal`, `near`, or what is wrong with it; None where the engine gave none."""
    at = _parting(question, reply)
    if at == "none":
        return None
    if at is None:
        return "equal"
    margin = question.margins[at] if at < len(question.margins) else None
    if margin is not None and margin <= allowed.tie:
        return "near"
    ended = at >= len(question.answer_ids) - int(question.ended_by_token)
    if ended and question.ended:
        return "equal" if not question.ended_by_token else "do not stop where ours end"
    return "differ" if ended or reply.answer_ids is None or at < len(reply.answer_ids) else "end too early"


def _parting(question: ReferenceQuestion, reply: EngineReply) -> int | Literal["none"] | None:
    """The number of the first token that is another; None if there is none."""
    if reply.answer_ids is not None:
        return _first_other(question, reply.answer_ids)
    if reply.answer is None:
        return "none"
    ours, theirs = question.answer.strip(), reply.answer.strip()
    if ours == theirs:
        return None
    shared = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                  min(len(ours), len(theirs)))  # fmt: skip
    lead = len(question.answer) - len(question.answer.lstrip())
    return next((at for at, size in enumerate(question.characters) if size > shared + lead), len(question.answer_ids))


def _first_other(question: ReferenceQuestion, theirs: list[int]) -> int | None:
    """Some engines leave out the end token, which is no difference."""
    ours = list(question.answer_ids)
    if question.ended_by_token and theirs == ours[:-1]:
        return None
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return at
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


@dataclass(frozen=True)
class ClassReference:
    about: str
    questions: tuple[dict[str, Any], ...]
    """As `WithHead.question` gives them."""
    outputs: tuple[tuple[float, ...], ...]
    classes: tuple[str, ...]
    base_folder: str
    auto_class: str
    tolerances: Mapping[str, float]
    """Largest accepted difference of an output, by number format."""
    pooling: Pooling = "own"
    form: Literal["one", "several", "tags"] = "one"
    """Whether a row has one class or number, any number of classes, or a class for each of its words."""

    change: ClassVar[None] = None
    """What the training changed is not measured."""

    @property
    def request(self) -> dict[str, Any]:
        return {"questions": list(self.questions), "classes": list(self.classes), "outputs": len(self.classes) or 1,
                "base": self.base_folder, "auto_class": self.auto_class, "pooling": self.pooling,
                "problem_type": "multi_label_classification" if self.form == "several" else None}  # fmt: skip

    def each(self, outputs: Sequence[float]) -> list[Sequence[float]]:
        """The outputs of a row, or of each of its words."""
        size = len(self.classes) if self.form == "tags" else len(outputs)
        return [outputs[at : at + size] for at in range(0, len(outputs), size)]

    def predicted(self, outputs: Sequence[float]) -> tuple[int, ...]:
        """The numbers of the classes that are predicted of a row or word."""
        if self.form == "several":
            return tuple(at for at, share in enumerate(outputs) if share > THRESHOLD)
        return (outputs.index(max(outputs)),)

    def is_near(self, theirs: Sequence[float], ours: Sequence[float], allowed: float) -> bool:
        """Whether other classes are predicted only because our outputs are nearly tied."""
        if self.form == "several":
            other = {*self.predicted(theirs)} ^ {*self.predicted(ours)}
            return all(abs(ours[at] - THRESHOLD) <= allowed for at in other)
        return sorted(ours)[-1] - sorted(ours)[-2] <= 2 * allowed


def class_reference_of(objective: Objective, tuned: TunedModel, count: int, rows: str | None) -> ClassReference | None:
    """None for images that are no files any more, since there is nothing to show to other software."""
    documents, about, config = documents_of(tuned, rows)
    longest = replace(tuned.longest, cuts=False)  # the other software is given whole texts
    head, classifier = objective.head, objective.predicting
    assert head is not None, "others are asked for answers"
    shown = head.examples(tuned.model, documents, count, partial(as_written, config=config))
    outcomes = classifier.inputs.encoded(tuned.model, shown, longest)
    fitting = [one for one in outcomes if one.problem is None]
    if not fitting:
        return None
    outputs = classifier.outputs_for(tuned.model.module, [one.sequences[0] for one in fitting])
    return ClassReference(
        about=f"{len(fitting)} {about if len(documents) else BUILT_IN}",
        questions=tuple(map(head.question, fitting)),
        outputs=tuple(tuple(one.flatten().tolist()) for one in outputs), classes=classifier.targets.classes,
        base_folder=str(tuned.model.source.folder.absolute()), auto_class=objective.kind.auto_class,
        tolerances=head.tolerances, pooling=classifier.targets.pooling, form=classifier.targets.form,
    )  # fmt: skip


def compare_classes(reference: ClassReference, replies: EngineReplies, number_format: str) -> EngineVerdict:
    """Equal predicted classes, and outputs within the tolerance."""
    allowed = reference.tolerances[number_format]
    (problems, ids), differences, equal, near = _other_ids(reference, replies), list[float](), 0, 0
    for ours, reply in zip(reference.outputs, replies.replies, strict=True):
        theirs = reply.outputs
        if theirs is None or len(theirs) != len(ours):
            problems.append(f"it gives {0 if theirs is None else len(theirs)} outputs, and there are {len(ours)}")
            break
        differences += [abs(one - other) / max(1.0, abs(other)) for one, other in zip(theirs, ours, strict=True)]
        for one, other in zip(reference.each(theirs), reference.each(ours), strict=True):
            same = reference.predicted(one) == reference.predicted(other)
            equal += same
            near += not same and reference.is_near(one, other, allowed)
    mean, largest = (sum(differences) / len(differences), max(differences)) if differences else (None, None)
    if largest is not None and not largest <= allowed:
        problems.append(f"outputs differ by up to {largest:.2g}, and {number_format} allows {allowed:.2g}")
    total = sum(len(reference.each(ours)) for ours in reference.outputs)
    if not problems and equal + near < total:
        problems.append(f"{total - equal - near} of {total} {PREDICTED[reference.form]} differ")
    figures = Figures(
        questions=total, prompts_equal=ids, conversations_equal=None, answers_equal=equal, answers_near=near,
        mean_difference=mean, max_difference=largest, tolerance=allowed, number_format=number_format,
        milliseconds=replies.milliseconds,
    )  # fmt: skip
    return EngineVerdict.of(replies, problems, figures)


def _other_ids(reference: ClassReference, replies: EngineReplies) -> tuple[list[str], int | None]:
    """What is wrong with the token ids of an engine's tokenizer, and how many rows have ours."""
    asked = [(one, reply.prompt_ids) for one, reply in zip(reference.questions, replies.replies, strict=True)]
    same = [ids is None or ids == one.get("ids") for one, ids in asked]
    if all(same):
        return [], None if any(ids is None for _, ids in asked) else len(asked)
    row, ids = asked[same.index(False)]
    return [
        f"its tokenizer gives other token ids for {same.count(False)} of {len(asked)} rows, such as {row['row']}: "
        f'"{one_line(row["text"])}" ({len(ids or ())} tokens, and {len(row["ids"])} in training)'
    ], sum(same)
