"""Each seed recipe on a tokenizer of its own family: the text to the letter, what is learned of it by ids, and its end.

In the expected texts « and » stand around what is learned. SentencePiece writes a space behind its start token.
"""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from kit.families import Family, asked_prompts, hub_of, learned_texts, runs, talk
from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.config.validation import GenerationConfig
from rankwise.inference.generate import answer
from rankwise.rows.forms.formats import parse_row
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.tokenizer import HubTokenizer

LLAMA = Family("llama", "", "</s>", ())
PYTHIA = Family("pythia", "", "<|endoftext|>", (), bos=None, eos="<|endoftext|>")
DOLLY = ("### End", "### Instruction:", "### Response:\n")
STABLE = ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>")
BASES = {
    "alpaca": (LLAMA, "prepend"),
    "alpaca-lora": (LLAMA, "prepend"),
    "vicuna": (LLAMA, "prepend"),
    "gpt4all-j": (PYTHIA, "gpt2"),
    "dolly": (PYTHIA, "neox"),
    "stablelm": (PYTHIA, "neox"),
}


@cache
def written(name, added=(), kind=None):
    """`added` are single tokens of the tokenizer, as they are in the tuned models."""
    family, own = BASES[name]
    hub = hub_of(family, kind or own, "")
    if family is PYTHIA:
        hub.bos_token = "<|endoftext|>"  # named, and put before no text
    if added:
        hub.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    return ChatTemplate.of_recipe(HubTokenizer(hub, [hub.eos_token_id]), recipe_named(name))


def encoder(name, template, limit=10**6):
    return Encoder(template, template.tokenizer, DataConfig(path="x", recipe=name), limit)


def sequence(name, template, example):
    (outcome,) = encoder(name, template).encode([example])
    assert outcome.problem is None
    (tokens,) = outcome.sequences
    return tokens


def shown(tokens, tokenizer):
    """The decoded ids with « and » around the learned ones."""
    ids = list(tokens.ids)
    text, place = "", 0
    for start, stop in runs(tokens):
        before, learned = tokenizer.decode(ids[:start]), tokenizer.decode(ids[:stop])
        text += f"{before[place:]}«{learned[len(before) :]}»"
        place = len(learned)
    return text + tokenizer.decode(ids)[place:]


PLAIN = talk("Name the capital.", "Paris.")
ABOUT = Example((Message("user", "Name the capital.", "France"), Message("assistant", "Paris.")), "rows.jsonl:7")
BELOW = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n"
)
CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. "
)
SYSTEM = (
    "<|SYSTEM|># StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered harmful"
    " to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and make"
    " jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human.\n"
)
TASK = "### Instruction:\nName the capital.\n\n"
TABLE = [
    ("alpaca", PLAIN, f"<s> {BELOW}{TASK}### Response:«Paris.</s>»"),
    ("alpaca", ABOUT, f"<s> {PAIRED}{TASK}### Input:\nFrance\n\n### Response:«Paris.</s>»"),
    ("alpaca-lora", PLAIN, f"«<s> {BELOW}{TASK}### Response:\nParis.</s>»"),
    ("alpaca-lora", ABOUT, f"«<s> {PAIRED}{TASK}### Input:\nFrance\n\n### Response:\nParis.</s>»"),
    ("vicuna", PLAIN, f"<s> {CHAT}USER: Name the capital. ASSISTANT:« Paris.</s>»"),
    ("vicuna", ABOUT, f"<s> {CHAT}USER: Name the capital.\n\nFrance ASSISTANT:« Paris.</s>»"),
    ("gpt4all-j", PLAIN, "Name the capital.\n«Paris.<|endoftext|>»"),
    ("gpt4all-j", ABOUT, "Name the capital.\n\nFrance\n«Paris.<|endoftext|>»"),
    ("dolly", PLAIN, f"{BELOW}{TASK}### Response:\n«Paris.\n\n### End»"),
    ("dolly", ABOUT, f"{BELOW}{TASK}Input:\nFrance\n\n### Response:\n«Paris.\n\n### End»"),
    ("stablelm", PLAIN, f"{SYSTEM}<|USER|>Name the capital.<|ASSISTANT|>«Paris.<|endoftext|>»"),
    ("stablelm", ABOUT, f"{SYSTEM}<|USER|>Name the capital.\n\nFrance<|ASSISTANT|>«Paris.<|endoftext|>»"),
]  # fmt: skip
ADDED = {"dolly": [(), DOLLY, ("### End",)], "stablelm": [(), STABLE, ("<|USER|>",)]}
CASES = [(name, example, text, added) for name, example, text in TABLE for added in ADDED.get(name, [()])]


