"""A seed recipe: how a published system wrote its rows, what it learned of them and with which settings.

Each is one YAML file in recipes/. Its template is a chat template like those of models: Jinja over `messages`, what is
learned between `{% generation %}` and `{% endgeneration %}`, `add_generation_prompt` for where the model is to speak. A
message has a `role`, a `content` and, where the row brings one, a `context` (Alpaca's input, Dolly's context). The
tokenizer's own start token goes before it where the tokenizer puts one before every text.

`settings` lie under what the user gives; `published` is what the authors used, also where an adapter wants another.
`published`, `added_tokens` with its note, and the `format` and `fields` of `rows` are a record: printed, not followed.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import Field, ValidationError

from rankwise.config.base import Config, problems_of
from rankwise.config.yaml import load_yaml, plain

RECIPES = ("alpaca", "alpaca-lora", "vicuna", "gpt4all-j", "dolly", "stablelm")


class RecipeBase(Config):
    architecture: str
    """As transformers calls it: the `model_type` of a config."""
    models: tuple[str, ...]


class RecipeRows(Config):
    """The data set it was made for. Rows of other forms can be written in its template too."""

    name: str
    format: str
    fields: dict[str, str]
    """Its columns, and the part that each plays: instruction, context, answer, conversation, prompt."""
    licence: str
    licence_note: str = ""


class Recipe(Config):
    name: str
    title: str
    base: RecipeBase
    rows: RecipeRows
    template: str
    ends: tuple[str, ...]
    """Texts that end an answer; `eos_token` is the tokenizer's own. The first is the one that is learned."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that the authors added to the vocabulary."""
    added_tokens_note: str = ""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of `data`, `training` and `adapter`."""
    published: dict[str, Any]


@cache
def recipe_named(name: str) -> Recipe:
    assert name in RECIPES, name
    text = files("rankwise.config").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    values = plain(load_yaml(text, f"{name}.yaml"), {}, "")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise AssertionError(problems_of(error, Recipe)) from error
