"""Row formats: check a raw row and make one or more Examples of it.

The columns of a file's first row decide its format, and every row must have this format. An error names the line, the
columns of the row, and the missing columns. Anything in a row that rankwise cannot use as intended is refused and not
silently ignored. turns.py reads conversations, and rows/text/rendering.py comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankwise.config.base import shown
from rankwise.errors import DataError, some
from rankwise.rows.forms.columns import (
    ABOUT,
    SYSTEM,
    Row,
    answered,
    context_of,
    refuse_rivals,
    renamed,
    require,
    system_of,
)
from rankwise.rows.forms.image_rows import image_example, image_field, is_image
from rankwise.rows.forms.labels import label_set, label_text
from rankwise.rows.forms.pair_rows import FIELDS_OF_PAIRS, is_pair, pair_example
from rankwise.rows.forms.proposals import as_text, can_be_typed, ignoring, no_form, options_for, texts_among
from rankwise.rows.forms.tagged_rows import has_spans, has_tags, list_in, spans_example, tokens_example
from rankwise.rows.forms.turns import (
    answers_of,
    check_calls,
    is_json,
    read_tools,
    read_turns,
    refuse_unsupported,
    text_of,
    texts_of,
    turns_of_history,
    turns_of_prompt,
)
from rankwise.rows.text.example import Example, Message

FIELDS = (
    "messages", "conversations", "tools", "system", "system_prompt", "prompt", "question", "completion", "response",
    "answer", "answers", "text", "text_pair", "label", "instruction", "input", "output", "history", "context",
    "instances", "image", "chosen", "rejected", "choices", "tokens", "tags", "spans",
)  # fmt: skip
"""The fields that a format may read, by the names that data.columns gives columns."""
FIELDS_OF_INPUT_OUTPUT = frozenset({"input", "output", *SYSTEM})
QUESTION_FIELDS, ANSWER_FIELDS = ("prompt", "question"), ("completion", "response", "answer", "answers")
CLASSIFIED = (
    ("text",), ("sentence1", "sentence2"), ("question", "sentence"), ("premise", "hypothesis"),
    ("question1", "question2"), ("sentence",),
)  # fmt: skip
"""Fields of a classification row beside the label: one text, or two texts to compare. Names of GLUE included."""
IMAGE_COLUMNS = ("images", "img", "pixel_values")
"""Columns that hold an image or several, whatever their values look like."""
CONVERSATIONS = ("messages", "conversations")
MOST_CHOICES = 100


def is_input_output(row: Row) -> bool:
    return "input" in row and "output" in row


def input_output_examples(row: Row, where: str, *, each: bool) -> list[Example]:
    """With `each`, one example for every text of an output that is a list of them."""
    require(row, where, "input-output", "input", "output")
    refuse_unsupported(row, where, "row", ("context", "history", "tools"))
    system, given = system_of(row, where), text_of(row["input"], where, "input")
    first = (Message("system", system),) if system else ()
    answers = answers_of(row["output"], where, "output")
    return answered((*first, Message("user", given)), answers, where, each=each)


@dataclass(frozen=True)
class Choices(Example):
    """A question with the answers that are to choose from. The right one, where there is one, is the last message."""

    choices: tuple[str, ...] = ()

    @property
    def special(self) -> tuple[str, str] | None:
        return "choices", (
            "questions with choices. Add --objective multiple-choice, or --set data.format=prompt to learn the right "
            "ones as answers."
        )

    @property
    def exchange(self) -> tuple[str, str] | None:
        """The choices belong to the question, in any order."""
        turns = super().exchange
        return turns and ("\n".join([turns[0], *sorted(self.choices)]), turns[1])

    @property
    def answer(self) -> int | None:
        """The number of the right choice."""
        last = self.messages[-1]
        return self.choices.index(last.content) if last.role == "assistant" else None

    @property
    def question(self) -> Choices:
        return replace(self, messages=tuple(turn for turn in self.messages if turn.role != "assistant"))

    @property
    def conversations(self) -> list[tuple[Message, ...]]:
        """The question with each choice."""
        return [(*self.question.messages, Message("assistant", choice)) for choice in self.choices]

    @property
    def full_text(self) -> str:
        return "\n".join([*(turn.text for turn in self.messages if turn.role != "system"), *self.choices])


def lists_choices(value: Any) -> bool:
    """Whether it is a list in which each could be a text."""
    listed = list_in(value)
    return isinstance(listed, list) and not any(isinstance(one, dict | list) for one in listed)


def choice_example(row: Row, where: str) -> Choices:
    """DataError where there are not two choices or more, all of them different, or the answer is none of them."""
    require(row, where, "multiple-choice", "question", "choices")
    refuse_unsupported(row, where, "row", ("history", "tools"))
    given = _context(text_of(row["question"], where, "question"), row, where)
    listed = list_in(row["choices"])
    if not isinstance(listed, list):
        raise DataError(f"{where}: the choices are {shown(listed)}; a list of texts is expected.")
    choices = tuple(text_of(one, where, f"choice {number}").strip() for number, one in enumerate(listed))
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise DataError(
            f"{where}: from 2 to {MOST_CHOICES} choices are expected, and the number here is {len(choices)}."
        )
    if (doubled := next((one for one in choices if choices.count(one) > 1), None)) is not None:
        raise DataError(f"{where}: the choice {shown(doubled)} is there {choices.count(doubled)} times; name it once.")
    answer = _answer_among(row.get("answer"), choices, where)
    return Choices((*given, *answer), where, choices=choices)


def _answer_among(answer: Any, choices: tuple[str, ...], where: str) -> tuple[Message, ...]:
    """By its text, or by its number from 0 on; a table writes numbers as texts."""
    if answer is None or answer == "":
        return ()
    text = answer.strip() if isinstance(answer, str) else None
    if text in choices:
        return (Message("assistant", text),)
    number = int(text) if text is not None and text.isdecimal() else answer
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(choices):
        raise DataError(
            f"{where}: the answer is {shown(answer)}, which is none of the {len(choices)} choices, by its text or by "
            f"its number from 0 to {len(choices) - 1}."
        )
    return (Message("assistant", choices[number]),)


@dataclass(frozen=True)
class FormOptions:
    """Options of reading beside the format: label names, and whether each of several answers becomes an example."""

    labels: tuple[str, ...]
    each: bool
    renamed: bool
    """Whether data.columns mapped columns of the file to fields."""
    folder: Path | None = None
    """The folder that paths of images are relative to."""


def form_of(row: Row) -> str | None:
    return next((name for name, form in FORMS.items() if form.fits(row)), None)


def find_format(row: Row, where: str) -> str:
    """The format that the columns of a file's first row decide for the whole file."""
    if (form := form_of(row)) is None:
        raise DataError(no_form(row, where))
    return form


