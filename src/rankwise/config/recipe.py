"""Recipes: how a published system formatted its rows, which tokens it trained on, and its settings.

Each recipe is a YAML file in recipes/. Its template is a chat template: Jinja over `messages`, with the trained text
between `{% generation %}` and `{% endgeneration %}`, and `add_generation_prompt` where the model begins to write. A
message has a `role`, a `content`, and a `context` if the row has one (Alpaca's input, Dolly's context). The tokenizer's
start token comes first if the tokenizer puts one before every text.

The user's settings override `settings`. `published` lists what the authors used, even where an adapter needs another
value. `published`, `added_tokens` with its note, and `format` and `fields` of `rows` are only printed.
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
    """The base models that the system was trained from."""

    architecture: str
    """The `model_type` of transformers' config."""
    models: tuple[str, ...]


class RecipeRows(Config):
    """The data set of the system. The template also works for rows of other formats."""

    name: str
    format: str
    fields: dict[str, str]
    """Role of each column: instruction, context, answer, conversation or prompt."""
    licence: str
    licence_note: str = ""


class Recipe(Config):
    """One published system."""

    name: str
    title: str
    base: RecipeBase
    rows: RecipeRows
    template: str
    ends: tuple[str, ...]
    """Texts that end an answer; `eos_token` stands for the tokenizer's own. The first one is trained on."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that the authors added to the vocabulary."""
    added_tokens_note: str = ""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of `data`, `training`, `adapter` and `model`."""
    published: dict[str, Any]

    @property
    def new_tokens(self) -> dict[str, Any]:
        """The setting of the model that adds the system's tokens, where it added some."""
        return {name: tuple(value) for name, value in self.settings.get("model", {}).items() if name == "new_tokens"}


@cache
def recipe_named(name: str) -> Recipe:
    assert name in RECIPES, name
    text = files("rankwise.config").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    values = plain(load_yaml(text, f"{name}.yaml"), {}, "")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise AssertionError(problems_of(error, Recipe)) from error
