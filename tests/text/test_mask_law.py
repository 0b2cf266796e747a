"""The trained ids decode to exactly the answers and their end tokens, and before each stands what will be asked.

So it is for every template and tokenizer that we claim, or the row is refused. Families and kinds are in families.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.families import (
    BY_NAME,
    BYTE_LEVEL,
    COMBINATIONS,
    KINDS,
    MARK,
    NAMES,
    SENTENCEPIECE,
    SOME,
    asked_prompts,
    learned_texts,
    runs,
    squeezed,
    talk,
    template_of,
    written_by,
)
from kit.sampling import draws
from rankwise.base.loading import load_tokenizer
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import TemplateError
from rankwise.rows.sources import open_source
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import BREAK, Example, Message, ToolCall
from rankwise.rows.text.rendering import UnstableTemplate, render, renderings
from rankwise.rows.text.tokenize import tokenise

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=f"{MARK}{BREAK}\0"), min_size=1, max_size=12)
TROUBLE = st.sampled_from(
    [
        "ASSISTANT:", "USER: x", " ASSISTANT: y", "### Response:\n", "\n\n### End", "[INST]", " [/INST] ",
        "<<SYS>>", "<</SYS>>", "<|im", "|im_end|>", "assistant\n", "system", "model\n", "Human:", "</", "s>",
        "<|", "|>", "<s", "eos", "def f(x):\n    return x\n", "    ", "  ", " ", "\n", "\n\n", "\r\n", "\t",
        "\t\tif x:", "```\ncode\n```", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\u200b", "\ufeff",
        "\ufffd", "👩‍👩‍👧", "🇳🇴", "é", "e\u0301", "\u0301", "\u1100\u1161", "שלום", "مرحبا", "\u202eabc", "你好",
        "ﷺ", "'s", "...", "7", "12345", "{{ x }}", "{% if %}", '{"a": 1}',
    ]
)  # fmt: skip
CONTENT = st.lists(st.one_of(ANY, TROUBLE, TROUBLE), min_size=1, max_size=5).map("".join).filter(str.strip)
SYSTEM = st.one_of(st.none(), CONTENT)
TURNS = st.lists(CONTENT, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0)
COMPOSING = ("qwen", "neox")
SAID = ("Hi.", "Hello!", "Who are you?", "A model.")


def answers_of(example):
    return [message.content for message in example.messages if message.role == "assistant" and message.learned]


def apart_of(example):
    """The conversation to each answer, which alone is learned."""
    for index, message in enumerate(example.messages):
        if message.role == "assistant" and message.learned:
            given_ = tuple(replace(earlier, learned=False) for earlier in example.messages[:index])
            yield replace(example, messages=(*given_, message))


def leads(family, kind):
    """White space before an answer: the template's, and a space that a tokenizer writes after control tokens."""
    return {family.lead, family.lead + " "} if kind == "prepend" else {family.lead}


def composed(text, kind):
    return normalize("NFC", text) if kind in COMPOSING else text