def parse_row(
    row: Row,
    form: str,
    where: str,
    *,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: tuple[str, ...] = (),
    alternatives: Literal["first", "each"] = "first",
    folder: Path | None = None,
) -> list[Example]:
    """The examples of a row: usually one, several for Self-Instruct instances or with `alternatives="each"`."""
    row = renamed(row, columns or {}, where)
    refuse_unsupported(row, where, "row", ("images", "audios", "audio", "videos", "video"))
    refuse_rivals(row, where)
    if form in ("messages", "sharegpt", "prompt") and isinstance(row.get("label"), bool):
        raise DataError(
            f"{where}: the label is {row['label']}, so this is a preference row, which is not supported yet."
        )
    options = FormOptions(labels, alternatives == "each", bool(columns), folder)
    examples = FORMS[form].examples(row, where, options)
    for example in examples:
        if example.tools:
            check_calls((*example.messages, *example.rejected), example.tools, where)
    return [_with_system(example, system) for example in examples]


def refuse_other_form(row: Row, form: str, where: str, *, is_named: bool) -> None:
    """Refuse a row in another format than its file's. parse_row reports a row that fits no format.

    If the user gave the format, a row that fits it is accepted.
    """
    other = form if is_named and FORMS[form].fits(row) else form_of(row)
    if other is not None and other != form:
        keys = some(map(shown, row), 8)
        raise DataError(f"{where}: is in the {other} format, but its file is in the {form} format ({keys}).")


def _with_system(example: Example, system: str | None) -> Example:
    if system is None or example.text is not None or example.messages[0].role == "system":
        return example
    rejected = example.rejected and (Message("system", system), *example.rejected)
    return replace(example, messages=(Message("system", system), *example.messages), rejected=rejected)


