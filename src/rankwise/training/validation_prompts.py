"""Answers to validation rows and to named prompts, generated while a language model trains.

A row's prompt is every token before its last answer, with the ids that training gives it and generation would give it
too. A row without a prompt, with a cut answer, or whose answer might not fit into the context is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.base import shown
from rankwise.config.data import Constrained
from rankwise.config.validation import GenerationConfig, ValidationConfig
from rankwise.errors import ConfigError
from rankwise.evaluation.metrics import METRICS, need_library, rows_of, unfit
from rankwise.inference.decoding import read_answer
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.objectives.objective import Objective
from rankwise.objectives.preference.encode import conversation_of
from rankwise.objectives.registry import text_objective
from rankwise.rows.encoded.sequences import evenly
from rankwise.rows.preparation import Prepared
from rankwise.rows.text.example import BREAK, Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import SampleRecord, ScoreRecord
from rankwise.training.losses import Backend
from rankwise.training.world import ONE_PROCESS, World, computed_by_all

SAMPLES = 3
LONGEST, UNKNOWN = 256, 64
AT_ONCE = 16
"""Answers that are generated together: few, and from the weights as they lie, so that validation needs no more memory
than was forecast for training."""


@dataclass(frozen=True)
class Prompt:
    prompt: str
    """As people read it."""
    ids: tuple[int, ...]
    target: str | None = None
    wanted_tokens: int = 0


@dataclass(frozen=True)
class AnswerScorer:
    """`scored` prompts are answered at every validation, `prompts` before the first step and after the last."""

    model: LoadedModel
    metrics: tuple[str, ...]
    scored: tuple[Prompt, ...]
    prompts: tuple[Prompt, ...]
    max_new_tokens: int
    constraint: Constrained = "none"
    world: World = ONE_PROCESS
    """Each process answers its share."""

    def over(self, world: World, backend: Backend, max_tokens: int) -> AnswerScorer:
        return replace(self, world=world)

    @property
    def tokens_written(self) -> int:
        return len(self.scored) * self.max_new_tokens

    def scores(self, step: int) -> list[ScoreRecord]:
        answers, references = self._answers(self.scored), [one.target or "" for one in self.scored]
        return [
            ScoreRecord(step=step, metric=metric, value=score(metric, answers, references), n=len(answers))
            for metric in self.metrics
        ]

    def samples(self, step: int) -> list[SampleRecord]:
        return [
            SampleRecord(step=step, prompt=one.prompt, target=one.target, answer=answer)
            for one, answer in zip(self.prompts, self._answers(self.prompts), strict=True)
        ]

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        spec = GenerationConfig(max_new_tokens=self.max_new_tokens, repetition_check=False, constraint=self.constraint)

        def written(ids: Sequence[tuple[int, ...]]) -> list[str]:
            given = answers_in_turn(self.model, ids, spec, AT_ONCE, refuse_damage=False, lay_out=False)
            return [one.text for one in given]

        return computed_by_all(self.world, [one.ids for one in prompts], [len(one.ids) for one in prompts], written)


def score(metric: str, answers: Sequence[str], references: Sequence[str]) -> float:
    rows = rows_of(metric, answers, [(one,) for one in references], None)
    return float(METRICS[metric].of(np.asarray(rows).sum(0)))


def answer_scorer(
    config: ValidationConfig, model: LoadedModel, prepared: Prepared, objective: Objective
) -> AnswerScorer:
    """Choose the prompts, or refuse settings that none of them fits."""
    count = max(config.answers, SAMPLES if config.prompts is None else 0)
    rows = _prompts(model, prepared, count)
    named = [_named(model, prompt, prepared.data_report.system) for prompt in config.prompts or ()]
    longest = max((row.wanted_tokens for row in rows), default=0)
    limit = config.max_new_tokens or (min(LONGEST, longest + longest // 2 + 1) if longest else UNKNOWN)
    if model.context_length is not None:
        shortest = min((len(row.ids) for row in rows), default=0)
        if config.metrics and rows and not model.fits(shortest, limit):
            raise ConfigError(
                [
                    f"validation.max_new_tokens: with {limit:,} new tokens none of the validation rows fits into the "
                    f"model's context of {model.context_length:,}; the shortest prompt has {shortest:,}. Lower it, or "
                    "give shorter rows."
                ]
            )
        rows = [row for row in rows if model.fits(len(row.ids), limit)]
        if long := [one for one in named if not model.fits(len(one.ids), limit)]:
            raise ConfigError([
                f"validation.prompts: {one.prompt[:40]!r} has {len(one.ids):,} tokens; with {limit:,} new tokens it "
                f"does not fit into the model's context of {model.context_length:,}. Shorten it, or lower "
                "validation.max_new_tokens." for one in long
            ])  # fmt: skip
    scored = rows[: config.answers]
    _refuse_unscorable(config, scored)
    samples = rows[:SAMPLES] if config.prompts is None else named
    constraint = prepared.data_report.constraint or "none"
    return AnswerScorer(model, config.metrics, tuple(scored), tuple(samples), limit, constraint)


def _prompts(model: LoadedModel, prepared: Prepared, count: int) -> list[Prompt]:
    """Make prompts of up to `count` held-out rows, spread evenly over them so that each source is represented."""
    rows = prepared.measured_rows if count else ()
    places = [index for index, row in enumerate(rows) if _last_answer(conversation_of(row))[0] > 0]
    read = text_objective(model).text_writer.reader(model, _opening(prepared.data_report.system))
    found = [_prompt(model, conversation_of(rows[index]), read) for index in evenly(places, count)]
    return [one for one in found if one is not None]


def _last_answer(row: Tokens) -> tuple[int, int]:
    """Where it begins and ends; (0, 0) where there is none."""
    learned = np.asarray(row.loss_mask, dtype=bool)
    places = np.flatnonzero(learned)
    if not len(places):
        return 0, 0
    end = int(places[-1]) + 1
    given = np.flatnonzero(~learned[:end])
    return (int(given[-1]) + 1 if len(given) else 0), end


def _prompt(model: LoadedModel, row: Tokens, read: Callable[[Sequence[int]], str]) -> Prompt | None:
    begin, end = _last_answer(row)
    ids = [int(token) for token in row.ids[:end]]
    target = read_answer(ids[begin:], model.template)
    if target.stopped != "end" or not model.tokenizer.readable(ids[:begin]).strip():
        return None
    return Prompt(read(ids[:begin]), tuple(ids[:begin]), target.text, target.tokens)


def _named(model: LoadedModel, prompt: str, system: str | None) -> Prompt:
    if BREAK in prompt:
        raise ConfigError(
            ["a prompt in validation.prompts contains the noncharacter U+FDD0, which text should not contain."]
        )
    return Prompt(prompt, tuple(asking_ids(model, [*_opening(system), Message("user", prompt)])))


def _opening(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []


def _refuse_unscorable(config: ValidationConfig, prompts: Sequence[Prompt]) -> None:
    if config.metrics and not prompts:
        raise ConfigError(
            [f"validation should score answers by {config.metrics[0]}, but no validation row has a prompt to answer."]
        )
    for metric in config.metrics:
        need_library(metric)
        for one in prompts:
            assert one.target is not None, "it is of a row"
            if why := unfit(metric, one.target):
                raise ConfigError(
                    [
                        f"validation should score answers by {metric}, but a reference answer of the validation rows "
                        f"{why}: {shown(one.target)}."
                    ]
                )
