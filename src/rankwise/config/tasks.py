"""What a model is asked in an evaluation, and by which metrics its answers are scored.

    task: tickets            # three lines over a file of the user's own
    data: tickets.jsonl
    score: [exact, json]

Without `ask` rows are read as training reads them, and what is asked is all that comes before their last answer. With
`ask` a question is written from a row's own columns ("{premise} Is it true that {hypothesis}?"), so any table will do.
Tasks for public sets have names (BUILT_IN); their files are looked for under RANKWISE_DATA, or given by --data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rankwise.config.base import PositiveInt, Seed
from rankwise.config.data import OF_TABLES, Reading
from rankwise.config.reading import read_settings
from rankwise.errors import ConfigError, did_you_mean, some

Score = Literal[
    "loss", "accuracy", "f1", "matthews", "pearson", "exact", "number", "json", "regex", "rouge_1", "rouge_2",
    "rouge_l", "bleu", "chrf",
]  # fmt: skip
MEANINGS = {
    "loss": "nats per token of the reference answers, end token included; lower is better",
    "accuracy": "the share of items for which the model finds the right choice the most likely",
    "accuracy_unnormalised": "accuracy without dividing a choice's log-likelihood by its length",
    "f1": "F1 of each class, averaged over classes (macro F1)",
    "matthews": "the correlation of predicted and true classes: 0 is chance, 1 is perfect",
    "pearson": "the correlation of the number in the answer with the number in the reference",
    "exact": "the share of answers that equal a reference, letter for letter, apart from white space around them",
    "number": "the share of answers whose final number equals that of a reference",
    "json": "the share of JSON fields that have the right value, averaged over items",
    "regex": "the share of answers in which the pattern finds the same as in a reference",
    "rouge_1": "F1 of the words that answer and reference share (ROUGE-1)",
    "rouge_2": "F1 of the pairs of neighbouring words that answer and reference share (ROUGE-2)",
    "rouge_l": "F1 of the longest sequence of words that answer and reference share in order (ROUGE-L)",
    "bleu": "precision of the sequences of 1 to 4 words, with a penalty for short answers (sacreBLEU, 0 to 100)",
    "chrf": "F-score of the sequences of 1 to 6 characters (sacreBLEU's chrF2, 0 to 100)",
}
"""One line about each metric, for whoever reads a score."""
CHOSEN = ("accuracy", "f1", "matthews")
LIKELIHOOD = ("loss", *CHOSEN)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
HOME = "RANKWISE_DATA"
HELD_OUT = "held-out"
"""The task of the rows that a run held out itself."""
OF_LM_EVAL = "lm-eval-"
"""What the names of lm-eval's tasks begin with here."""


