"""Settings of validation during training: how often, early stopping, and which checkpoint becomes the result; and of
the answers that a model generates.

The data settings name the validation rows (data.held_out, data.validation). A run with validation rows measures the
loss on them before its first step and after its last. In between, the default interval keeps validation below about a
tenth of the run's time, because a token that is only read costs about half of a token that is trained on. `keep: best`
and `patience` need more frequent validation and get it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from rankwise.config.base import Config, Flag, Label, Number, PositiveInt, Seed
from rankwise.config.data import Constrained
from rankwise.config.incompatible import Compatible

TextMetric = Literal[
    "exact", "number", "json", "json_exact", "json_valid", "tool_call", "tool_function", "tool_arguments",
    "tool_missing", "tool_needless", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf",
]  # fmt: skip
PairMetric = Literal["preference_accuracy", "margin"]
TagMetric = Literal["span_f1", "span_precision", "span_recall", "token_accuracy"]
ClassMetric = Literal[
    "accuracy", "balanced_accuracy", "f1", "matthews", "pearson", "spearman", "micro_f1", "exact_match"
]
METRICS_BY = {"text": TextMetric, "pair": PairMetric, "tag": TagMetric, "class": ClassMetric}
NEED_ROWS = ("steps", "keep", "patience", "by", "scores", "answers")
TIMES = 10
READ_SHARE = 0.2
"""Tokens that validation may read between the first and the last step, as a share of the trained tokens."""
WRITTEN_TOKEN = 12
"""Time of generating one token, in units of reading one (measured with 16 answers at once on two cores)."""


class ValidationConfig(Compatible):
    """How a run is measured while it trains."""

    sections = ("validation",)
    steps: Annotated[
        PositiveInt | None, Flag("--validate-every", "a tenth of all steps"),
        Label("Steps between validations", "validation"),
    ] = None  # fmt: skip
    """Optimizer steps between validations. The last step is always validated. The default is ten validations in a run,
    or fewer if there are so many validation rows that ten would read more than a fifth of the trained tokens."""
    keep: Annotated[
        Literal["last", "best"],
        Flag("--keep", "last; best if --epochs and --steps are left out and validation ends the run"),
        Label("Checkpoint to keep", "validation"),
    ] = "last"
    """Checkpoint to keep as the result: `last`, or `best` by validation loss (or by the metric named in `by`). A run
    that trains until validation stops improving (training.epochs) keeps the best one. With AdaLoRA, only checkpoints
    after the end of pruning are compared, because earlier ones exceed the budget."""
    patience: Annotated[PositiveInt | None, Flag("--patience"), Label("Stop early after", "validation")] = None
    """Early stopping: end the run after this many validations in a row without improvement."""
    by: Literal["loss", TextMetric, ClassMetric, TagMetric, PairMetric] = "loss"
    """What `keep` and `patience` compare: the validation loss, a metric of a language model's answers, a metric of a
    classifier (accuracy, balanced_accuracy, f1, matthews; pearson and spearman where labels are numbers; micro_f1, f1
    and exact_match where rows have several labels), of a token classifier (span_f1, span_precision, span_recall,
    token_accuracy), or of preference pairs (preference_accuracy, margin)."""
    scores: tuple[TextMetric, ...] = ()
    """Further metrics of the answers to validation rows, computed at each validation."""
    answers: Annotated[int, Field(ge=0, strict=True)] = 0
    """Number of validation rows that the model answers at each validation, always with the most likely token."""
    max_new_tokens: PositiveInt | None = None
    """Largest number of tokens in such an answer. The default is 1.5 times the longest reference answer, at most 256;
    64 if the rows have no reference answers."""
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Prompts that the model answers before the first step and after the last. The default is the prompts of three
    validation rows. An empty list turns this off."""

    @model_validator(mode="before")
    @classmethod
    def _no_rows(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("this setting says how a run is measured; name the validation rows in data.validation")
        return value

    @property
    def metrics(self) -> tuple[TextMetric, ...]:
        """The metrics of answers, each once."""
        of_by = tuple(metric for metric in get_args(TextMetric) if metric == self.by)
        return tuple(dict.fromkeys((*of_by, *self.scores)))

    @property
    def by_kind(self) -> str:
        """The kind of the metric `by`."""
        return next((kind for kind, metrics in METRICS_BY.items() if self.by in get_args(metrics)), "")

    @property
    def chooses(self) -> bool:
        return self.keep == "best" or self.patience is not None

    @property
    def needing_rows(self) -> list[str]:
        """The settings given here that have no effect without validation rows."""
        return self.changed(*NEED_ROWS)

    def interval(self, steps: int, trained: int, read: int, answer_tokens: int) -> int:
        """Steps between validations.

        `steps` and `trained` are the steps and tokens of the run; one validation reads and writes so many tokens.
        """
        if self.steps is not None:
            return self.steps
        affordable = int(READ_SHARE * trained / max(1, read + WRITTEN_TOKEN * answer_tokens))
        between = TIMES - 1 if self.chooses else min(TIMES - 1, affordable)
        return -(-steps // (between + 1))


class GenerationConfig(Config):
    """Settings for generating an answer."""

    max_new_tokens: PositiveInt = 256
    """Largest number of tokens in an answer."""
    temperature: Number = Field(0.0, ge=0, le=10)
    """Sampling temperature. 0 always takes the most likely token."""
    top_p: Number = Field(1.0, gt=0, le=1)
    """With a temperature, sample only from the most likely tokens whose probabilities add up to this."""
    seed: Seed = 0
    """Seed of the sampling."""
    repetition_check: bool = True
    """Stop an answer that repeats the same tokens again and again (inference/decoding.py)."""
    constraint: Constrained = "own"
    """What the answer may be: `own` (the constraint of the run's rows), `none`, or another one."""
