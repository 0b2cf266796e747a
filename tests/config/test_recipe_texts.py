"""Each seed recipe writes the bytes of its system, marks what was learned of them, and refuses what had no place there.

The expected texts are written out by hand; « and » stand around what is learned.
"""

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

EOS = {
    "alpaca": "</s>",
    "alpaca-lora": "</s>",
    "vicuna": "</s>",
    "gpt4all-j": "<|endoftext|>",
    "dolly": "<|endoftext|>",
    "stablelm": "<|endoftext|>",
}
OF_ONE_TURN = ("alpaca", "alpaca-lora", "gpt4all-j", "dolly")
OF_MANY_TURNS = ("vicuna", "stablelm")


def system(content):
    return {"role": "system", "content": content}


def user(content, context=None):
    return {"role": "user", "content": content} | ({} if context is None else {"context": context})


def assistant(content):
    return {"role": "assistant", "content": content}


def render(name, messages, prompt=False):
    """The text, and the spans of what is learned; spans that touch are one."""
    texts, spans = render_jinja_template(
        conversations=[messages],
        chat_template=recipe_named(name).template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        eos_token=EOS[name],
    )
    merged = []
    for start, end in spans[0]:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return texts[0], merged


def written(name, *messages, prompt=False):
    """The text with « and » around what is learned."""
    text, spans = render(name, list(messages), prompt)
    for start, end in reversed(spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


CAPITAL = user("Name the capital.")
FRANCE = user("Name the capital.", "France")
PARIS = assistant("Paris.")

STABLELM_SYSTEM = (
    "<|SYSTEM|># StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered harmful"
    " to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and make"
    " jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human.\n"
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. "
)
WITHOUT_CONTEXT = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Response:",
        "«Paris.</s>»",
    ),
    "alpaca-lora": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Response:\n",
        "«Paris.</s>»",
    ),
    "vicuna": (VICUNA_SYSTEM + "USER: Name the capital. ASSISTANT:", "« Paris.</s>»"),
    "gpt4all-j": ("Name the capital.\n", "«Paris.<|endoftext|>»"),
    "dolly": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Response:\n",
        "«Paris.\n\n### End»",
    ),
    "stablelm": (STABLELM_SYSTEM + "<|USER|>Name the capital.<|ASSISTANT|>", "«Paris.<|endoftext|>»"),
}
WITH_CONTEXT = {
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:",
        "«Paris.</s>»",
    ),
    "alpaca-lora": (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
        " response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\n",
        "«Paris.</s>»",
    ),
    "vicuna": (VICUNA_SYSTEM + "USER: Name the capital.\n\nFrance ASSISTANT:", "« Paris.</s>»"),
    "gpt4all-j": ("Name the capital.\n\nFrance\n", "«Paris.<|endoftext|>»"),
    "dolly": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\nInput:\nFrance\n\n### Response:\n",
        "«Paris.\n\n### End»",
    ),
    "stablelm": (STABLELM_SYSTEM + "<|USER|>Name the capital.\n\nFrance<|ASSISTANT|>", "«Paris.<|endoftext|>»"),
}
WITHOUT_PROMPT = {
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the"
    " request.\n\n### Instruction:\nName the capital.",
    "alpaca-lora": "Below is an instruction that describes a task. Write a response that appropriately completes the"
    " request.\n\n### Instruction:\nName the capital.",
    "vicuna": VICUNA_SYSTEM + "USER: Name the capital. ",
    "gpt4all-j": "Name the capital.",
    "dolly": "Below is an instruction that describes a task. Write a response that appropriately completes the"
    " request.\n\n### Instruction:\nName the capital.",
    "stablelm": STABLELM_SYSTEM + "<|USER|>Name the capital.",
}


@pytest.mark.parametrize("name", RECIPES)
def test_question_and_answer(name):
    prompt, learned = WITHOUT_CONTEXT[name]
    assert written(name, CAPITAL, PARIS) == prompt + learned
    assert written(name, user("Name the capital.", ""), PARIS) == prompt + learned


@pytest.mark.parametrize("name", RECIPES)
def test_context(name):
    prompt, learned = WITH_CONTEXT[name]
    assert written(name, FRANCE, PARIS) == prompt + learned


@pytest.mark.parametrize("name", RECIPES)
def test_generation_prompt(name):
    assert written(name, CAPITAL, prompt=True) == WITHOUT_CONTEXT[name][0]
    assert written(name, FRANCE, prompt=True) == WITH_CONTEXT[name][0]
    assert written(name, CAPITAL) == WITHOUT_PROMPT[name]


def test_two_turns_of_vicuna():
    turns = (user("Hi."), assistant("Hello!"), user("Who are you?"), assistant("Vicuna."))
    assert written("vicuna", *turns) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions. USER: Hi. ASSISTANT:« Hello!</s>»USER: Who are you? ASSISTANT:"
        "« Vicuna.</s>»"
    )
    assert written("vicuna", *turns[:3], prompt=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions. USER: Hi. ASSISTANT:« Hello!</s>»USER: Who are you? ASSISTANT:"
    )


