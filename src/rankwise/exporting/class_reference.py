"""What our own classifier says of held-out texts or images, in float32: what other software is compared with.

A text is what the tokenizer reads back from a row's ids, so that every engine is given the same text; an image is the
file that the row came from. Outputs are the probability of each class, in the order of the classes, or a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.data.sequences import evenly
from rankwise.errors import RankwiseError
from rankwise.evaluation.validation_rows import rows_to_measure
from rankwise.exporting.agreement import EngineVerdict, Figures
from rankwise.exporting.engine_process import EngineReplies
from rankwise.inference.classify import outputs_of
from rankwise.inference.tuned_model import TunedModel
from rankwise.runs.records import silent
from rankwise.text.tokenize import Tokens

TEXTS = (
    "This is good.", "This is bad.", "The delivery came late, and the box was open.", "How much does it cost?",
    "I like it very much!", "No.", "The match ended two to one.", "Please send me the invoice again.",
)  # fmt: skip
TEXT_TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
IMAGE_TOLERANCE = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}
"""Of the largest difference of an output. Images are resized by another library in other software, which changes pixels
by one step of 255 here and there."""


@dataclass(frozen=True)
class ClassReference:
    about: str
    questions: tuple[dict[str, str], ...]
    """{"text": …} or {"image": path of a file}."""
    outputs: tuple[tuple[float, ...], ...]
    classes: tuple[str, ...]
    base_folder: str
    several: bool = False
    """Whether a row may have several classes, each with a probability of its own."""

    @property
    def images(self) -> bool:
        return "image" in self.questions[0]

    @property
    def request(self) -> dict[str, Any]:
        return {"questions": list(self.questions), "classes": list(self.classes), "outputs": len(self.outputs[0]),
                "base": self.base_folder, "several": self.several}  # fmt: skip


def class_reference_of(tuned: TunedModel, count: int, rows: str | None) -> ClassReference | None:
    """None for images that are no files any more, since there is nothing to show to other software."""
    documents, about = _documents(tuned, rows)
    classifier = tuned.classifier
    if tuned.reads_images:
        chosen = [one for one in documents if one.name is not None and Path(one.name).is_file()]
        picked = list(evenly(chosen, count))
        questions = tuple({"image": str(Path(str(one.name)).absolute())} for one in picked)
    else:
        texts = [tuned.model.tokenizer.readable([int(token) for token in one.ids]) for one in evenly(documents, count)]
        texts, about = (texts, about) if texts else (list(TEXTS), "built-in texts")
        picked, _ = tuned.rows_of([(text, "") for text in texts])
        questions = tuple({"text": text} for text in texts)
    if not questions:
        return None
    outputs = outputs_of(classifier, tuned.model.module, picked)
    return ClassReference(
        f"{len(questions)} {about}", questions, tuple(map(tuple, outputs.tolist())), classifier.targets.classes,
        str(tuned.model.source.folder.absolute()), classifier.targets.form == "several",
    )  # fmt: skip


def _documents(tuned: TunedModel, rows: str | None) -> tuple[list[Tokens], str]:
    try:
        found = rows_to_measure(tuned.artifact, tuned.model, rows, silent)
    except (RankwiseError, OSError):
        if rows is not None:
            raise
        return [], ""
    return list(found.documents), "validation rows" if rows is None else f"rows of {rows}"


def compare_classes(reference: ClassReference, replies: EngineReplies, number_format: str) -> EngineVerdict:
    """Equal likeliest classes, and outputs within the tolerance."""
    limits = IMAGE_TOLERANCE if reference.images else TEXT_TOLERANCE
    allowed = limits[number_format]
    problems, differences, equal, near = [], list[float](), 0, 0
    for ours, reply in zip(reference.outputs, replies.replies, strict=True):
        theirs = reply.outputs
        if theirs is None or len(theirs) != len(ours):
            problems.append(f"it gives {0 if theirs is None else len(theirs)} outputs, and there are {len(ours)}")
            break
        differences += [abs(one - other) / max(1.0, abs(other)) for one, other in zip(theirs, ours, strict=True)]
        same = theirs.index(max(theirs)) == ours.index(max(ours))
        equal += same
        near += not same and sorted(ours)[-1] - sorted(ours)[-2] <= 2 * allowed
    mean, largest = (sum(differences) / len(differences), max(differences)) if differences else (None, None)
    if largest is not None and not largest <= allowed:
        problems.append(f"outputs differ by up to {largest:.2g}, and {number_format} allows {allowed:.2g}")
    if not problems and equal + near < len(reference.outputs):
        problems.append(f"{len(reference.outputs) - equal - near} of {len(reference.outputs)} classes differ")
    figures = Figures(len(reference.outputs), None, None, equal, near, mean, largest, allowed, number_format)
    return EngineVerdict(
        replies.engine, "wrong" if problems else "right", "; ".join(problems) or None, "run", replies.version, figures
    )  # fmt: skip
