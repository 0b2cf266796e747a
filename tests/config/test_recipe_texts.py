"""Each seed recipe has its settings and refuses what had no place in its system; test_recipe_masks.py has its texts."""

from __future__ import annotations

from importlib.resources import files
from typing import get_args

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from rankwise.config.adapters import LoraConfig
from rankwise.config.data import DataConfig, Format
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.config.training import TrainingConfig

OF_ONE_TURN = ("alpaca", "alpaca-lora", "gpt4all-j", "dolly")
OF_MANY_TURNS = ("vicuna", "stablelm")


def system(content):
    return {"role": "system", "content": content}


def user(content, context=None):
    return {"role": "user", "content": content} | ({} if context is None else {"context": context})


def assistant(content):
    return {"role": "assistant", "content": content}


def render(name, messages):
    """The text, and the spans of what is learned."""
    texts, spans = render_jinja_template(
        conversations=[messages], chat_template=recipe_named(name).template, return_assistant_tokens_mask=True,
        eos_token="</s>",
    )  # fmt: skip
    return texts[0], spans[0]


CAPITAL = user("Name the capital.")
PARIS = assistant("Paris.")


@pytest.mark.parametrize("name", OF_ONE_TURN)
def test_no_place_for_a_system_message(name):
    with pytest.raises(TemplateError, match=f"^The {name} recipe has no place for a system message\\.$"):
        render(name, [system("Be brief."), CAPITAL, PARIS])


@pytest.mark.parametrize("name", OF_ONE_TURN)
@pytest.mark.parametrize(
    "messages",
    [[CAPITAL, PARIS, CAPITAL, PARIS], [CAPITAL, PARIS, CAPITAL], [CAPITAL, CAPITAL], [PARIS], [CAPITAL, PARIS, PARIS]],
)
def test_no_place_for_more_than_one_question(name, messages):
    with pytest.raises(TemplateError, match=f"^The {name} recipe has place for one question and its answer only\\.$"):
        render(name, messages)


@pytest.mark.parametrize("name", OF_MANY_TURNS)
@pytest.mark.parametrize("messages", [[PARIS], [CAPITAL, CAPITAL, PARIS], [CAPITAL, PARIS, system("x"), CAPITAL]])
def test_no_place_for_turns_out_of_order(name, messages):
    with pytest.raises(
        TemplateError, match=f"^The {name} recipe wants questions and answers in turn, a system message"
    ):
        render(name, messages)


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_stripped_or_read_as_a_template(name):
    asked, context, answered = "  {{ eos_token }}\n", " \t{{ x }} \n", "\n {% if %} \n"
    text, spans = render(name, [user(asked, context), assistant(answered)])
    start, end = spans[0][0], spans[-1][1]
    assert asked in text[:start] and context in text[:start]
    assert answered in text[start:end]


@pytest.mark.parametrize(
    ("name", "max_length", "too_long", "learned"),
    [
        ("alpaca", 512, "truncate", "answers"),
        ("alpaca-lora", 256, "truncate", "everything"),
        ("vicuna", 2048, "split", "answers"),
        ("gpt4all-j", 1024, "cut-prompt", "answers"),
        ("dolly", 2047, "drop", "answers"),  # "dropped at 2048 and more" is 2047 and less
        ("stablelm", 1024, "truncate", "answers"),
    ],
)
def test_settings_of_data(name, max_length, too_long, learned):
    assert set(recipe_named(name).settings) <= {"data", "training", "adapter", "model"}
    data = DataConfig(path="rows.jsonl", recipe=name)
    assert (data.max_length, data.too_long, data.learned) == (max_length, too_long, learned)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alpaca", {"epochs": 3, "batch_size": 128, "schedule": "cosine", "warmup": 0.03}),
        ("alpaca-lora", {"epochs": 3, "batch_size": 128, "schedule": "linear", "learning_rate": 3e-4}),
        ("vicuna", {"epochs": 3, "batch_size": 128, "schedule": "cosine", "warmup": 0.03, "learning_rate": 2e-5}),
        ("gpt4all-j", {"epochs": 2, "batch_size": 32, "schedule": "constant", "clip": 1.0, "learning_rate": 2e-5}),
        ("dolly", {"epochs": 2, "batch_size": 48, "schedule": "constant"}),
        ("stablelm", {}),
    ],
)
def test_settings_of_training(name, values):
    """A rate only where the authors published one for LoRA; the rate of full fine-tuning fits no adapter."""
    assert TrainingConfig(**recipe_named(name).settings.get("training", {})) == TrainingConfig(**values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alpaca", {}),
        ("alpaca-lora", {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": ("q_proj", "v_proj")}),
        ("vicuna", {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": ("q_proj", "v_proj")}),
        ("gpt4all-j", {"rank": 8, "alpha": 32, "dropout": 0.1, "targets": ("q_proj", "v_proj")}),
        ("dolly", {}),
        ("stablelm", {}),
    ],
)
def test_settings_of_the_adapter(name, values):
    assert LoraConfig(**recipe_named(name).settings.get("adapter", {})) == LoraConfig(**values)


@pytest.mark.parametrize(
    ("name", "form", "licence", "note"),
    [
        ("alpaca", "alpaca", "CC-BY-NC-4.0", "ODC-By"),
        ("alpaca-lora", "alpaca", "CC-BY-4.0", "CC-BY-NC-4.0"),
        ("vicuna", "sharegpt", "none stated", "do not release"),
        ("gpt4all-j", "prompt", "Apache-2.0", "OpenAI"),
        ("dolly", "dolly", "CC-BY-SA-3.0", "shared alike"),
        ("stablelm", "sharegpt", "unverified", "CC-BY-NC-4.0"),
    ],
)
def test_rows_and_their_licence(name, form, licence, note):
    rows = recipe_named(name).rows
    assert (rows.format, rows.licence) == (form, licence)
    assert form in get_args(Format)
    assert note in rows.licence_note
    assert set(rows.fields.values()) <= {"instruction", "context", "answer", "conversation", "prompt"}


def test_added_tokens():
    assert {name: recipe_named(name).added_tokens for name in RECIPES} == {
        "alpaca": ("[PAD]",),
        "alpaca-lora": (),
        "vicuna": (),
        "gpt4all-j": (),
        "dolly": ("### End", "### Instruction:", "### Response:\n"),
        "stablelm": ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"),
    }
    assert "text" in recipe_named("alpaca").added_tokens_note, "a token for padding, which is not needed"
    for name in ("dolly", "stablelm"):
        recipe = recipe_named(name)
        assert recipe.new_tokens == {"new_tokens": recipe.added_tokens}, "their rows are trained"


def test_every_file_is_a_recipe_and_names_its_sources():
    folder = files("rankwise.config").joinpath("recipes")
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".yaml")}
    assert set(texts) == {f"{name}.yaml" for name in RECIPES}
    assert all(text.startswith("# Sources: ") for text in texts.values())
    assert [recipe_named(name).name for name in RECIPES] == list(RECIPES)
    assert all("source" in recipe_named(name).published for name in RECIPES)