def test_two_turns_of_stablelm():
    turns = (user("Hi."), assistant("Hello!"), user("Who are you?"), assistant("StableLM."))
    assert written("stablelm", *turns) == STABLELM_SYSTEM + (
        "<|USER|>Hi.<|ASSISTANT|>«Hello!<|USER|>»Who are you?<|ASSISTANT|>«StableLM.<|endoftext|>»"
    )
    assert written("stablelm", *turns[:3], prompt=True) == STABLELM_SYSTEM + (
        "<|USER|>Hi.<|ASSISTANT|>«Hello!<|USER|>»Who are you?<|ASSISTANT|>"
    )


def test_a_system_message_of_the_row():
    own = system("Be brief.")
    assert written("vicuna", own, CAPITAL, PARIS) == "Be brief. USER: Name the capital. ASSISTANT:« Paris.</s>»"
    assert written("stablelm", own, CAPITAL, PARIS) == (
        "<|SYSTEM|>Be brief.<|USER|>Name the capital.<|ASSISTANT|>«Paris.<|endoftext|>»"
    )


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
@pytest.mark.parametrize("spaces", [" ", " \t \n"])
def test_a_context_of_spaces_alone_counts_where_the_authors_ask_only_whether_it_is_empty(name, spaces):
    prompts = WITH_CONTEXT if name in ("alpaca", "alpaca-lora", "dolly") else WITHOUT_CONTEXT
    prompt, learned = prompts[name]
    assert written(name, user("Name the capital.", spaces), PARIS) == prompt.replace("France", spaces) + learned


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_stripped_or_read_as_a_template(name):
    asked, context, answered = "  {{ eos_token }}\n", " \t{{ x }} \n", "\n {% if %} \n"
    text, spans = render(name, [user(asked, context), assistant(answered)])
    start, end = spans[-1]
    assert asked in text[:start] and context in text[:start]
    assert answered in text[start:end]


CONVERSATIONS = [[CAPITAL, PARIS], [FRANCE, PARIS], [user("\n"), assistant(" ")]]
LONG = [
    [user("Hi."), assistant("Hello!"), FRANCE, PARIS, user("?"), assistant("!")],
    [system("Be brief."), CAPITAL, PARIS, user("?"), assistant("!")],
    [system(""), CAPITAL, PARIS],
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_prompt_is_the_beginning_of_the_whole_and_ends_where_the_learned_begins(name):
    for messages in CONVERSATIONS + (LONG if name in OF_MANY_TURNS else []):
        whole, spans = render(name, messages)
        asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
        prompts = [render(name, messages[: index + 1], prompt=True)[0] for index in asked]
        assert all(whole.startswith(prompt) for prompt in prompts)
        assert [len(prompt) for prompt in prompts] == [start for start, _ in spans]
        for index, prompt in zip(asked, prompts, strict=True):
            assert prompt.startswith(render(name, messages[: index + 1])[0])


@pytest.mark.parametrize("name", RECIPES)
def test_the_whole_is_learned_to_its_end(name):
    whole, spans = render(name, [CAPITAL, PARIS])
    end = recipe_named(name).ends[0]
    assert whole.endswith(EOS[name] if end == "eos_token" else end)
    assert spans[-1][1] == len(whole)
    assert not whole.startswith(("<s>", EOS[name]))


def test_ends():
    assert {name: recipe_named(name).ends for name in RECIPES} == {
        "alpaca": ("eos_token",),
        "alpaca-lora": ("eos_token",),
        "vicuna": ("eos_token",),
        "gpt4all-j": ("eos_token",),
        "dolly": ("### End",),
        "stablelm": ("eos_token", "<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"),
    }


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


def test_what_was_published():
    """Of what landscape.md records, the parts that were once missing or wrong."""
    alpaca, lora, dolly, gpt4all = (
        recipe_named(name).published for name in ("alpaca", "alpaca-lora", "dolly", "gpt4all-j")
    )
    assert alpaca["13b"] == {
        "batch_size": 128, "learning_rate": 1e-5, "epochs": 5, "max_length": 512, "weight_decay": 0.0,
    }  # fmt: skip
    assert (lora["seed"], lora["micro_batch_size"], lora["optimizer"]) == (42, 4, "AdamW")
    assert set(lora["other_templates"]) == {"alpaca_legacy", "alpaca_short"}
    assert lora["released"]["micro_batch_size"] == 8
    assert gpt4all["lora"]["batch_size"] == 32 and gpt4all["lora"]["rows_per_device"] == {"log": 4, "config": 1}
    assert "2048" in dolly["max_length"] and "2047" in dolly["too_long"]


def test_no_recipe_calls_unverified_what_is_known():
    texts = {name: files("rankwise.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8") for name in RECIPES}
    assert {name for name, text in texts.items() if "unverified" in text} == {"stablelm"}


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
