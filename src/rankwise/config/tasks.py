"""Settings of an evaluation task: the rows, the question made from each row, and the metrics of the answers.

    task: tickets            # three lines for a file of your own
    data: tickets.jsonl
    score: [exact, json]

Without `ask`, rows are read as in training, and the question is everything before the last answer. With `ask`, the
question is written from the columns of a row ("{premise} Is it true that {hypothesis}?"), which works for any table.
Tasks on public data sets have names (BUILT_IN). Their files are read from RANKWISE_DATA, or from --data.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rankwise.config.base import NAME, Number, PositiveInt, Seed
from rankwise.config.data import Constrained, Reading
from rankwise.config.reading import read_settings
from rankwise.errors import DEVICE, ConfigError, did_you_mean, some

Score = Literal[
    "loss", "accuracy", "f1", "matthews", "pearson", "exact", "number", "json", "json_exact", "json_valid", "tool_call",
    "tool_function", "tool_arguments", "tool_missing", "tool_needless", "sql", "regex", "rouge_1", "rouge_2", "rouge_l",
    "bleu", "chrf",
]  # fmt: skip
MEANINGS = {
    "loss": "nats per token of the reference answers, end token included; lower is better",
    "cross_entropy": "nats per row of the right class, each row with weight 1; lower is better",
    "mean_squared_error": "the mean of the squared differences of predicted and true numbers; lower is better",
    "accuracy": "the share of items for which the model finds the right choice the most likely",
    "accuracy_unnormalised": "accuracy without dividing a choice's log-likelihood by its length",
    "balanced_accuracy": "the share of right predictions in each class, averaged over classes",
    "f1": "F1 of each class, averaged over classes (macro F1)",
    "matthews": "the correlation of predicted and true classes: 0 is chance, 1 is perfect",
    "micro_f1": "F1 of all labels together; a label is predicted where its probability is above 0.5",
    "exact_match": "the share of rows whose predicted labels are exactly the true ones",
    "span_f1": "F1 of spans, which are right where both ends and the type are",
    "span_precision": "the share of the predicted spans that are right",
    "span_recall": "the share of the true spans that are predicted",
    "token_accuracy": "the share of words with the right tag",
    "token_cross_entropy": "nats per word of the right tag, each word with weight 1; lower is better",
    "calibration_error": "how far the probabilities of predicted classes are from the share that is right, over "
    "fifteen ranges of probability (expected calibration error); lower is better",
    "pearson": "the correlation of predicted and true numbers (Pearson)",
    "spearman": "the correlation of the ranks of predicted and true numbers (Spearman)",
    "exact": "the share of answers that equal a reference, letter for letter, apart from white space around them",
    "number": "the share of answers whose final number equals that of a reference",
    "json": "the share of JSON fields that have the right value, averaged over items",
    "json_exact": "the share of answers whose JSON is the reference's as a whole, whatever the order of its names",
    "json_valid": "the share of answers that are JSON",
    "tool_call": "the share of answers with exactly the right calls of tools in any order; none where none is wanted",
    "tool_function": "the share of answers that call exactly the right functions, whatever the arguments",
    "tool_arguments": "the share of the calls of right functions that have exactly the right arguments",
    "tool_missing": "the share of the wanted calls whose function is not called; lower is better",
    "tool_needless": "the share of the calls in answers whose function is not wanted; lower is better",
    "sql": "the share of queries with the same result as the reference, on the database of their row",
    "regex": "the share of answers in which the pattern finds the same as in a reference",
    "rouge_1": "F1 of the words that answer and reference share (ROUGE-1)",
    "rouge_2": "F1 of the pairs of neighbouring words that answer and reference share (ROUGE-2)",
    "rouge_l": "F1 of the longest sequence of words that answer and reference share in order (ROUGE-L)",
    "bleu": "precision of the sequences of 1 to 4 words, with a penalty for short answers (sacreBLEU, 0 to 100)",
    "chrf": "F-score of the sequences of 1 to 6 characters (sacreBLEU's chrF2, 0 to 100)",
}
"""A description of each metric, for reports."""
CHOSEN = ("accuracy", "f1", "matthews")
LIKELIHOOD = ("loss", *CHOSEN)
HOME = "RANKWISE_DATA"
HELD_OUT = "held-out"
"""Name of the task on the validation rows that a run held out."""
OF_LM_EVAL = "lm-eval-"
"""Prefix of the names of lm-eval's tasks."""


