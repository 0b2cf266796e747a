"""Rows of a file into tokens that can be trained on, with the facts about them that a run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.data.example import Example
from rankwise.data.sources import read_examples
from rankwise.data.templates import render
from rankwise.data.tokens import Tokens, tokenise
from rankwise.errors import DataError, together
from rankwise.models.loaded import LoadedModel
from rankwise.run.manifest import DataFacts
from rankwise.run.records import Announce, Progressed, Said
from rankwise.run.writing import sha256_of
from rankwise.spec.data import DataSpec


@dataclass(frozen=True)
class Prepared:
    trained: list[Tokens]
    held_out: list[Tokens]
    facts: DataFacts


def prepare(spec: DataSpec, model: LoadedModel, announce: Announce) -> Prepared:
    """Read, render and encode; the last `held_out` rows are kept apart before any is left out for its length."""
    examples, form = read_examples(spec)
    if spec.held_out >= len(examples):
        raise DataError(
            f"{spec.path} has {len(examples)} rows and {spec.held_out} are to be held out, so none would be trained on."
        )
    cut = len(examples) - spec.held_out
    limit = min(spec.max_length, model.context_length or spec.max_length)
    trained, long_trained = _encode(examples[:cut], model, limit, announce)
    held_out, long_held = _encode(examples[cut:], model, limit, announce)
    if not trained:
        raise DataError(
            f"{spec.path}: every row is longer than {limit} tokens (the shortest has {min(long_trained):,}). "
            "Raise --max-length."
        )
    _say_what_was_left_out(spec.path, long_trained + long_held, limit, len(examples), announce)
    facts = DataFacts(
        path=spec.path,
        sha256=sha256_of(Path(spec.path)),
        format=form,
        rows=len(examples),
        trained_rows=len(trained),
        held_out_rows=len(held_out),
        rows_too_long=len(long_trained) + len(long_held),
        tokens=sum(len(row.ids) for row in trained),
        supervised_tokens=sum(row.supervised for row in trained),
        system=_shared_system(examples),
    )
    return Prepared(trained, held_out, facts)


def _shared_system(examples: Sequence[Example]) -> str | None:
    first = examples[0].messages[0]
    shared = first.role == "system" and all(example.messages[0] == first for example in examples)
    return first.content if shared else None


def _encode(
    examples: Sequence[Example], model: LoadedModel, limit: int, announce: Announce
) -> tuple[list[Tokens], list[int]]:
    """Tokens of the rows that fit, and the lengths of those that do not."""
    kept: list[Tokens] = []
    too_long: list[int] = []
    problems: list[str] = []
    for number, example in enumerate(examples):
        if number % 500 == 0 and len(examples) > 2000:
            announce(Progressed("Encoding rows", number, len(examples), "rows"))
        try:
            tokens = tokenise(render(example, model.tokenizer), model.tokenizer, example.where)
        except DataError as error:
            problems.append(str(error))
            continue
        if len(tokens.ids) > limit:
            too_long.append(len(tokens.ids))
        else:
            assert tokens.supervised, f"{example.where} has nothing to learn"
            kept.append(tokens)
    if problems:
        raise DataError(together(problems))
    return kept, too_long


def _say_what_was_left_out(path: str, too_long: list[int], limit: int, rows: int, announce: Announce) -> None:
    if too_long:
        announce(
            Said(
                f"{len(too_long)} of {rows} rows of {path} are longer than {limit} tokens (the longest has "
                f"{max(too_long):,}) and were left out whole; raise --max-length to keep them"
            )
        )