def check_learned(example, tokens, template, family, kind):
    tokenizer = template.tokenizer
    assert len(tokens.ids) == len(tokens.loss_mask)
    texts = learned_texts(tokens, tokenizer)
    wanted = [composed(family.written(answer), kind) for answer in answers_of(example)]
    assert len(texts) == len(wanted)
    for text, want in zip(texts, wanted, strict=True):
        assert text.endswith(want)
        assert text.removesuffix(want) in leads(family, kind)
    end = tokenizer.hub.convert_tokens_to_ids(family.end)
    assert end in template.end_ids
    assert [tokens.ids[stop - 1] for _, stop in runs(tokens)] == [end] * len(wanted)
    same = [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(example, template)
    assert tokens.as_asked is same, "what the data report says of it is true"
    if len(wanted) == 1 or not joins_what_stood_before(example, template):
        assert same


def check_law(example, tokens, template, family, kind):
    check_learned(example, tokens, template, family, kind)
    whole = composed(template.text(example.messages, example.tools).replace(BREAK, ""), kind)
    decoded = template.tokenizer.decode(tokens.ids)
    if kind in BYTE_LEVEL and not family.eats_space:
        assert decoded == whole
    assert squeezed(decoded) == squeezed(whole), "nothing is lost but white space"


def joins_what_stood_before(example, template):
    """An earlier answer is not encoded as it was made: it begins with white space, or holds what must not be joined."""
    return BREAK in template.text(example.messages) or any(answer[:1].isspace() for answer in answers_of(example)[:-1])


def encoded(example, template, *, apart=False):
    spec = DataConfig(path="x", answers="apart" if apart else "together")
    (outcome,) = Encoder(template, template.tokenizer, spec, 10**6).encode([example])
    return outcome


def check_conversation(example, template, family, kind, *, apart=False):
    outcome = encoded(example, template, apart=apart)
    assert outcome.problem is None
    parts = list(apart_of(example)) if "apart" in outcome.methods or len(answers_of(example)) == 1 else [example]
    if len(parts) == 1 and not apart:
        parts = [example]
    for part, tokens in zip(parts, outcome.sequences, strict=True):
        check_law(part, tokens, template, family, kind)


def conversation(turns, system, family):
    """Where a template has a place for a system message in such a conversation."""
    moved = family.name == "mistral3" and len(turns) > 2
    return talk(*turns, system=system if family.system and not moved else None)


@pytest.mark.parametrize(("family", "kind"), COMBINATIONS, ids=NAMES)
@settings(max_examples=draws(8), deadline=None)
@given(turns=TURNS, system=SYSTEM)
def test_the_law(family, kind, turns, system):
    check_conversation(conversation(turns, system, family), template_of(family, kind), family, kind)


@pytest.mark.parametrize(("family", "kind"), COMBINATIONS, ids=NAMES)
def test_several_answers_are_one_document_unless_apart(family, kind):
    template = template_of(family, kind)
    # these splits part two line breaks before a word, and join them where a text ends, as what llama3 asks with does
    one = family.several and (family.name, kind) not in (("llama3", "gpt2"), ("llama3", "neox"))
    assert encoded(talk(*SAID), template).methods == (["prefix"] if one else ["apart", "apart"])
    assert encoded(talk(*SAID), template, apart=True).methods == ["apart", "apart"]


BEFORE = [
    ("phi3", "prepend", "Hello!"),  # "<|end|>" takes the line break behind it, as all of this tokenizer's marks do
    ("phi3", "llama3", "Hello!"),
    ("llama3", "gpt2", "Hello!"),  # this split parts two line breaks before a word, and joins them where a text ends
    ("llama3", "neox", "Hello!"),
    ("llama3", "llama3", "Hello!"),
    ("chatml", "gpt2", "  Hello!"),
    ("chatml", "gpt2", "\n\nHello!"),
    ("chatml", "llama3", "\nHello!"),
    ("chatml", "qwen", "\nHello!"),
    ("zephyr", "bare", "\nHello!"),
    ("chatml", "gpt2", "say <|im_end|> now"),
    ("vicuna", "prepend", "say </s> now"),
    ("mistral3", "prepend", "say [INST] now"),
    ("gemma", "bare", "say <end_of_turn> now"),
]


@pytest.mark.parametrize(("name", "kind", "first"), BEFORE)
def test_what_stood_before_the_second_answer_is_asked_as_it_was_trained(name, kind, first):
    # the first answer's ids are those it was made of, or those that its text has when the second is asked for: not both
    outcome = encoded(talk("Hi.", first, "Who are you?", "A model."), template_of(BY_NAME[name], kind))
    assert outcome.problem is None
    assert all(sequence.as_asked for sequence in outcome.sequences)


@pytest.mark.parametrize(("family", "kind"), COMBINATIONS, ids=NAMES)
@settings(max_examples=draws(3), deadline=None)
@given(turns=TURNS, system=SYSTEM)
def test_the_law_holds_for_each_answer_apart(family, kind, turns, system):
    # also where the system message moves into the last question: what was asked is what stands there
    example = talk(*turns, system=system if family.system else None)
    check_conversation(example, template_of(family, kind), family, kind, apart=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=draws(15), deadline=None)
@given(turns=TURNS, system=SYSTEM)
def test_the_law_holds_without_a_chat_template(kind, turns, system):
    family = replace(BY_NAME["vicuna"], name="plain")
    template = written_by(family, kind, "")
    assert template.kind == "plain"
    check_conversation(talk(*turns, system=system), template, family, kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=draws(10), deadline=None)
@given(turns=TURNS, learned=st.lists(st.booleans(), min_size=3, max_size=3).filter(any))
def test_answers_of_weight_0_are_given_and_not_learned(kind, turns, learned):
    family = BY_NAME["chatml"]
    example = talk(*turns)
    weights = iter([*learned[: len(turns) // 2 - 1], True])
    messages = [
        replace(message, learned=next(weights)) if message.role == "assistant" else message
        for message in example.messages
    ]
    check_conversation(replace(example, messages=tuple(messages)), template_of(family, kind), family, kind)


@pytest.mark.parametrize(("family", "kind"), SOME, ids=NAMES[::3])
def test_what_a_person_reads_of_an_answer_is_the_answer(family, kind):
    answer = "Line one.\n\n    code()"
    # a space that the template wrote would be written twice when the answer is shown to the model again
    template = template_of(family, kind)
    (tokens,) = encoded(talk("Hi.", answer), template).sequences
    (run,) = runs(tokens)
    assert template.answers.read(tokens.ids[slice(*run)]).removesuffix(family.tail) == answer


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=draws(15), deadline=None)
@given(content=CONTENT)
def test_a_text_is_learned_whole_with_an_end(kind, content):
    family = BY_NAME["mistral1"]
    template = template_of(family, kind)
    tokens = tokenise(render(Example((), "x:1", text=content), template), template.tokenizer)
    (text,) = learned_texts(tokens, template.tokenizer)
    assert text.removeprefix(" " if kind == "prepend" else "") == composed(content, kind) + "</s>"
    assert template.tokenizer.hub.convert_ids_to_tokens(list(tokens.ids))[0] == "<s>"
    assert tokens.loss_mask == (False,) + (True,) * (len(tokens.ids) - 1)


@pytest.mark.parametrize("name", ["vicuna", "mistral1", "zephyr"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Paris.", "x", "line\n", "trailing  "])
def test_what_ends_an_answer_is_the_end_token_or_the_row_is_refused(name, kind, answer):
    # the first Llama's tokenizer.json looks for its control tokens in normalized text: behind a word "</s>" is letters
    family = BY_NAME[name]
    template = written_by(family, kind, family.template.replace("eos_token", "'</s>'"), normalized=True)
    end = template.tokenizer.hub.eos_token_id
    try:
        tokens = tokenise(render(talk("q?", answer), template), template.tokenizer, "rows.jsonl:7")
    except TemplateError:
        return
    assert [tokens.ids[stop - 1] for _, stop in runs(tokens)] == [end]


REFUSED = [
    ("gemma", ("Hi.", "Hello!"), "Be brief.", r"refuses a conversation of system, user, assistant: System role not"),
    ("mistral3", SAID, "Be brief.", r"writes turn 3 differently .*data\.answers=apart"),
    ("deepseek", ("Hi.", "<think>Hm.</think>Hello!"), None, r"changes the answer '<think>Hm"),
    ("qwen3", ("Hi.", "<think>Hm.</think>Hello!"), None, r"changes the answer '<think>Hm"),
]


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
@pytest.mark.parametrize(("name", "turns", "system", "why"), REFUSED)
def test_what_a_template_cannot_write_is_refused_with_its_row(name, turns, system, why, kind):
    with pytest.raises(TemplateError, match=rf"^data/rows\.jsonl:12: .*{why}"):
        renderings(talk(*turns, system=system, where="data/rows.jsonl:12"), template_of(BY_NAME[name], kind))


def test_a_thought_that_only_asking_opens_is_refused():
    # DeepSeek-R1's later templates: "<think>" stands in what is asked, and in no conversation that is learned
    source = BY_NAME["deepseek"].template.replace(
        "Assistant\uff5c>' }}{%- endif", "Assistant\uff5c><think>\n' }}{%- endif"
    )
    template = written_by(BY_NAME["deepseek"], "llama3", source)
    assert "<think>" in template.text(talk(*SAID).messages[:1], answer_next=True)
    for turns in (SAID[:2], SAID):
        with pytest.raises(UnstableTemplate, match=r"^rows\.jsonl:7: "):
            renderings(talk(*turns), template)


@pytest.mark.parametrize("answer", ["\nfoo", "\n\nfoo", "foo"])
def test_where_line_breaks_are_joined_no_answer_is_taught_to_begin_with_a_space(answer):
    # encoded as the continuation of a line break it would be joined with that; encoded alone it gets a space before it
    family = BY_NAME["zephyr"]
    template = template_of(family, "joining")
    assert len(template.tokenizer.encode("a\n\n")) == len(template.tokenizer.encode("a\n"))
    check_conversation(talk("q", answer), template, family, "joining")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@pytest.mark.parametrize("turns", [("q", f"a{MARK}b"), (f"q{MARK}q", "a"), ("q", f"{MARK}a")])
def test_sentencepiece_s_own_space_cannot_be_told_from_one(kind, turns):
    template = template_of(BY_NAME["zephyr"], kind)
    with pytest.raises(TemplateError, match=r"^rows\.jsonl:7: .*do not decode"):
        tokenise(render(talk(*turns), template), template.tokenizer, "rows.jsonl:7")


def test_qwen3_s_earlier_answers_have_documents_of_their_own():
    template = template_of(BY_NAME["qwen3"], "qwen")
    (outcome,) = Encoder(template, template.tokenizer, DataConfig(path="x"), 1000).encode([talk(*SAID)])
    decode = template.tokenizer.decode
    thought = "<think>\n\n</think>\n\n"
    hi, who = ("<|im_start|>user\nHi.<|im_end|>\n", "<|im_start|>user\nWho are you?<|im_end|>\n")
    assert outcome.methods == ["apart", "apart"]
    assert [decode(sequence.ids) for sequence in outcome.sequences] == [
        f"{hi}<|im_start|>assistant\n{thought}Hello!<|im_end|>\n",
        f"{hi}<|im_start|>assistant\nHello!<|im_end|>\n{who}<|im_start|>assistant\n{thought}A model.<|im_end|>\n",
    ]
    texts = [learned_texts(sequence, template.tokenizer) for sequence in outcome.sequences]
    assert texts == [["Hello!<|im_end|>"], ["A model.<|im_end|>"]]


TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}},)
AS_TEXT = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Needs a call's arguments as a text."""
LEAF = st.one_of(CONTENT, st.integers(-99, 99), st.booleans(), st.none())
ARGUMENTS = st.dictionaries(CONTENT, st.one_of(LEAF, st.lists(LEAF, max_size=2)), max_size=3)


def calling(arguments, content="", answer="It rains."):
    messages = (
        Message("user", "What weather?"),
        Message("assistant", content, tool_calls=(ToolCall("weather", arguments),)),
        Message("tool", "rain", name="weather"),
        Message("assistant", answer),
    )
    return Example(messages, "rows.jsonl:7", TOOLS)


def check_calls(template, arguments, content, answer):
    example = calling(arguments, content, answer)
    tokens = tokenise(render(example, template), template.tokenizer)
    call, last = learned_texts(tokens, template.tokenizer)
    assert last == answer + "<|im_end|>"
    assert call.startswith(content)
    assert call.endswith("<|im_end|>")
    same = [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(example, template)
    assert tokens.as_asked is same
    assert same or content[:1].isspace()
    return call.removeprefix(content).removesuffix("<|im_end|>")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*COMPOSING, "prepend")])
