"""Which settings cannot be given together, and why: one table, INCOMPATIBLE, in which a row is a refusal.

    training.anchor          is given: it differs from its default (a property: it is true)
    adapter.method=full      has this value, or one of several (a,b)
    !data.answer             is not given, or has none of these values

A row names settings, what they are refused beside, and a sentence. Settings of one section are compared when the
section is read, and others when the experiment is made. Rows beside one of LATER are refused when that is known:
the decided objective, the nature of the model, processes that share a base, several processes at all, or advice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import model_validator

from rankwise.config.base import Config

LATER = ("objective", "nature", "model.sharded", "processes", "advise")
"""Names of moments: what a setting is compared with after the experiment is made."""
LANGUAGE = "!objective=auto,causal-lm"
WITHOUT_ANSWERS = (
    "objective=sequence-to-sequence,multiple-choice,sequence-classification,token-classification,image-classification"
)
SCORED_ANSWERS = "!objective=auto,causal-lm,sequence-to-sequence,preference"
UNSCORED = "!objective=auto,causal-lm,sequence-to-sequence"
NO_EFFECT = (
    "the setting {term} has no effect with the objective {config.objective}. Leave it out, or choose another objective "
    "(--objective)."
)
BY_HAS_NO_EFFECT = NO_EFFECT.replace("{term}", "{key} {value}")
OTHER_MODEL = "Choose another model with --model, or leave out --objective."
BUT = "the objective is {{value}}, but {{config.model}} {}"
SHARDED = "model.sharded (--shard) cannot be used with {} yet. Leave it out, or train without --shard."
ADVISED = "{key} is {value}, and advise %s. Leave it out."
REST = "Train in one process (without --processes or torchrun)."
IN_VAIN = "{}; leave out {{listed}}, which would change nothing"
ONE_ANSWER = "several answers work only with text metrics, such as rouge_l; choices and ratings have one right answer"
BOTH_SAY = "{others} and {name} both say what an answer may be; give one of them"


@dataclass(frozen=True)
class Term:
    """What a row asks of a setting."""

    text: str
    key: str
    values: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        key, _, values = text.removeprefix("!").partition("=")
        return cls(text, key, frozenset(filter(None, values.split(","))))

    def accepts(self, value: Any, default: Any = None) -> bool:
        if self.values:
            is_so = not self.values.isdisjoint(map(str, value if isinstance(value, tuple) else [value]))
        else:
            is_so = value not in (default, ())
        return is_so is not self.text.startswith("!")

    def matches(self, config: Compatible) -> list[Any]:
        """The value in these settings, if it is as the term says, and all items of a list. Nothing where there is no
        such setting."""
        path = self.key
        for section in config.sections:
            path = path.removeprefix(f"{section}.")
        *parents, name = path.split(".")
        owner: Any = config
        for part in parents:
            owner = getattr(owner, part, None)
        if not hasattr(owner, name):
            return []
        field, value = type(owner).model_fields.get(name), getattr(owner, name)
        default = None if field is None else field.get_default(call_default_factory=True)
        if not self.accepts(value if field else value or None, default):
            return []
        return [*value] if isinstance(value, list | tuple) and value else [value]


@dataclass(frozen=True)
class Refusal:
    """Each of `settings` is refused beside all of `partners`. `why` is a template: `{key}`, `{name}` (its last part),
    `{value}` and `{term}` are those of the setting, `{keys}`, `{names}` and `{listed}` those of all that are given,
    `{others}` is the name of the first partner, and `{config}` what is refused."""

    settings: tuple[Term, ...]
    partners: tuple[Term, ...]
    why: str

    @property
    def moment(self) -> str:
        first, section = self.partners[0].key, self.settings[0].key.rpartition(".")[0]
        if section and section == first.rpartition(".")[0]:
            return section
        return first if first in LATER else ""

    def problems(self, config: Compatible) -> list[str]:
        """One for each setting, and for each item of a list."""
        if not all(term.key in LATER[3:] or term.matches(config) for term in self.partners):
            return []
        matches = [(term, items) for term in self.settings if (items := term.matches(config))]
        names = [_last(term) for term, _ in matches]
        return [
            self.why.format(
                config=config, key=term.key, name=_last(term), value=item, others=_last(self.partners[0]),
                keys=" or ".join(term.key for term, _ in matches), names=" and ".join(names), listed=", ".join(names),
                has="has" if len(names) == 1 else "have", term=f"{term.key} {item}" if term.values else term.key,
            )
            for term, items in matches for item in items
        ]  # fmt: skip


def _last(term: Term) -> str:
    return term.key.rpartition(".")[2]


def _terms(texts: str) -> tuple[Term, ...]:
    return tuple(map(Term.parse, texts.split()))


INCOMPATIBLE = tuple(Refusal(_terms(settings), _terms(partners), why) for settings, partners, why in (
    # within the data
    ("data.prompt", "!data.completion", "{name} and {others} go together; {others} is not given"),
    ("data.completion", "!data.prompt", "{name} and {others} go together; {others} is not given"),
    ("data.needed_columns", "data.ignore_columns", 'the column "{value}" is in ignore_columns, but the rows need it'),
    ("data.format data.columns data.labels", "data.prompt data.completion",
     "prompt and completion cannot be combined with {name}; give one of them"),
    ("data.subset data.revision", "!data.on_hub", "only a hub data set (hub:organisation/name) has a {name}"),
    ("data.delimiter data.encoding data.sheet data.field", "data.on_hub",
     "{name} applies to files, but {config.path} is a hub data set"),
    ("data.beside_run", "data.run", "{config.path} is read as the run read its rows; leave out {value}"),
    ("data.path", "data.sources", "name the rows to train on: a path, or several sources"),
    ("!data.path", "!data.sources", "name the rows to train on: a path, or several sources"),
    ("data.of_one_source", "data.sources", "with several sources, write {value} in each of them"),
    ("data.answer_choices data.answer_regex data.answer_grammar", "data.answer_schema", BOTH_SAY),
    ("data.answer_regex data.answer_grammar", "data.answer_choices", BOTH_SAY),
    ("data.answer_grammar", "data.answer_regex", BOTH_SAY),
    ("data.answer_schema data.answer_choices data.answer_regex data.answer_grammar", "data.reasoning",
     "with {name} an answer has no room for reasoning; leave out {name} or reasoning"),
    ("data.validation", "!data.held_out=0,auto",
     "both held_out and validation choose the validation rows; give one of them"),
    ("data.group data.held_out_order=last", "data.held_out=0,auto",
     "the setting {name} {value} has no effect without held_out; give held_out (--held-out N), or leave it out"),
    ("data.group", "data.held_out_order=last",
     "with held_out_order last, groups cannot be kept together; leave out held_out_order or group"),
    # within the model
    ("model.quantize=nf4,int8", "model.trust_code",
     'The setting "model.quantize" is {value}, which is not possible for a model that needs its own Python code '
     "(model.trust_code). Leave one of the two out"),
    ("model.quantize=nf4,int8 model.memory model.new_tokens model.trust_code", "model.sharded",
     "model.sharded (--shard) splits weights in full, as their files have them, and cannot be used with {keys} yet. "
     "Leave one of them out"),
    ("model.new_tokens", "model.memory",
     "new_tokens adds rows to the embedding, which model.memory leaves in its file. Leave one of the two out"),
    # within the method
    ("adapter.start_from", "adapter.method=adalora",
     "the method adalora begins with new triplets and cannot continue an adapter (start_from, --from). Leave out the "
     "method: the adapter is trained on as LoRA with the ranks that it has"),
    ("adapter.start_from", "adapter.method=vera",
     "the method vera cannot continue an adapter (start_from, --from). Leave out --method: LoRA trains it on"),
    ("adapter.start_from", "adapter.method=full",
     "full fine-tuning cannot continue an adapter (start_from, --from). To continue a full run, give its folder as the "
     "base model (--model runs/NAME/model)"),
    ("adapter.start_from", "adapter.start=eva",
     "start eva chooses the ranks of a new adapter, and start_from (--from) names an old one"),
    ("adapter.eva_rho adapter.eva_batches", "!adapter.start=eva", "{names} {has} no effect without start eva"),
    ("!adapter.prunes", "adapter.method=adalora",
     "warmup and final together leave no steps for pruning; their sum must be below 1"),
    ("adapter.orthogonality adapter.penalty", "adapter.start=zero",
     "with start zero there is no penalty, since the rows of P begin with length 0; orthogonality is "
     "{config.orthogonality:g} and penalty is {config.penalty}. Leave both out, or set start to orthonormal"),
    # within the training and its validation
    ("training.epochs", "training.steps", "epochs and steps both set the length of the training; give one of them"),
    ("training.checkpoint_steps", "training.checkpoint_minutes",
     "checkpoint_steps and checkpoint_minutes both say when checkpoints are written; give one"),
    ("training.anchor.most_points", "!training.anchor.tasks",
     "forget_at_most {config.forget_at_most} is a budget of accuracy on tasks; name them (training.anchor.tasks, "
     "--accuracy-tasks)"),
    ("training.anchor.tasks training.anchor.task_rows", "!training.anchor.most_points",
     "{key} has no effect without a budget of accuracy, such as forget_at_most 5%"),
    ("training.anchor.code", "training.anchor.text",
     "training.anchor.code has no effect where training.anchor.text names a text, here {config.text}. Put code into "
     "that text"),
    ("validation.metrics", "!validation.answers",
     "{value} is a metric of answers; set validation.answers to the number of rows to answer"),
    ("validation.answers", "!validation.metrics",
     "answers need a metric; name one in validation.scores or validation.by, such as exact"),
    ("classification.sampling=balanced", "classification.class_weights=balanced",
     "sampling and class_weights are both balanced, which counts rare classes twice: sampling shows their rows more "
     "often, and class_weights makes each of them weigh more as well. Set one of them"),
    ("tracking.project", "!tracking.log_to=wandb,mlflow,trackio",
     "project has no effect, because log_to names neither wandb nor mlflow nor trackio"),
    # within an evaluation task
    ("!task.distinct_scores", "task.task", "name at least one metric, and each once"),
    ("task.score=regex", "!task.pattern", "the score regex needs a pattern, and no other score has one"),
    ("task.pattern", "!task.score=regex", "the score regex needs a pattern, and no other score has one"),
    ("task.chat", "!task.ask", "without the chat template, ask must give the question"),
    ("task.several_answers", "task.chosen", ONE_ANSWER),
    ("task.several_answers", "!task.answer", ONE_ANSWER),
    ("task.several_answers", "task.score=pearson", ONE_ANSWER),
    ("task.answer task.header", "!task.ask",
     "answer and header need ask; without ask, the row format gives the reference answer"),
    ("task.has_choices", "!task.chosen", "choices need one of the scores accuracy, f1, matthews"),
    ("task.has_choices", "!task.ask", "choices and lettered need ask"),
    ("!task.distinct_choices", "task.has_choices", "give two or more choices, each once and none empty"),
    ("task.used_columns", "task.chosen",
     "a task scores either choices (accuracy, f1, matthews) or answers; make two tasks of it"),
    ("task.format task.columns task.labels task.prompt task.completion task.alternatives task.ignore_columns "
     "task.delimiter task.encoding task.sheet task.field task.score task.ask task.answer task.choices task.header "
     "task.system task.split task.subset task.revision", "task.running_text",
     IN_VAIN.format("a running text (.txt) has only the score loss")),
    ("task.format task.columns task.labels task.prompt task.completion task.alternatives task.ignore_columns",
     "task.ask", IN_VAIN.format("with ask, a row is read by the names of its columns")),
    ("task.split task.subset task.revision", "task.header", IN_VAIN.format("a table with header is a single file")),
    ("task.system", "task.chat", IN_VAIN.format("without the chat template there is no system message")),
    ("task.max_new_tokens task.constraint", "!task.used_columns",
     IN_VAIN.format("no answer is generated for these scores")),
    ("task.tolerance", "!task.score=number,json", IN_VAIN.format("only number and json compare numbers")),
    ("task.units", "!task.score=number", IN_VAIN.format("only number compares units")),
    # between sections
    ("model.new_tokens", "adapter.method=vera",
     "VeRA stores the vectors of layers alone, and rows of new tokens (model.new_tokens) would be trained beside them. "
     "Choose --method lora"),
    ("model.dtype=bfloat16", "adapter.method=full",
     'The setting "model.dtype" is bfloat16, but full fine-tuning trains weights in float32, because small updates '
     "would be rounded away in bfloat16. Leave it out"),
    ("model.quantize=nf4,int8", "adapter.method=full",
     '"model.quantize" is {value}, but full fine-tuning changes every weight. Leave it out'),
    ("model.trust_code", "adapter.method=full",
     'The setting "model.trust_code" is given, but the model that full fine-tuning writes could not be loaded without '
     "the Python code in the base model's folder. Train an adapter instead"),
    ("training.anchor", "adapter.method=full",
     "an anchor (training.anchor) holds a model to its base, and full fine-tuning changes the base itself, so there is "
     "none beside it. Train an adapter, or leave the anchor out"),
    ("training.anchor.forget_at_most", "adapter.dora",
     "a budget of forgetting (training.anchor.forget_at_most) scales the result down where it must, which DoRA's "
     "factors cannot express. Leave out adapter.dora, or the budget"),
    ("validation.needing_rows", "data.held_out=0 !data.validation",
     "validation rows are missing: validation.{value} has no effect without them. Take some from the training rows "
     "with data.held_out, or name a file in data.validation"),
    # with the objective
    ("validation.scores validation.answers", UNSCORED, NO_EFFECT),
    ("validation.max_new_tokens validation.prompts", SCORED_ANSWERS, NO_EFFECT),
    ("validation.by", f"{UNSCORED} validation.by_kind=text", BY_HAS_NO_EFFECT),
    ("validation.by", "!objective=auto,preference validation.by_kind=pair", BY_HAS_NO_EFFECT),
    ("validation.by", "!objective=auto,token-classification validation.by_kind=tag", BY_HAS_NO_EFFECT),
    ("validation.by", "!objective=auto,multiple-choice,sequence-classification,image-classification "
     "validation.by_kind=class", BY_HAS_NO_EFFECT),
    ("adapter.start=eva", "!objective=auto,causal-lm,multiple-choice", NO_EFFECT),
    ("adapter.method=head", "!objective=auto,sequence-classification,token-classification,image-classification",
     NO_EFFECT),
    ("training.anchor training.replay", LANGUAGE, NO_EFFECT),
    ("training.learning_rate=tune", "objective=sequence-to-sequence,preference", NO_EFFECT),
    ("model.new_tokens", "objective=sequence-to-sequence", NO_EFFECT),
    ("classification", "objective=causal-lm,sequence-to-sequence,preference,multiple-choice", NO_EFFECT),
    ("images", "!objective=auto,image-classification", NO_EFFECT),
    ("preference", "!objective=auto,preference", NO_EFFECT),
    ("data.recipe data.system data.learned data.answers data.reasoning data.packing data.answer_schema "
     "data.answer_choices data.answer_regex data.answer_grammar data.too_long=cut-prompt,split", WITHOUT_ANSWERS,
     NO_EFFECT),
    ("data.too_long=truncate", "objective=multiple-choice", NO_EFFECT),
    ("data.max_length data.too_long data.prompt data.completion", "objective=image-classification", NO_EFFECT),
    ("data.packing data.answers=apart data.too_long=cut-prompt,split", "objective=preference", NO_EFFECT),
    ("data.not_of_pairs", "objective=preference", NO_EFFECT.replace("{term}", "data.{value}")),
    ("data.learned=everything", "objective=preference preference.loss=dpo", NO_EFFECT),
    ("model.sharded", LANGUAGE,
     "model.sharded (--shard) cannot be used with the objective {config.objective} yet. Train without --shard."),
    # an objective with the nature of a model
    ("!objective=auto,image-classification", "nature=images", BUT.format(f"is a model of images. {OTHER_MODEL}")),
    ("objective=image-classification", "!nature=images", BUT.format(f"is a model of texts. {OTHER_MODEL}")),
    ("objective=sequence-to-sequence", "nature=encoder,decoder",
     BUT.format(f"is not an encoder with a decoder, as T5 and BART are. {OTHER_MODEL}")),
    ("objective=preference,multiple-choice", "nature=encoder",
     BUT.format("generates no text. Choose a language model with --model.")),
    ("objective=causal-lm", "nature=encoder-decoder",
     BUT.format("is an encoder with a decoder, which is trained with the objective sequence-to-sequence. Leave out "
                "--objective.")),
    ("objective=preference,multiple-choice,token-classification", "nature=encoder-decoder",
     BUT.format("is an encoder with a decoder, which rankwise trains with the objective sequence-to-sequence alone. "
                "Choose another model with --model.")),
    # with a base that is split over processes, with several processes, and with advice
    ("adapter.dora", "model.sharded", SHARDED.format("{key}")),
    ("adapter.start=eva", "model.sharded", SHARDED.format("{key}={value}")),
    ("adapter.method=vera", "model.sharded", SHARDED.format("{key}={value}")),
    ("training.backend=fused,compiled", "model.sharded", SHARDED.format("{key}={value} (--backend {value})")),
    ("training.auto_batch", "model.sharded", SHARDED.format("{key} (--auto-batch)")),
    ("training.learning_rate=tune", "model.sharded", SHARDED.format("{key}={value} (--tune)")),
    ("training.anchor", "model.sharded", SHARDED.format("{key} (--anchor, --forget-at-most)")),
    ("training.replay", "model.sharded", SHARDED.format("{key} (--replay)")),
    ("training.on_divergence=back-off", "model.sharded", SHARDED.format("{key}={value}")),
    ("validation.answers", "model.sharded", SHARDED.format("{key}, which are generated")),
    ("validation.prompts", "model.sharded", SHARDED.format("{key}")),
    ("!model.device=auto,cpu,cuda", "processes",
     f"several processes cannot train with model.device={{value}} yet. {REST}"),
    ("!adapter.method=lora", "advise", ADVISED % "trains short LoRA adapters"),
    ("adapter.start_from", "advise", ADVISED % "compares with the base model alone"),
    ("training.anchor", "advise", "{key} is given, and advise trains short adapters without one. Leave it out."),
    ("training.replay", "advise", "{key} is given, and advise trains short adapters without it. Leave it out."),
    ("training.learning_rate=tune", "advise",
     "{key} is {value} (--tune), and advise trains at one rate. Leave it out."),
))  # fmt: skip
_BY_MOMENT: defaultdict[str, list[Refusal]] = defaultdict(list)
for _row in INCOMPATIBLE:
    _BY_MOMENT[_row.moment].append(_row)


def problems(config: Compatible, moment: str) -> list[str]:
    """All refusals of a moment of LATER, or of a section. An experiment without data is a plan."""
    return list(dict.fromkeys(text for row in _BY_MOMENT[moment] for text in row.problems(config)))


def excludes(setting: str, key: str, value: str) -> bool:
    """Whether a row refuses the setting, whatever else is given, where `key` has this value."""
    return any(
        row.partners[0].key == key and len(row.partners) == 1 and row.partners[0].accepts(value)
        and setting in [term.text for term in row.settings] for row in INCOMPATIBLE
    )  # fmt: skip


class Compatible(Config):
    """Settings that the table compares when they are read. Only the first problem is said."""

    sections: ClassVar[tuple[str, ...]] = ("",)
    """The beginnings of its keys in the table."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for section in self.sections:
            for problem in problems(self, section):
                raise ValueError(problem)
        return self
