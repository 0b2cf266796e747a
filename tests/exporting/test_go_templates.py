"""The template of Go that is derived from a chat template: the same ids as training, or a limit that is named.

What needs Go itself is skipped where Go is absent; then the strict renderer in Python stands in for it, which is equal
to Go on all templates and conversations here whenever Go is present.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families import BY_NAME, FAMILIES, template_of, written_by
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import TemplateError
from rankwise.exporting.go_json import go_json, template_values
from rankwise.exporting.go_template import GoTemplateError, render
from rankwise.exporting.go_template_writer import go_text
from rankwise.exporting.ollama import adds_start, ollama_template
from rankwise.exporting.parity_conversations import Conversation, conversations
from rankwise.exporting.served_jinja import as_openai
from rankwise.exporting.template_parity import Parity, template_parity
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import Message
from rankwise.text.tokenizer import HubTokenizer
from served_families import EXPRESSIBLE, REFUSED

PROGRAM = Path(__file__).parents[1] / "go" / "render_templates.go"
ALL = (*FAMILIES, *EXPRESSIBLE)
SERVED = {
    "chatml": 30, "llama3": 25, "qwen2": 28, "qwen3": 30, "mistral1": 30, "mistral3": 30, "gemma": 26, "phi3": 30,
    "vicuna": 30, "llama2": 26, "deepseek": 30, "zephyr": 30, "folded": 30, "tools-late": 27, "qwen2-indented": 18,
    "tools-with-ids": 21,
}  # fmt: skip
"""How many of thirty conversations can be written; the others are named."""
BAD = {
    "newline": ("<|im_start|>user\n", "<|im_start|>user"),
    "roles": ("<|im_start|>user", "<|im_start|>assistant"),
    "end": ("<|im_end|>", "<|im_start|>"),
    "generation prompt": ("{{ end }}{{ end }}<|im_start|>assistant\n", "{{ end }}{{ end }}"),
    "default system message": ("You are small.", "You are tall."),
    "system message left out": ("<|im_start|>system\n{{ .Content }}<|im_end|>\n", ""),
}


def parity_of(
    template: ChatTemplate, text: str, *, starts: bool = False, stops: tuple[str, ...] | None = None
) -> Parity:
    return template_parity(
        template, lambda messages, tools: render(text, template_values(messages, tools)), adds_start=starts,
        stops=template.ends if stops is None else stops,
    )  # fmt: skip


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", ["qwen", "first"])
def test_a_go_template_gives_the_ids_of_training_or_names_why_it_cannot(family, kind):
    if family.spellable and kind not in family.spellable:
        pytest.skip("a tokenizer that cannot spell these tokens")
    served = ollama_template(template_of(family, kind))
    assert served.parity.conversations == 30
    assert served.parity.same == SERVED[family.name]
    assert not served.parity.different
    counts = [int(re.search(r"\((\d+) of 30", line)[1]) for line in served.parity.refused]
    assert served.parity.same + sum(counts) == 30


@pytest.mark.parametrize(("family", "words"), REFUSED.values(), ids=REFUSED)
def test_what_go_cannot_express_is_refused_by_name_with_another_way(family, words):
    with pytest.raises(TemplateError, match=words) as caught:
        ollama_template(template_of(family, "qwen"))
    assert "llama-server --jinja" in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_served_as_it_was_trained(name, hub_tokenizer):
    template = ChatTemplate.of_recipe(HubTokenizer(hub_tokenizer, [2]), recipe_named(name))
    served = ollama_template(template)
    assert (served.parity.conversations, served.parity.same, served.stops) == (30, 30, tuple(template.ends))
    assert any("context" in note for note in served.notes) == (name in ("alpaca", "alpaca-lora", "dolly"))


def test_a_model_without_a_template_is_served_by_the_plain_one():
    served = ollama_template(written_by(BY_NAME["llama2"], "prepend", ""))
    assert served.parity.same == 30
    assert "<s>" not in served.text  # the engine adds it


@pytest.mark.parametrize("fault", BAD)
def test_a_wrong_template_is_seen(fault):
    template = template_of(BY_NAME["chatml"], "qwen")
    right = ollama_template(template).text
    wrong = right.replace(*BAD[fault])
    assert wrong != right
    assert not parity_of(template, right).different
    assert parity_of(template, wrong).different


def test_a_wrong_stop_and_a_start_token_too_few_or_too_many_are_seen():
    template = template_of(BY_NAME["gemma"], "bare")
    served = ollama_template(template)
    assert adds_start(template)
    reasons = [parity_of(template, served.text, starts=True, stops=stops).different for stops in ((), ("<eos>",))]
    assert all("<end_of_turn>" in lines[-1] for lines in reasons)
    assert parity_of(template, served.text, starts=False).same == 0
    assert parity_of(template, ollama_template(template, starts=False).text, starts=True).same == 0


def test_a_white_space_that_a_template_removes_is_the_only_reason_to_refuse_it():
    template = template_of(BY_NAME["llama3"], "llama3")
    served = ollama_template(template)
    assert len(served.notes) == 3
    assert all("white space" in note for note in served.notes)
    talk = (Message("user", " a "),)
    written = render(served.text, template_values(talk, ()))
    assert written != template.text(talk, answer_next=True)  # what the refusal spares us


def test_a_role_that_was_never_trained_is_an_error_and_no_other_prompt():
    text = ollama_template(template_of(BY_NAME["gemma"], "bare")).text
    for role in ("system", "tool", "developer"):
        with pytest.raises(GoTemplateError, match="this_model_was_trained_without_such_messages"):
            render(text, template_values((Message(role, "Be kind."),), ()))


def test_messages_of_one_role_are_joined_as_ollama_joins_them():
    values = template_values(
        (Message("user", "a"), Message("user", "b"), Message("tool", "c"), Message("tool", "d")), ()
    )
    assert [(one["Role"], one["Content"]) for one in values["Messages"]] == [
        ("user", "a\n\nb"),
        ("tool", "c"),
        ("tool", "d"),
    ]


def test_ollama_finds_the_mark_of_a_call():
    # It takes the first text in the branch of .ToolCalls, up to a brace, for what a model begins a call with.
    text = ollama_template(template_of(BY_NAME["qwen2"], "qwen")).text
    branch = text.split("{{ if .ToolCalls }}")[1]
    first = next(piece for piece in re.split(r"\{\{.*?\}\}", branch) if piece.strip())
    assert first.partition("{")[0].strip() == "<tool_call>"


@pytest.mark.parametrize("template", [
    "{{ range }}x{{ end }}", "{{ if }}x{{ end }}", "{{ end }}", "{{ else }}", "{{ if true }}x{{ end }}",
    "{{ .A | json }}",
    "{{ printf .A }}", "{{ .Missing }}", "{{ $x }}", "{{ $x = 1 }}", "{{ .A", "{{ with .A }}{{ end }}", "{{ eq .A 1 }}",
    "{{ .Messages }}", '{{ template "x" }}', "{{ len }}{{",
])  # fmt: skip
def test_what_is_outside_the_known_part_of_go_is_refused(template):
    with pytest.raises((GoTemplateError, TypeError)):
        render(template, {"A": "a", "Messages": []})


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_every_literal_is_written_as_it_is(text):
    if all(ord(letter) < 0xD800 or ord(letter) > 0xFFFF for letter in text):
        assert render(go_text(text), {}) == text
        assert render(go_text(text) + "{{ .A }}" + go_text(text), {"A": "|"}) == f"{text}|{text}"


def openai(one: Conversation) -> dict[str, object]:
    return {"messages": [as_openai(message) for message in one.messages], "tools": list(one.tools)}


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """A function that renders templates with Go's own text/template."""
    found = os.environ.get("RANKWISE_GO") or shutil.which("go")
    if not found:
        pytest.skip("Go is not installed; set RANKWISE_GO to its program to compare with Go's own text/template")
    program = tmp_path_factory.mktemp("go") / "render"
    subprocess.run([found, "build", "-o", program, PROGRAM], check=True, timeout=300)

    def rendered(template: str, talks: list[dict[str, object]]) -> list[dict[str, str]]:
        job = json.dumps([{"template": template, "conversations": talks}])
        done = subprocess.run([program], input=job, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)[0]

    return rendered