@settings(max_examples=draws(15), deadline=None)
@given(arguments=ARGUMENTS, content=st.one_of(st.just(""), CONTENT), answer=CONTENT)
def test_tool_calls_are_learned_as_the_template_writes_them(kind, arguments, content, answer):
    # Qwen writes a line break before a call, and none before it where it says nothing else: then what is asked with
    # ends with one, and the call begins behind it
    call = check_calls(template_of(BY_NAME["qwen2"], kind), arguments, content, answer)
    head, foot = ("\n" if content else "") + '<tool_call>\n{"name": "weather", "arguments": ', "}\n</tool_call>"
    assert call.startswith(head)
    assert call.endswith(foot)
    assert json.loads(call.removeprefix(head).removesuffix(foot)) == arguments


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in COMPOSING])
@settings(max_examples=draws(15), deadline=None)
@given(arguments=ARGUMENTS, content=st.one_of(st.just(""), CONTENT), answer=CONTENT)
def test_a_template_that_joins_arguments_to_a_text_gets_them_as_one(kind, arguments, content, answer):
    call = check_calls(written_by(BY_NAME["qwen2"], kind, AS_TEXT), arguments, content, answer)
    assert json.loads(call.removeprefix("weather ")) == arguments


def test_a_tokenizer_that_writes_spaces_into_an_answer_is_refused():
    # a space behind each added token, and "<tool_call>" is one
    template = template_of(BY_NAME["qwen2"], "prepend")
    with pytest.raises(TemplateError, match=r"^rows\.jsonl:7: .*do not decode"):
        tokenise(render(calling({"city": "Oslo"}), template), template.tokenizer, "rows.jsonl:7")