def _conversation(row: Row, where: str, key: str, *, skip_first_answer: bool = False) -> Example:
    require(row, where, key, key)
    refuse_unsupported(row, where, "row", ("functions", "function_call"))
    turns = read_turns(row[key], where, key, skip_first_answer=skip_first_answer)
    return Example(_after_system(row, turns, where), where, read_tools(row.get("tools"), where))


def _after_system(row: Row, turns: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    system, first = system_of(row, where), turns[0]
    if not system or (first.role == "system" and first.content == system):
        return turns
    if first.role == "system":
        raise DataError(
            f"{where}: its first turn is the system message {shown(first.content)}, and the row has another "
            f"system message, {shown(system)}; leave out one."
        )
    return (Message("system", system), *turns)


def _prompt(row: Row, where: str, options: FormOptions) -> list[Example]:
    question_field = next((key for key in QUESTION_FIELDS if key in row), QUESTION_FIELDS[0])
    answers_in = next((key for key in ANSWER_FIELDS if key in row), ANSWER_FIELDS[0])
    require(row, where, "prompt", question_field, answers_in)
    refuse_unsupported(row, where, "row", ("history",))
    answers = _answers(row, answers_in, where)
    if isinstance(row[question_field], list) or (answers is None and isinstance(row[answers_in], list)):
        refuse_unsupported(row, where, "row", ABOUT)
        completion = row[answers_in] if answers is None else answers[0]
        turns = _after_system(row, turns_of_prompt(row[question_field], completion, where), where)
        tools = read_tools(row.get("tools"), where)
        if answers is not None:
            return answered(turns[:-1], answers, where, each=options.each, tools=tools)
        return [Example(turns, where, tools)]
    refuse_unsupported(row, where, "row", ("tools",))
    question, answer = text_of(row[question_field], where, question_field), row[answers_in]
    if isinstance(answer, int | float) and not options.renamed:
        hint = as_text(row, question_field, answers_in)
        raise DataError(f"{where}: the {answers_in} is {shown(answer)}; text is expected.{hint}")
    answers = answers or (text_of(answer, where, answers_in),)
    return answered(_context(question, row, where), answers, where, each=options.each)


def _answers(row: Row, key: str, where: str) -> tuple[str, ...] | None:
    """All answers: a list of texts, a text and the list in the field `answers`, or one JSON value. None for a text."""
    several = answers_of(row[key], where, key) if is_json(row[key]) else texts_of(row[key], where, key)
    if key == "answers" or not row.get("answers") or not isinstance(row[key], str):
        return several
    others = texts_of(row["answers"], where, "answers")
    if others is None:
        raise DataError(f'{where}: "answers" is {shown(row["answers"])}; a list of texts is expected.')
    return tuple(dict.fromkeys((text_of(row[key], where, key), *others)))


def _alpaca(row: Row, where: str, options: FormOptions) -> list[Example]:
    require(row, where, "alpaca", "instruction", "output")
    return _instruction(row, where, "output", options)


def _dolly(row: Row, where: str, options: FormOptions) -> list[Example]:
    require(row, where, "dolly", "instruction", "response")
    return _instruction(row, where, "response", options)


def _instruction(row: Row, where: str, answers_in: str, options: FormOptions) -> list[Example]:
    given = _context(text_of(row["instruction"], where, "instruction"), row, where)
    refuse_unsupported(row, where, "row", ("tools",))
    *first, question = given
    earlier = turns_of_history(row.get("history"), where)
    answers = answers_of(row[answers_in], where, answers_in)
    return answered((*first, *earlier, question), answers, where, each=options.each)


def _self_instruct(row: Row, where: str, options: FormOptions) -> list[Example]:
    require(row, where, "self-instruct", "instruction", "instances")
    refuse_unsupported(row, where, "row", (*ABOUT, *SYSTEM, "history", "tools"))
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not all(isinstance(item, dict) for item in instances):
        raise DataError(f'{where}: "instances" is {shown(instances)}; a list of input and output is expected.')
    flat = [{"instruction": row["instruction"], **instance} for instance in instances]
    return [example for item in flat for example in _alpaca(item, where, options)]


def _text(row: Row, where: str, options: FormOptions) -> list[Example]:
    require(row, where, "text", "text")
    return [Example((), where, text=text_of(row["text"], where, "text"))]


def _classification(row: Row, where: str, options: FormOptions) -> list[Example]:
    first, *second = classified(row) or CLASSIFIED[0]
    require(row, where, "classification", first, "label")
    beside = second[0] if second else "text_pair"
    given = row.get(beside)
    none = given is None or (not second and isinstance(given, str) and not given.strip())  # as a table writes None
    pair = "" if none else text_of(given, where, beside)
    text, label = text_of(row[first], where, first), row["label"]
    names = label_set(label, options.labels, where) if isinstance(label, list) else None
    answer = label_text(label, options.labels, where) if names is None else ", ".join(names) or "(none)"
    (example,) = answered((*_system(row, where), Message("user", text, pair)), (answer,), where, each=False)
    return [replace(example, labels=names)]


def classified(row: Row) -> tuple[str, ...] | None:
    """The text fields of a classification row."""
    return next((names for names in CLASSIFIED if all(name in row for name in names)), None)


def _context(question: str, row: Row, where: str) -> tuple[Message, ...]:
    """The row's system message, and the question with its context."""
    context = context_of(row, where)
    return (*_system(row, where), Message("user", question, context))


def _system(row: Row, where: str) -> tuple[Message, ...]:
    text = system_of(row, where)
    return (Message("system", text),) if text else ()


@dataclass(frozen=True)
class Form:
    """A row format: whether a row fits, the fields that are read of it, and the examples that it becomes."""

    fits: Callable[[Row], bool]
    fields: frozenset[str]
    examples: Callable[[Row, str, FormOptions], list[Example]]


_SYSTEM = frozenset(SYSTEM)
_TALK = _SYSTEM | {"tools"}
_INSTRUCTION = _SYSTEM | {"instruction", "output", "response", "history", *ABOUT}
FORMS = {
    "preference": Form(is_pair, FIELDS_OF_PAIRS, lambda row, where, options: [pair_example(row, where)]),
    "multiple-choice": Form(
        lambda row: "question" in row and lists_choices(row.get("choices")),
        _SYSTEM | {"question", "choices", "answer", *ABOUT},
        lambda row, where, options: [choice_example(row, where)],
    ),
    "tokens": Form(
        has_tags, frozenset({"tokens", "tags"}),
        lambda row, where, options: [tokens_example(row, options.labels, where)],
    ),
    "spans": Form(
        has_spans, frozenset({"text", "spans"}),
        lambda row, where, options: [spans_example(row, options.labels, where)],
    ),
    "messages": Form(
        lambda row: "messages" in row, _TALK | {"messages"},
        lambda row, where, options: [_conversation(row, where, "messages")],
    ),
    "sharegpt": Form(
        lambda row: "conversations" in row, _TALK | {"conversations"},
        lambda row, where, options: [_conversation(row, where, "conversations", skip_first_answer=True)],
    ),
    "oasst-trees": Form(
        lambda row: isinstance(row.get("prompt"), dict) and "replies" in row["prompt"], frozenset({"prompt"}),
        lambda row, where, options: [tree_example(row, where)],
    ),
    "self-instruct": Form(
        lambda row: "instruction" in row and "instances" in row, frozenset({"instruction", "instances"}),
        _self_instruct,
    ),
    "alpaca": Form(lambda row: "instruction" in row and "output" in row, _INSTRUCTION, _alpaca),
    "dolly": Form(lambda row: "instruction" in row and "response" in row, _INSTRUCTION, _dolly),
    "prompt": Form(
        lambda row: any(key in row for key in QUESTION_FIELDS) and any(key in row for key in ANSWER_FIELDS),
        _TALK | {*QUESTION_FIELDS, *ANSWER_FIELDS, *ABOUT}, _prompt,
    ),
    "input-output": Form(
        is_input_output, FIELDS_OF_INPUT_OUTPUT,
        lambda row, where, options: input_output_examples(row, where, each=options.each),
    ),
    "classification": Form(
        lambda row: "label" in row and classified(row) is not None, _SYSTEM | {"label"}, _classification
    ),
    "text": Form(lambda row: "text" in row, frozenset({"text"}), _text),
    "image": Form(
        lambda row: image_field(row) is not None, frozenset({"label"}),
        lambda row, where, options: [image_example(row, options.labels, where, options.folder)],
    ),
}  # fmt: skip
"""By name; a file has the first that its first row fits."""


def used_fields(row: Row, form: str) -> frozenset[str]:
    """The fields that are read of a row."""
    fields = FORMS[form].fields
    if form == "image":
        return fields | {image_field(row) or "image"}
    if form != "classification":
        return fields
    names = classified(row) or CLASSIFIED[0]
    return fields | {*names} | ({"text_pair"} if len(names) == 1 else set())


def tree_example(row: Row, where: str) -> Example:
    """The best-ranked path through a tree of OpenAssistant messages, as long as it ends with an answer."""
    require(row, where, "oasst-trees", "prompt")
    node, path = row["prompt"], []
    while isinstance(node, dict):
        path.append({"role": {"prompter": "user"}.get(str(node.get("role")), node.get("role")),
                     "content": node.get("text")})  # fmt: skip
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise DataError(f"{where}: the replies are {shown(replies)}; a list of messages is expected.")
        replies = [reply for reply in replies if isinstance(reply, dict)]
        node = min(replies, key=_rank, default=None)
    while path and path[-1]["role"] == "user":
        path.pop()
    if not path:
        raise DataError(f"{where}: no message of the tree is an answer.")
    return Example(read_turns(path, where, "prompt"), where)


def _rank(reply: Row) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int) else float("inf")