class TaskConfig(Reading):
    """An evaluation task, as described by a YAML file for `rankwise evaluate --task`."""

    sections = ("data", "task")

    task: Annotated[str, Field(pattern=NAME)]
    """Name of the task in results and reports."""
    data: Annotated[str, Field(min_length=1)]
    """A file of rows, a folder of files, or `hub:organisation/name`. A .txt file is read as one running text."""
    score: tuple[Score, ...] = ("loss",)
    """Metrics to compute. `loss` is in nats per token of the reference answers. `accuracy`, `f1` and `matthews` take
    the most likely of several choices; if each row has its own choices, the likelihood is divided by the length. The
    others compare a generated answer with the reference."""
    ask: str | None = None
    """The question, as a text with column names in braces. By default it is everything before a row's last answer."""
    answer: str | tuple[str, ...] | None = None
    """The reference answer, as a text with column names in braces. For choices it is the number, letter or text of the
    right one. For text metrics it may be several references: a list of such texts, or a column that contains a list."""
    choices: str | tuple[str, ...] | None = None
    """The choices: a column that contains a list for each row, a text of column names in braces separated by `;`, or
    a list that applies to all rows. The default is the column `choices`, or all answers that occur."""
    lettered: bool = False
    """List the choices below the question as A, B, C …, and choose between the letters."""
    header: tuple[str, ...] = ()
    """Column names of a table that has no header line."""
    chat: bool = True
    """Whether the question is put into the model's chat template. If false, the model continues the question as plain
    text, as is usual for base models."""
    system: str | None = None
    """System message before each question."""
    max_new_tokens: PositiveInt = 128
    """Largest number of tokens in a generated answer."""
    pattern: str | None = None
    """Regular expression of the metric `regex`. Its groups must match the same text in the answer as in the reference.
    Without groups, it must match anywhere in the answer."""
    tolerance: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """For `number`, and for the numbers in the fields of `json`: how far a number may be from the reference's, as a
    share of the reference (0.01 is 1 %). The default is 0 for `number`, and 0.01 for the figure `near` of a field."""
    units: bool = False
    """For `number`: whether the word after the number must be that of the reference, if the reference has one."""
    constraint: Constrained = "own"
    """What answers are held to: `own` (the constraint of the run's rows), `none`, or `kind` and `text` of another."""
    seed: Seed = 0
    """Seed of the random choice of `rows`."""

    @field_validator("score", mode="before")
    @classmethod
    def _one_score(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("ask", "answer", "choices", "system")
    @classmethod
    def _check_template(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        try:
            "".join(value or ()).encode()
        except UnicodeEncodeError:
            raise ValueError("it contains half a character (a lone surrogate)") from None
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        import regex  # late: most tasks have none

        if value == "":
            raise ValueError("it is empty, so it would match every answer")
        try:
            regex.compile(value or "")
        except regex.error as error:
            raise ValueError(f"it is not a valid regular expression ({error})") from None
        return value

    @property
    def distinct_scores(self) -> bool:
        return len(set(self.score)) == max(1, len(self.score))

    @property
    def several_answers(self) -> bool:
        return isinstance(self.answer, tuple)

    @property
    def has_choices(self) -> bool:
        return self.choices is not None or self.lettered

    @property
    def distinct_choices(self) -> bool:
        """Whether those that apply to all rows are two or more, and none of them empty."""
        choices = self.choices
        return not isinstance(choices, tuple) or len({*filter(str.strip, choices)}) >= max(2, len(choices))

    @property
    def chosen(self) -> bool:
        return any(score in CHOSEN for score in self.score)

    @property
    def used_columns(self) -> tuple[str, ...]:
        """The scores that need an answer to be generated."""
        return tuple(score for score in self.score if score not in LIKELIHOOD)

    @property
    def running_text(self) -> bool:
        return is_running_text(self.data)


def is_running_text(data: str) -> bool:
    return data.lower().endswith(".txt")


def task_named(name: str, data: str | None = None, rows: int | None = None, score: tuple[str, ...] = ()) -> TaskConfig:
    """A built-in task, the task of a YAML file, or the loss on a file. The others override its settings."""
    given = {
        key: value for key, value in (("data", data), ("rows", rows), ("score", score or None)) if value is not None
    }
    if name in BUILT_IN:
        values = {"task": name, **BUILT_IN[name], **given}
        if data is None:
            values["data"] = _home_of(name, values["data"])
        return TaskConfig(**values)
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        default = {"task": _own_name(Path(name).stem)}
        return refuse_taken(read_settings(Path(name), TaskConfig, given, default), name)
    if _is_file(name):
        if data is not None:
            raise ConfigError([f"{name} and {data} are both files of rows. Give one of them (--task or --data)."])
        return task_of_rows(name, **given)
    raise ConfigError(
        [f'there is no task "{name}".{did_you_mean(name, BUILT_IN)} A task is one of {some(BUILT_IN, 40)}; or a YAML '
         "file with task, data and score; or a file of rows."]
    )  # fmt: skip


def names_rows(name: str) -> bool:
    """Whether it is a file, a folder or a hub data set of rows, and no task."""
    is_task = name in BUILT_IN or Path(name).suffix.lower() in (".yaml", ".yml")
    return not is_task and not is_running_text(name) and _is_file(name)


def _is_file(name: str) -> bool:
    return os.path.exists(name) or name.startswith("hub:")  # noqa: PTH110  Path.exists raises where a name is too long


def task_of_rows(data: str, **settings: Any) -> TaskConfig:
    """The loss on a file of rows, as a task named after the file."""
    return TaskConfig(**{"task": _own_name(Path(data).stem), "data": data, **settings})


def refuse_taken(task: TaskConfig, where: str) -> TaskConfig:
    """Refuse a name that belongs to another task, because results are stored by name. A task that asks exactly as a
    public one does may have its name."""
    public = BUILT_IN.get(task.task)
    if _taken(task.task) and (public is None or public.get("ask") != task.ask):
        raise ConfigError(
            [f'{where}: the name "{task.task}" belongs to another task, whose results it would replace; '
             f"choose another name, such as task: my-{task.task[:61]}"]
        )  # fmt: skip
    return task


def _taken(name: str) -> bool:
    """Whether a name is reserved. Some file systems do not distinguish capitals, so they make no difference."""
    return name.lower() in (HELD_OUT, *BUILT_IN) or re.match(f"{OF_LM_EVAL}|{DEVICE}", name.lower()) is not None


def _home_of(name: str, file: str) -> str:
    home = os.environ.get(HOME)
    if home is None:
        raise ConfigError(
            [f'the task "{name}" reads {file}: give it with --data FILE, or set {HOME} to the folder that contains it.']
        )
    return os.path.join(home, file)  # noqa: PTH118


def _own_name(stem: str) -> str:
    """Name of a task after its file, changed if that name is reserved."""
    letters = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in stem).strip("-")
    name = letters[:64] or "rows"
    return f"{name[:59]}-rows" if _taken(name) else name


def _raw(file: str, ask: str, *, score: tuple[str, ...] = ("accuracy",), **more: Any) -> dict[str, Any]:
    return {"data": file, "ask": ask, "score": score, "chat": False, **more}


def _glue(file: str, ask: str, labels: tuple[str, ...], *score: str, **more: Any) -> dict[str, Any]:
    return {"data": f"glue/{file}", "ask": ask, "choices": labels, "score": score, **more}


BUILT_IN: dict[str, dict[str, Any]] = {
    "arc_easy": _raw("retention/arc_easy_test.jsonl", "{query}\nAnswer:", choices="choices"),
    "arc_challenge": _raw("retention/arc_challenge_test.jsonl", "{query}\nAnswer:", choices="choices"),
    "boolq": _raw("retention/boolq_val.jsonl", "{query}\nAnswer:", choices="choices"),
    "hellaswag": _raw("retention/hellaswag_val.jsonl", "{ctx}", choices="endings", answer="{label}"),
    "mmlu": _raw("retention/mmlu_test.jsonl", "{question}", choices="choices", lettered=True),
    "openbookqa": _raw("retention/openbookqa_test.jsonl", "{query}", choices="choices"),
    "piqa": _raw("retention/piqa_val.jsonl", "{query}Answer:", choices="choices"),
    "winogrande": _raw("retention/winogrande_val.jsonl", "{context_options}", answer="{continuation}"),
    "lambada": _raw(
        "retention/lambada_openai_test.jsonl", "{context}", answer="{continuation}", score=("loss",)
    ),
    "humaneval": _raw(
        "retention/humaneval.jsonl", "{prompt}", answer="{canonical_solution}", score=("loss",)
    ),
    "truthfulqa": _raw(
        "retention/truthfulqa.jsonl", "Q: {Question}\nA:", choices="{Best Answer}; {Incorrect Answers}"
    ),
    "wikitext": {"data": "retention/wikitext-2/valid.txt", "score": ("loss",)},
    "svamp": {
        "data": "retention/svamp.jsonl", "ask": "{context}", "answer": "{answer}", "score": ("number",),
    },
    "gsm8k": {"data": "gsm8k/test.jsonl", "score": ("number",), "max_new_tokens": 256},
    "cola": _glue(
        "CoLA/dev.tsv", 'Is this sentence grammatical? Answer yes or no.\n"{sentence}"', ("no", "yes"),
        "matthews", "accuracy", header=("source", "label", "mark", "sentence"), answer="{label}",
    ),
    "sst2": _glue(
        "SST-2/dev.tsv", "Is the feeling of this review negative or positive?\n{sentence}", ("negative", "positive"),
        "accuracy", answer="{label}",
    ),
    "rte": _glue(
        "RTE/dev.tsv", "{sentence1}\nDoes this follow from it? {sentence2}", ("entailment", "not_entailment"),
        "accuracy", "f1", answer="{label}",
    ),
    "qnli": _glue(
        "QNLI/dev_0_2999.tsv", "{question}\nDoes this text answer the question? {sentence}",
        ("entailment", "not_entailment"), "accuracy", "f1", answer="{label}",
    ),
    "stsb": {
        "data": "glue/STS-B/dev.tsv", "score": ("pearson",), "answer": "{score}", "max_new_tokens": 8,
        "ask": "How alike are these sentences, from 0 (not at all) to 5 (the same)? Answer with a number.\n"
        "{sentence1}\n{sentence2}",
    },
}  # fmt: skip
