"""Rows of files into documents that can be trained on, by the model's template or a recipe's, with their receipt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from rankwise.data.encoded_cache import keep, key_of, recall
from rankwise.data.encoding import Encoder
from rankwise.data.preparation import Prepared, prepare_data
from rankwise.data.receipt import Tally
from rankwise.errors import DataError
from rankwise.models.chat_templates import ChatTemplate
from rankwise.models.tokenizer import HubTokenizer
from rankwise.run.manifest import DataFacts
from rankwise.run.receipt import MOST_LISTED, Receipt
from rankwise.run.records import Announce
from rankwise.spec.data import DataSpec
from rankwise.spec.recipe import recipe_named


@dataclass(frozen=True)
class Writing:
    """What a model's rows are written and counted with. `name` is the model's, `context` its longest text."""

    tokenizer: HubTokenizer
    template: ChatTemplate
    name: str
    context: int | None
    guessed: bool = False
    """Nobody named this model; it was here."""

    def by(self, spec: DataSpec) -> Writing:
        """With the template of the recipe, where there is one."""
        if spec.recipe is None:
            return self
        return replace(self, template=ChatTemplate.of_recipe(self.tokenizer, recipe_named(spec.recipe)))

    def encoder(self, spec: DataSpec) -> Encoder:
        limit = min(spec.max_length, self.context or spec.max_length)
        return Encoder(self.template, self.tokenizer, spec, limit)


def prepare(spec: DataSpec, writing: Writing, announce: Announce) -> Prepared:
    """Encoded rows, from the cache if these were encoded before. What is wrong with them stands in the receipt."""
    writing = writing.by(spec)
    encoder = writing.encoder(spec)
    identity = f"{writing.tokenizer.identity} {writing.template.identity} {writing.guessed}"
    key = key_of(spec, encoder, identity, writing.name)
    prepared = recall(key)
    if prepared is None:
        prepared = prepare_data(
            spec, encoder, _tally(writing), announce, model=writing.name, template=writing.template.facts
        )
        if key_of(spec, encoder, identity, writing.name) == key:  # else somebody wrote into a file that was being read
            keep(key, prepared, announce)
    return prepared


def count_only(spec: DataSpec, announce: Announce) -> Receipt:
    """What can be said of rows without any tokenizer."""
    return prepare_data(spec, None, Tally(), announce, model=None, template=None).receipt


def refuse_fatal(receipt: Receipt) -> None:
    if receipt.fatal:
        raise DataError("\n".join([*receipt.fatal, *receipt.advice]))


def facts_of(prepared: Prepared) -> DataFacts:
    """What the manifest keeps beside the receipt."""
    receipt = prepared.receipt
    trained = prepared.trained_rows
    hashes = [file.sha256 for file in receipt.files]
    return DataFacts(
        path=", ".join(file.name for file in receipt.files),
        sha256=hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest(),
        format=receipt.format,
        rows=receipt.rows,
        trained_documents=len(trained),
        measured_documents=len(prepared.measured),
        rows_too_long=receipt.skipped_why.get("too long", 0),
        tokens=trained.tokens,
        supervised_tokens=trained.supervised,
    )


def told(receipt: Receipt) -> Sequence[str]:
    """The receipt in a few lines, for whoever waits for the training."""
    lines = [receipt.hold_out.describe()] if receipt.hold_out is not None else []
    lines += [f"the end token is in the loss in {receipt.eos_supervised:,} of {receipt.documents:,} sequences"]
    if receipt.skipped:
        why = ", ".join(f"{count:,} {reason}" for reason, count in receipt.skipped_why.items())
        listed = "them" if receipt.skipped <= MOST_LISTED else f"the first {MOST_LISTED}"
        lines.append(f"{receipt.skipped:,} of {receipt.rows:,} rows are left out: {why}; receipt.json lists {listed}")
    if receipt.truncated:
        lines.append(f"{receipt.truncated:,} rows are cut or split to fit")
    lines += [f"{file.name}: {file.layout.describe()}" for file in receipt.files if file.layout is not None]
    return [*lines, f"licence of the data: {receipt.licence}"]


def _tally(writing: Writing) -> Tally:
    tokenizer = writing.tokenizer
    start = tokenizer.encode(tokenizer.start) if tokenizer.start else []
    return Tally(
        known=frozenset(map(str, tokenizer.hub.get_added_vocab())),
        start_id=start[0] if len(start) == 1 else tokenizer.hub.bos_token_id,
        guards=writing.template,
        guessed=writing.guessed,
    )