def refuse_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse preference rows (chosen and rejected answers, or a label)."""
    if "chosen" in row and "rejected" in row and "chosen" not in columns.values():
        raise DataError(
            f"{where}: is a preference pair (chosen, rejected). To train on pairs, add --objective preference; to "
            f"train on the chosen answers alone, add {_chosen_alone(row)} {ignoring(['rejected'])}."
        )
    if isinstance(row.get("label"), bool) and any(name in row for name in (*CONVERSATIONS, *QUESTION_FIELDS)):
        raise DataError(
            f"{where}: its label is {row['label']}, so it is a preference row (KTO). Preference rows are not supported "
            "yet; to train on the good answers alone, keep the rows whose label is true and remove the column label."
        )


def accept_row(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """A pair is what is to be learned."""


ROW_CHECKS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str], str], None]] = {"preference": accept_row}
"""By the format that is given; rows of every other are looked at by `refuse_row`."""


def refuse_images(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse a row with an image in an unknown column, with several images, or with a text beside its image.

    The columns of the row are renamed as in `columns` (data.columns).
    """
    if "image" in row and (isinstance(row["image"], np.ndarray) or row["image"]):
        others = {name: value for name, value in row.items() if name != "image"}
        form = next((name for name, one in FORMS.items() if name != "image" and one.fits(others)), None)
        if form is not None:
            column = columns.get("image", "image")
            raise DataError(
                f"{where}: has an image in the column {shown(column)} beside the columns of the {form} format. Rows "
                "with an image and a text are not supported yet. To train on the text alone, add "
                f"{ignoring([column])}; to train on the image and its label alone, add --set data.format=image."
            )
        return
    name = next((name for name, value in row.items() if is_image(value) or (name in IMAGE_COLUMNS and value)), None)
    if name is not None and isinstance(row[name], list):
        raise DataError(
            f"{where}: contains images in the column {shown(name)}. Rows with several images are not supported yet."
        )
    if name is not None:
        raise DataError(
            f"{where}: contains an image in the column {shown(name)}. To train on it, add --set "
            f"data.columns.image={name}; to leave it out, add {ignoring([name])}."
        )


def _chosen_alone(row: Mapping[str, Any]) -> str:
    """The flags that train on the chosen answers of a preference row."""
    chosen = row["chosen"]
    turns = chosen if isinstance(chosen, list) else []
    if any(isinstance(turn, dict) and turn.get("role") == "user" for turn in turns):
        return "--set data.columns.messages=chosen"
    for field, questions in (("completion", QUESTION_FIELDS), ("output", ("instruction",))):
        if any(name in row for name in questions):
            return f"--set data.columns.{field}=chosen"
    others = {name: value for name, value in row.items() if name not in ("chosen", "rejected") and can_be_typed(name)}
    texts = texts_among(others)
    return options_for(texts, ["chosen"]) if texts else "--set data.columns.text=chosen"
