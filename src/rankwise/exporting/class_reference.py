"""What our own classifier says of held-out texts, words or images, in float32: what other software is compared with.

A text is what the tokenizer reads back from a row's ids, so that every engine is given the same text; an image is the
file that the row came from. Outputs are the probability of each class, in the order of the classes, or a number; of a
token classifier they are those of each word that has a first token of its own, one word after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwise.data.sequences import evenly
from rankwise.errors import RankwiseError
from rankwise.evaluation.validation_rows import rows_to_measure
from rankwise.exporting.agreement import EngineVerdict, Figures
from rankwise.exporting.engine_process import EngineReplies
from rankwise.inference.classify import THRESHOLD, outputs_of, tag_probabilities
from rankwise.inference.tuned_model import TunedModel
from rankwise.runs.records import silent
from rankwise.runs.row_facts import Pooling
from rankwise.text.encode_tags import encode_words
from rankwise.text.tagged import words_of
from rankwise.text.tokenize import Tokens

TEXTS = (
    "This is good.", "This is bad.", "The delivery came late, and the box was open.", "How much does it cost?",
    "I like it very much!", "No.", "The match ended two to one.", "Please send me the invoice again.",
)  # fmt: skip
TEXT_TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
IMAGE_TOLERANCE = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}
"""Of the largest difference of an output. Images are resized by another library in other software, which changes pixels
by one step of 255 here and there."""
PREDICTED = {"one": "classes", "several": "sets of classes", "tags": "tags of words"}
"""What is compared, by the form of the targets."""


@dataclass(frozen=True)
class ClassReference:
    about: str
    questions: tuple[dict[str, Any], ...]
    """{"text": …}, {"text": …, "words": [[start, end], …]} or {"image": path of a file}."""
    outputs: tuple[tuple[float, ...], ...]
    classes: tuple[str, ...]
    base_folder: str
    pooling: Pooling = "own"
    form: Literal["one", "several", "tags"] = "one"
    """Whether a row has one class or number, any number of classes, or a class for each of its words."""

    @property
    def images(self) -> bool:
        return "image" in self.questions[0]

    @property
    def request(self) -> dict[str, Any]:
        return {"questions": list(self.questions), "classes": list(self.classes), "outputs": len(self.classes) or 1,
                "base": self.base_folder, "pooling": self.pooling, "several": self.form == "several",
                "words": self.form == "tags"}  # fmt: skip

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


def class_reference_of(tuned: TunedModel, count: int, rows: str | None) -> ClassReference | None:
    """None for images that are no files any more, since there is nothing to show to other software."""
    documents, about = _documents(tuned, rows)
    classifier, module = tuned.classifier, tuned.model.module
    if tuned.reads_images:
        chosen = [one for one in documents if one.name is not None and Path(one.name).is_file()]
        picked = list(evenly(chosen, count))
        questions = [{"image": str(Path(str(one.name)).absolute())} for one in picked]
    else:
        texts = [tuned.model.tokenizer.readable([int(token) for token in one.ids]) for one in evenly(documents, count)]
        texts, about = (texts, about) if texts else (list(TEXTS), "built-in texts")
        questions, picked = _tagged(tuned, texts) if tuned.tags_words else _whole(tuned, texts)
    if not questions:
        return None
    of_rows = tag_probabilities if tuned.tags_words else outputs_of
    outputs = tuple(tuple(one.flatten().tolist()) for one in of_rows(classifier, module, picked))
    return ClassReference(
        f"{len(questions)} {about}", tuple(questions), outputs, classifier.targets.classes,
        str(tuned.model.source.folder.absolute()), classifier.targets.pooling, classifier.targets.form,
    )  # fmt: skip


def _whole(tuned: TunedModel, texts: Sequence[str]) -> tuple[list[dict[str, Any]], list[Tokens]]:
    rows, _ = tuned.rows_of([(text, "") for text in texts])
    return [{"text": text} for text in texts], rows


def _tagged(tuned: TunedModel, texts: Sequence[str]) -> tuple[list[dict[str, Any]], list[Tokens]]:
    """With the words that have a first token of their own, in characters."""
    words = [words_of(text) for text in texts]
    encoded = encode_words(tuned.model.tokenizer, list(zip(texts, words, strict=True)))
    questions = [
        {"text": text, "words": [ranges[number] for number in one.words]}
        for text, ranges, one in zip(texts, words, encoded, strict=True)
    ]
    return questions, [one.tokens for one in encoded]


def _documents(tuned: TunedModel, rows: str | None) -> tuple[list[Tokens], str]:
    try:
        found = rows_to_measure(tuned.artifact, tuned.model, rows, silent)
    except (RankwiseError, OSError):
        if rows is not None:
            raise
        return [], ""
    return list(found.documents), "validation rows" if rows is None else f"rows of {rows}"


def compare_classes(reference: ClassReference, replies: EngineReplies, number_format: str) -> EngineVerdict:
    """Equal predicted classes, and outputs within the tolerance."""
    limits = IMAGE_TOLERANCE if reference.images else TEXT_TOLERANCE
    allowed = limits[number_format]
    problems, differences, equal, near = [], list[float](), 0, 0
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
    figures = Figures(total, None, None, equal, near, mean, largest, allowed, number_format)
    return EngineVerdict(
        replies.engine, "wrong" if problems else "right", "; ".join(problems) or None, "run", replies.version, figures
    )  # fmt: skip
