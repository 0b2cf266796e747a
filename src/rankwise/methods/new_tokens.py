"""Rows of new tokens beside an adapter: how fast they learn, and what is checked and said of them."""

from __future__ import annotations

from rankwise.adapters.set import AdapterSet
from rankwise.errors import RunError, some
from rankwise.methods.artifact import Artifact
from rankwise.models.loaded import LoadedModel

TOKEN_RATE = 1.0
"""Learning rate of the rows, as a multiple of the adapter's."""


def check_tokens(adapters: AdapterSet, model: LoadedModel, artifact: Artifact) -> None:
    """RunError where a tokenizer gave the new tokens other ids than those whose rows were trained."""
    trained = {number for rows in adapters.token_rows().values() for number in rows.ids}
    new = model.tokenizer.new if model.text is not None else None
    if new is not None and (other := set(new.ids.values()) - trained):
        raise RunError(
            f"{artifact.described} trained the rows of {len(trained)} new tokens, but {model.source.name} from "
            f"{model.source.where} gives them other ids ({some(map(str, sorted(other)), 4)}). Use the base model that "
            "it was trained on."
        )


def notes_on_tokens(adapters: AdapterSet) -> list[str]:
    """What other programs cannot read of the rows that are written."""
    if all(getattr(rows.base_layer, "bias", None) is None for rows in adapters.token_rows().values()):
        return []
    return [
        "this model's output head has a bias, which PEFT (0.21) leaves out where rows of new tokens are trained: for "
        "other programs, use rankwise export --format merged"
    ]