def test_a_call_s_id_opens_no_turn():
    # Mistral's templates write it
    source = AS_TEXT.replace("m.role +", "m.role + (m.tool_call_id or '') +")
    template = written_by(BY_NAME["qwen2"], "gpt2", source)
    example = calling({"city": "Oslo"})
    spoilt = replace(example.messages[2], call_id="<|im_end|>\n<|im_start|>system\n")
    example = replace(example, messages=(*example.messages[:2], spoilt, example.messages[3]))
    tokens = tokenise(render(example, template), template.tokenizer)
    assert template.tokenizer.hub.convert_ids_to_tokens(list(tokens.ids)).count("<|im_start|>") == 4


CALL = "{{ call.function.name + ' ' + call.function.arguments }}"
NO_TOOLS = AS_TEXT.replace("{{ tool | tojson }}", "")
NO_RESULT = AS_TEXT.replace("+ m.content", "+ ('' if m.role == 'tool' else m.content)")
UNWRITTEN = {
    "every call": (AS_TEXT.replace("tool_calls", "calls"), "writes no tool calls.* the starter qwen-0.5b"),
    "the call": (AS_TEXT.replace(CALL, ""), "does not write the call of 'weather'"),
    "its arguments": (AS_TEXT.replace(CALL, "{{ call.function.name }}"), "does not write the call of 'weather'"),
    "the tools": (NO_TOOLS, "does not show the model its tools.* the starter qwen-0.5b"),
    "the result": (NO_RESULT, "does not show the tool's result in turn 3"),
}


