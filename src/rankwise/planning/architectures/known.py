"""A parsed config.json into a shape, or into all that stands against it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rankwise.config.base import problems_of, shown
from rankwise.errors import ModelError, did_you_mean
from rankwise.planning.architectures.bert import BERT_LIKE
from rankwise.planning.architectures.config import Config, foreign_to
from rankwise.planning.architectures.encoder_decoder import ENCODER_DECODERS
from rankwise.planning.architectures.gpt import GPT_LIKE
from rankwise.planning.architectures.llama import LLAMA_LIKE
from rankwise.planning.architectures.vision import VISION
from rankwise.planning.shape import ModelShape

FAMILIES: dict[str, type[Config]] = LLAMA_LIKE | GPT_LIKE | BERT_LIKE | ENCODER_DECODERS | VISION
"""By model_type."""


def shape_of_config(config: dict[str, Any], name: str, where: str) -> ModelShape:
    """`where` is the file that the settings stand in, for messages."""
    family = config.get("model_type")
    problems = [f"it sets {setting}, which cannot be planned yet." for setting in foreign_to(config)]
    if not isinstance(family, str) or family not in FAMILIES:
        raise _refused(where, [_unknown(family), *problems])
    kind = FAMILIES[family]
    try:
        parsed = kind.model_validate(config)
    except ValidationError as error:
        raise _refused(where, problems + problems_of(error, kind)) from None
    if problems:
        raise _refused(where, problems)
    return ModelShape(
        name, family, tuple(parsed.layers()), parsed.stacks, parsed.vocabulary, parsed.context, parsed.head,
        parsed.made_by,
    )  # fmt: skip


def _unknown(family: Any) -> str:
    known = f"Known are {', '.join(sorted(FAMILIES))}."
    if family is None:
        return f'setting "model_type" is missing. {known}'
    hint = did_you_mean(family, FAMILIES) if isinstance(family, str) else ""
    return f"model_type {shown(family)} is not known here.{hint} {known}"


def _refused(where: str, problems: list[str]) -> ModelError:
    if len(problems) == 1:
        return ModelError(f"{where}: {problems[0]}")
    return ModelError("\n".join([f"{where} tells of no model that can be planned:", *(f"  {p}" for p in problems)]))