class TaskConfig(Reading):
    task: Annotated[str, Field(pattern=NAME)]
    data: Annotated[str, Field(min_length=1)]
    """A file, a folder of files, or hub:organisation/name; a .txt file is read as one running text."""
    score: tuple[Score, ...] = ("loss",)
    """`loss`: nats per token of the wanted answers. `accuracy`, `f1`, `matthews`: one of several choices, the
    likeliest; where rows have choices of their own, for its length. The others look at what is written."""
    ask: str | None = None
    """A question with {columns} in it."""
    answer: str | tuple[str, ...] | None = None
    """What is wanted, likewise. For choices it is the right one's number, letter or text. For text metrics it may be
    several references: a list of such texts, or a column that holds a list."""
    choices: str | tuple[str, ...] | None = None
    """A column that holds each row's choices (a list, or a JSON list as text), a text of {columns} with ; between them,
    or the choices of all rows. By default the column choices, or all answers that occur."""
    lettered: bool = False
    """Write the choices below the question as A, B, C …, and choose between the letters."""
    header: tuple[str, ...] = ()
    """Names of the columns of a table that does not name them itself."""
    chat: bool = True
    """Ask by the model's chat template. False: the question is a text that is continued, as for base models."""
    system: str | None = None
    max_new_tokens: PositiveInt = 128
    pattern: str | None = None
    """For `regex`: what it finds in the answer must be what it finds in the wanted one; without groups it must find
    anything at all."""
    seed: Seed = 0
    """For drawing `rows`."""

    @field_validator("score", mode="before")
    @classmethod
    def _one_score(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("ask", "answer", "choices", "system")
    @classmethod
    def _whole(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        try:
            "".join(value or ()).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a lone surrogate)") from None
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        import regex  # late: most tasks have none

        if value == "":
            raise ValueError("it is empty, and would be found in every answer")
        try:
            regex.compile(value or "")
        except regex.error as error:
            raise ValueError(f"it is no regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.score or len(set(self.score)) < len(self.score):
            raise ValueError("score names the metrics, each once")
        if ("regex" in self.score) != (self.pattern is not None):
            raise ValueError("the score regex needs a pattern, and nothing else has one")
        if self.ask is None and not self.chat:
            raise ValueError("without the chat template, ask has to say what is asked")
        if isinstance(self.answer, tuple) and (self.chosen or not self.answer or "pearson" in self.score):
            raise ValueError("several answers work only with text metrics, such as rouge_l; choices and ratings have "
                             "one right answer")  # fmt: skip
        if self.ask is None and (self.answer is not None or self.header):
            raise ValueError("answer and header go with ask; rows of a known form say themselves what is wanted")
        if (self.choices is not None or self.lettered) and not self.chosen:
            raise ValueError(f"choices are scored by {', '.join(CHOSEN)}")
        if self.ask is None and (self.choices is not None or self.lettered):
            raise ValueError("where choices come from is said together with ask")
        if isinstance(self.choices, tuple) and (
            len(set(self.choices)) < max(2, len(self.choices)) or not all(one.strip() for one in self.choices)
        ):
            raise ValueError("choices are two or more, each once and none empty")
        if self.chosen and self.written:
            raise ValueError(f"a task scores choices ({', '.join(CHOSEN)}) or what is written; make two of it")
        return self

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        """A setting that changes nothing was meant to change something."""
        vain = {
            "a running text (.txt) is scored by loss as it stands": _OF_ROWS if self.running_text else (),
            "with ask, a row is read by its columns as they are named": _OF_FORMS if self.ask is not None else (),
            "a table with header is one file": ("split", "subset", "revision") if self.header else (),
            "without the chat template there is no system message": () if self.chat else ("system",),
            "nothing is written for the scores that are named": () if self.written else ("max_new_tokens",),
        }
        for why, names in vain.items():
            said = [name for name in names if getattr(self, name) != _default(name)]
            if said:
                raise ValueError(f"{why}; leave out {', '.join(said)}, which would change nothing")
        return self

    @property
    def chosen(self) -> bool:
        return any(score in CHOSEN for score in self.score)

    @property
    def written(self) -> tuple[str, ...]:
        """The scores that need an answer to be generated."""
        return tuple(score for score in self.score if score not in LIKELIHOOD)

    @property
    def running_text(self) -> bool:
        return is_running_text(self.data)


def is_running_text(data: str) -> bool:
    return data.lower().endswith(".txt")


_OF_FORMS = ("format", "columns", "labels", "prompt", "completion", "alternatives", "ignore_columns")
_OF_ROWS = (
    *_OF_FORMS, *OF_TABLES, "score", "ask", "answer", "choices", "header", "system", "split", "subset", "revision",
)  # fmt: skip


def _default(name: str) -> Any:
    return TaskConfig.model_fields[name].get_default(call_default_factory=True)


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


def task_named(name: str, data: str | None = None, rows: int | None = None) -> TaskConfig:
    """A built-in task, a YAML file's, or the loss on a file of rows; `data` and `rows` stand over what it says."""
    given = {key: value for key, value in (("data", data), ("rows", rows)) if value is not None}
    if name in BUILT_IN:
        values = {"task": name, **BUILT_IN[name], **given}
        if data is None:
            values["data"] = _home_of(name, values["data"])
        return TaskConfig(**values)
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        default = {"task": _own_name(Path(name).stem)}
        return refuse_taken(read_settings(Path(name), TaskConfig, given, default), name)
    if os.path.exists(name) or name.startswith("hub:"):  # noqa: PTH110  Path.exists raises where a name is too long
        if data is not None:
            raise ConfigError([f"{name} and {data}: both are files of rows. Give one of them, by --task or by --data."])
        return task_of_rows(name, **given)
    raise ConfigError(
        [f'there is no task "{name}".{did_you_mean(name, BUILT_IN)} A task is one of {some(BUILT_IN, 40)}; or a YAML '
         "file with task, data and score; or a file of rows."]
    )  # fmt: skip


def task_of_rows(data: str, **given: Any) -> TaskConfig:
    """The loss on a file of rows, called by the file's name."""
    return TaskConfig(**{"task": _own_name(Path(data).stem), "data": data, **given})


def refuse_taken(task: TaskConfig, where: str) -> TaskConfig:
    """Results are found by their task's name, and some names say whose rows they are of. A public task is one that is
    asked as it is, whoever made the spec."""
    public = BUILT_IN.get(task.task)
    if _taken(task.task) and (public is None or public.get("ask") != task.ask):
        raise ConfigError(
            [f'{where}: the name "{task.task}" is that of another task, whose results it would replace; '
             f"call yours otherwise, such as task: my-{task.task[:61]}"]
        )  # fmt: skip
    return task


def _taken(name: str) -> bool:
    """Capitals make no other file everywhere."""
    return name.lower() in (HELD_OUT, *BUILT_IN) or name.lower().startswith(OF_LM_EVAL)


def _home_of(name: str, file: str) -> str:
    home = os.environ.get(HOME)
    if home is None:
        raise ConfigError(
            [f'the task "{name}" reads {file}: say where it is with --data FILE, or set {HOME} to the folder above.']
        )
    return os.path.join(home, file)  # noqa: PTH118


def _own_name(stem: str) -> str:
    """A task without a name is called by its file, but for names that say what it is not."""
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in stem).strip("-")
    name = kept[:64] or "rows"
    return f"{name[:59]}-rows" if _taken(name) else name