def in_python(template: str, one: Conversation) -> str | None:
    try:
        return render(template, template_values(one.messages, one.tools))
    except GoTemplateError:
        return None


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_go_itself_renders_the_same(family, go):
    text = ollama_template(template_of(family, "qwen")).text
    results = go(text, [openai(one) for one in conversations()])
    for one, result in zip(conversations(), results, strict=True):
        assert in_python(text, one) == (None if "error" in result else result["text"]), one.name


def test_go_itself_agrees_about_values_conditions_and_markers(go):
    messages = tuple(replace(Message("user", "x"), content=text) for text in ("", "a", "é\u2028<&>"))
    talk = Conversation("one", messages[1:])
    for template in (
        "a {{- .System }} b {{- \" c\" -}} \n d", "{{ if and .Messages (not .Tools) }}y{{ else }}n{{ end }}",
        '{{ $x := "a" }}{{ range $i, $m := .Messages }}{{ $x = "b" }}{{ $i }}{{ json .Content }}{{ end }}{{ $x }}',
        '{{ if eq .System "a" "" }}1{{ else if ne .System "b" }}2{{ end }}', "{{ len .Messages }}",
        '{{ if or .System "z" }}{{ (index .Messages 0).Role }}{{ end }}', '{{ "\\u00e9\\n{{" }}',
        "{{ if eq 1 2 1 }}y{{ end }}",
        '{{ range .Tools }}x{{ end }}{{ if not (and 1 "") }}y{{ end }}', '{{ if eq (len .Tools) 0 }}{{ 12 }}{{ end }}',
    ):  # fmt: skip
        (result,) = go(template, [openai(talk)])
        assert result == {"text": render(template, template_values(talk.messages, ()))}, template
    for template in (
        "{{ (index .Messages 0).nothing }}",
        "{{ index .Messages 7 }}",
        "{{ $x }}",
        "{{ if }}{{ end }}",
        "{{ end }}",
    ):
        (result,) = go(template, [openai(talk)])
        assert result["error"]
        with pytest.raises((GoTemplateError, IndexError)):
            render(template, template_values(talk.messages, ()))


def test_go_itself_writes_json_the_same(go):
    values = [
        0,
        1,
        -2.5,
        1e21,
        1e-7,
        123456789.125,
        1e20,
        3.0,
        True,
        None,
        'a"\\\n\t\x01<é>&\u2029',
        ["b", 1, []],
        {"z": 1, "a": {}},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"p": {"type": "string", "enum": values}}}}}  # fmt: skip
    loops = "{{ range .Tools }}{{ range .Function.Parameters.Properties }}{{ range .Enum }}"
    text = loops + "{{ json . }}\n" + 3 * "{{ end }}"
    (result,) = go(text, [{"messages": [{"role": "user", "content": ""}], "tools": [tool]}])
    assert result["text"].splitlines() == [go_json(value) for value in values]