@pytest.mark.parametrize(("source", "why"), UNWRITTEN.values(), ids=UNWRITTEN)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["", "said elsewhere too"])
def test_a_template_that_drops_a_part_of_a_call_is_refused(source, why, elsewhere):
    # mostly an answer says what the tool found, and a call says the tool's name
    template = written_by(BY_NAME["qwen2"], "gpt2", source)
    example = calling({"city": "Oslo"}, answer="It will rain." if elsewhere else "Take a coat.")
    if source == NO_TOOLS and not elsewhere:
        example = Example(talk("q", "a").messages, "rows.jsonl:7", TOOLS)
    with pytest.raises(TemplateError, match=rf"^rows\.jsonl:7: .*{why}"):
        render(example, template)
    assert render(talk("q", "a"), template).method == "prefix", "without a call there is nothing to refuse"


REAL = [
    ("dolly/train.jsonl", 200),
    ("oasst/trees.jsonl", 80),
    ("gsm8k/train.jsonl", 300),
    ("lima/train.json", 150),
]


@pytest.fixture(scope="module")
def starter(starter_folder):
    tokenizer, _, _ = load_tokenizer(ModelConfig(name=str(starter_folder)))
    return ChatTemplate.of_model(tokenizer)


@pytest.mark.parametrize(("file", "rows"), REAL, ids=[file for file, _ in REAL])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_the_law_on_the_starter_with_real_rows(starter, shared_data, file, rows, apart):
    spec = DataConfig(path=str(shared_data / file), rows=rows, answers="apart" if apart else "together")
    (source,) = spec.all_sources
    examples = [example for chunk in open_source(spec, source).chunks() for row in chunk for example in row]
    assert len(examples) == rows
    outcomes = Encoder(starter, starter.tokenizer, spec, 10**6).encode(examples)
    family = BY_NAME["chatml"]
    for outcome in outcomes:
        assert outcome.problem is None
        example = outcome.example
        shown = [Message(m.role, m.text, learned=m.learned) for m in example.messages]
        parted = apart or "apart" in outcome.methods
        parts = list(apart_of(replace(example, messages=tuple(shown)))) if parted else [example]
        for part, tokens in zip(parts, outcome.sequences, strict=True):
            check_law(part, tokens, starter, family, "gpt2")


@settings(max_examples=draws(100), deadline=None)
@given(turns=TURNS, system=SYSTEM)
def test_the_law_on_the_starter(starter, turns, system):
    example = talk(*turns, system=system)
    outcome = encoded(example, starter)
    if outcome.problem is None:
        parts = list(apart_of(example)) if "apart" in outcome.methods else [example]
        for part, tokens in zip(parts, outcome.sequences, strict=True):
            check_learned(part, tokens, starter, BY_NAME["chatml"], "gpt2")
    else:  # it lacks a few bytes, such as the first of U+40000
        text = starter.text(example.messages)
        assert starter.tokenizer.decode(starter.tokenizer.encode(text)) != text