@pytest.mark.parametrize(("name", "example", "text", "added"), CASES)
def test_the_text_and_what_is_learned_of_it(name, example, text, added):
    template = written(name, added)
    tokens = sequence(name, template, example)
    assert shown(tokens, template.tokenizer) == text
    assert tokens.ended
    assert tokens.as_asked
    if name != "alpaca-lora":
        assert [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(example, template)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("about", ["input", "context"])
def test_an_input_of_spaces_alone_is_written_as_the_authors_wrote_it(name, about):
    # Stanford: example.get("input", "") != ""; alpaca-lora: if input; Dolly: if context; the others know no context
    rows = [{"instruction": "Name the capital.", about: value, "output": "Paris."} for value in ("  ", "France")]
    of_spaces, of_france = (parse_row(row, "alpaca", "rows.jsonl:7")[0] for row in rows)
    template = written(name)
    text = shown(sequence(name, template, of_spaces), template.tokenizer)
    if name in ("alpaca", "alpaca-lora", "dolly"):
        assert text == shown(sequence(name, template, of_france), template.tokenizer).replace("France", "  ")
    else:
        assert text == shown(sequence(name, template, PLAIN), template.tokenizer)


def test_alpaca_lora_learns_everything_but_what_nothing_stands_before():
    tokens = sequence("alpaca-lora", written("alpaca-lora"), PLAIN)
    assert all(tokens.loss_mask)
    assert tokens.loss_count == len(tokens.ids) - 1


TURNS = talk("Hi.", "Hello!", "Who are you?", "A model.")
OWN = talk("Hi.", "Hello!", "Who are you?", "A model.", system="Be brief.")


OF_VICUNA = "USER: Hi. ASSISTANT:« Hello!</s>» USER: Who are you? ASSISTANT:« A model.</s>»"
OF_STABLELM = "<|USER|>Hi.<|ASSISTANT|>«Hello!<|USER|>»Who are you?<|ASSISTANT|>«A model.<|endoftext|>»"
SEVERAL = [
    ("vicuna", TURNS, f"<s> {CHAT}{OF_VICUNA}", ()),
    ("vicuna", OWN, f"<s> Be brief. {OF_VICUNA}", ()),
    ("stablelm", TURNS, SYSTEM + OF_STABLELM, ()),
    ("stablelm", OWN, "<|SYSTEM|>Be brief." + OF_STABLELM, ()),
    ("stablelm", TURNS, SYSTEM + OF_STABLELM, STABLE),
    ("stablelm", OWN, "<|SYSTEM|>Be brief." + OF_STABLELM, STABLE),
]


@pytest.mark.parametrize(("name", "example", "text", "added"), SEVERAL)
def test_several_turns(name, example, text, added):
    # SentencePiece's space behind </s> is written by the tokenizer, as where the conversation is asked
    template = written(name, added)
    tokens = sequence(name, template, example)
    assert shown(tokens, template.tokenizer) == text
    assert tokens.as_asked
    assert [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(example, template)


@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
@pytest.mark.parametrize("kind", ["first", "bare", "unigram"])
def test_llama_s_recipes_on_its_other_tokenizers(name, kind):
    template = written(name, (), kind)
    tokens = sequence(name, template, PLAIN)
    wanted = next(text for other, example, text in TABLE if (other, example) == (name, PLAIN))
    assert shown(tokens, template.tokenizer) == wanted.replace("<s> ", "<s>")
    assert tokens.as_asked


ENDS = [
    ("alpaca", (), ["</s>"], []),
    ("alpaca-lora", (), ["</s>"], []),
    ("vicuna", (), ["</s>"], []),
    ("gpt4all-j", (), ["<|endoftext|>"], []),
    ("dolly", (), [], ["### End"]),
    ("dolly", DOLLY, ["### End"], []),
    ("stablelm", (), ["<|endoftext|>"], ["<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"]),
    ("stablelm", STABLE, ["<|endoftext|>", "<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"], []),
    ("stablelm", ("<|USER|>",), ["<|endoftext|>", "<|USER|>"], ["<|ASSISTANT|>", "<|SYSTEM|>"]),
]


@pytest.mark.parametrize(("name", "added", "tokens", "texts"), ENDS)
def test_ends_are_tokens_or_texts(name, added, tokens, texts):
    template = written(name, added)
    assert template.tokenizer.hub.convert_ids_to_tokens(list(template.end_ids)) == tokens
    assert list(template.end_texts) == texts


class Scripted(torch.nn.Module):
    """Says what it is told to, id by id. It keeps nothing, so it reads the prompt and its answer before each token."""

    def __init__(self, script):
        super().__init__()
        self.script, self.prompt = script, None
        self.embedding = torch.nn.Embedding(1, 1)

    def get_input_embeddings(self):
        return self.embedding

    def prepare_inputs_for_generation(self, ids, **_):
        return {"input_ids": ids}

    def forward(self, input_ids, return_dict):
        self.prompt = self.prompt or input_ids.shape[1]
        token = self.script[input_ids.shape[1] - self.prompt]
        return SimpleNamespace(logits=torch.eye(max(self.script) + 1)[None, token : token + 1])


def continued(template, text):
    """The ids of a text behind a line break: SentencePiece would write a space before it alone."""
    before, whole = template.tokenizer.encode("\n"), template.tokenizer.encode("\n" + text)
    return whole[len(before) :] if whole[: len(before)] == before else template.tokenizer.encode(text)


def said(name, template, script, room=None):
    """The answer, and what was heard of it piece by piece."""
    model = SimpleNamespace(
        module=Scripted(script), tokenizer=template.tokenizer, template=template, context_length=None,
        encoder_decoder=False, fits=lambda prompt, new: True,
        precision=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    heard = []
    spec = GenerationConfig(max_new_tokens=room or len(script))
    return answer(model, [Message("user", "Name the capital.")], spec, heard.append), heard


ENDED = [(name, added) for name, added, _, _ in ENDS]


@pytest.mark.parametrize(("name", "added"), ENDED)
@pytest.mark.parametrize(
    "text", ["Paris.", "Paris.\n\nIt is\n  old.", "# A title\n## Two\n### Three", "<|US and ### E"]
)
def test_a_generation_of_what_was_learned_is_the_answer(name, added, text):
    template = written(name, added)
    tokens = sequence(name, template, talk("Name the capital.", text))
    (prompt,) = asked_prompts(PLAIN, template)
    learned = list(tokens.ids[len(prompt) :])
    beyond = template.tokenizer.encode(" and more")
    found, heard = said(name, template, learned + beyond)
    assert found.text == text
    assert "".join(heard) == text
    assert found.stopped == "end"
    assert found.tokens <= len(learned), "nothing is computed behind the end"


@pytest.mark.parametrize(("name", "added"), [("stablelm", ()), ("stablelm", STABLE), ("stablelm", ("<|USER|>",))])
@pytest.mark.parametrize("end", ["<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>", "<|endoftext|>"])
def test_stablelm_stops_at_each_mark(name, added, end):
    template = written(name, added)
    found, heard = said(name, template, template.tokenizer.encode(f"Paris.{end}And so on."))
    assert (found.text, "".join(heard), found.stopped) == ("Paris.", "Paris.", "end")


@pytest.mark.parametrize(("name", "added"), ENDED)
def test_without_an_end_all_that_was_said_is_the_answer(name, added):
    template = written(name, added)
    script = continued(template, "Paris. ### En")
    found, heard = said(name, template, script)
    assert (found.text, "".join(heard), found.stopped) == ("Paris. ### En", "Paris. ### En", "length")


PIECES = st.sampled_from(
    [
        "#", "##", "### ", "### E", "### En", "### End", "###End", "End", "<", "<|", "<|US", "<|USER|", "<|USER|>",
        "<|ASSISTANT|>", "<|endoftext|>", "\n\n", "\n", "\t", " ", "a", "Paris", "é", "👩‍👩‍👧", "שלום",
    ]
)  # fmt: skip


@pytest.mark.parametrize(("name", "added"), ENDED)
@settings(max_examples=draws(60), deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=10))
def test_a_stream_takes_nothing_back_and_shows_no_part_of_an_end(name, added, pieces):
    template = written(name, added)
    script = continued(template, "".join(pieces))
    found, heard = said(name, template, script)
    assert "".join(heard) == found.text
    script = list(takewhile(lambda token: token not in template.end_ids, script))
    whole = template.tokenizer.readable(script)
    ends = [place for end in template.end_texts if (place := whole.find(end)) >= 0]
    if ends:
        assert found.text == whole[: min(ends)].rstrip()
    for end in template.end_texts:
        assert end not in found.text
    shown_ = ""
    for count in range(1, len(script) + 1):
        text = template.answers.streamed(script[:count])
        if "\ufffd" not in text:
            assert text.startswith(shown_)
            shown_ = text
        if template.answers.has_end(script[:count]):
            assert shown_ == whole[: min(ends)].rstrip()
            break


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_recipe_s_own_ends_stop_an_answer(name):
    template = written(name)
    for other in {"</s>", "### End", "<|USER|>", "### Response:", "USER:", "Human:"} - set(template.ends):
        script = continued(template, f"one {other} two")
        found, _ = said(name, template, script)
        assert found.stopped == "length"
        assert found.text == template.tokenizer.readable(script)


def test_learned_texts_agree_with_the_marks():
    template = written("dolly", DOLLY)
    tokens = sequence("dolly", template, PLAIN)
    (run,) = runs(tokens)
    assert learned_texts(tokens, template.tokenizer) == ["Paris.\n\n### End"]
    assert template.tokenizer.hub.convert_ids_to_tokens(tokens.ids[run[1] - 1]) == "### End"
    assert tokens.ids[run[0] - 1] == template.tokenizer.hub.convert_tokens_to_ids("### Response:\n")
