"""Ollama's template is a known one: the same ids as training, or a limit that is named.

What needs Go itself is skipped where Go is absent; then three templates that Go rendered stand for all.
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

from kit.families import BY_NAME, FAMILIES, Family, template_of, written_by
from kit.served_families import EXPRESSIBLE, REFUSED
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import TemplateError
from rankwise.exporting.ollama import adds_start, ollama_template
from rankwise.exporting.ollama_templates import KNOWN, ServedTemplate, go_text
from rankwise.exporting.served_jinja import as_openai
from rankwise.exporting.template_parity import Parity, ProbeConversation, conversations, template_parity
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

PROGRAM = Path(__file__).parents[1] / "go" / "render_templates.go"
ALL = (*FAMILIES, *EXPRESSIBLE)
SERVED = {
    "chatml": 30, "llama3": 25, "qwen2": 18, "qwen3": 30, "mistral1": 30, "mistral3": 30, "gemma": 26, "phi3": 30,
    "vicuna": 30, "llama2": 26, "deepseek": 30, "zephyr": 30, "folded": 30, "tools-late": 21, "qwen2-indented": 18,
    "tools-with-ids": 21,
}  # fmt: skip
"""How many of thirty conversations can be written; the others are named."""
CHATML = (
    '{{ range $i, $m := .Messages }}{{ if eq $i 0 }}{{ if eq .Role "system" }}{{ else }}<|im_start|>system\n'
    'You are small.<|im_end|>\n{{ end }}{{ end }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}'
    '<|im_end|>\n{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if eq .Role '
    '"assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ else }}'
    "{{ .Role.this_model_was_trained_without_such_messages }}{{ end }}{{ end }}<|im_start|>assistant\n"
)
MISTRAL = (
    '{{ $last := -1 }}{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $last = $i }}{{ end }}{{ end }}'
    '{{ range $i, $m := .Messages }}{{ if eq .Role "system" }}{{ else if eq .Role "user" }}[INST] {{ if and (eq $i '
    '$last) (eq (index $.Messages 0).Role "system") }}{{ $.System }}\n\n{{ end }}{{ .Content }}[/INST]{{ else if eq '
    '.Role "assistant" }} {{ .Content }}</s>{{ else }}{{ .Role.this_model_was_trained_without_such_messages }}{{ end }}'
    "{{ end }}"
)
LLAMA2 = (
    '{{ $open := false }}{{ range $i, $m := .Messages }}{{ if eq .Role "system" }}[INST] <<SYS>>\n{{ .Content }}\n'
    '<</SYS>>\n\n{{ $open = true }}{{ else if eq .Role "user" }}{{ if not $open }}[INST] {{ end }}{{ .Content }} '
    '[/INST]{{ $open = false }}{{ else if eq .Role "assistant" }} {{ .Content }} </s><s>{{ else }}'
    "{{ .Role.this_model_was_trained_without_such_messages }}{{ end }}{{ end }}"
)
ODD = Family("odd", '\u00a0""" {\u200b{{ \'{{\' }}' + BY_NAME["zephyr"].template, "</s>", ())
"""Jinja writes the last part of its beginning as two braces."""


def parity_of(
    template: ChatTemplate, served: ServedTemplate, *, starts: bool = False, stops: tuple[str, ...] | None = None
) -> Parity:
    return template_parity(
        template, lambda messages, tools: served.text(messages), adds_start=starts,
        stops=template.ends if stops is None else stops,
    )  # fmt: skip


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", ["qwen", "first"])
def test_a_known_template_gives_the_ids_of_training_or_names_why_it_cannot(family, kind):
    if family.spellable and kind not in family.spellable:
        pytest.skip("a tokenizer that cannot spell these tokens")
    parity = ollama_template(template_of(family, kind)).parity
    assert (parity.conversations, parity.same, parity.different) == (30, SERVED[family.name], ())
    counts = [int(re.search(r"\((\d+) of 30", line)[1]) for line in parity.refused]
    assert parity.same + sum(counts) == 30


@pytest.mark.parametrize(("family", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused_by_name_with_another_way(family, words):
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
    assert "<s>" not in served.served.go  # the engine adds it


def test_every_known_template_is_one_that_some_model_has():
    """Each row is chosen for its own form: written as a chat template, with a default system message."""
    for name, turns in KNOWN.items():
        form = "{% for m in messages %}{% if m.role == 'user' %}" + _jinja(turns.question)
        if turns.answer is not None:
            form += "{% elif m.role == 'assistant' %}" + _jinja(turns.answer)
        if turns.system is not None and turns.inside is None:
            form += "{% elif m.role == 'system' %}" + _jinja(turns.system)
        form += "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
        template = written_by(replace(BY_NAME["zephyr"], end="</s>"), "qwen", form)
        served = ollama_template(template)
        assert served.parity.same == served.parity.conversations, name


def _jinja(form: str) -> str:
    before, _, after = form.replace("{end}", "</s>").partition("{}")
    return f"{{{{ {json.dumps(before)} + m.content + {json.dumps(after)} }}}}"


@pytest.mark.parametrize("fault", [
    {"question": "<|im_start|>user{}<|im_end|>\n"}, {"question": "<|im_start|>assistant\n{}<|im_end|>\n"},
    {"answer": "<|im_start|>assistant\n{}<|im_start|>\n"}, {"system": "{}"},
])  # fmt: skip
def test_a_wrong_turn_is_seen(fault):
    template = template_of(BY_NAME["chatml"], "qwen")
    right = ollama_template(template).served
    assert not parity_of(template, right).different
    assert parity_of(template, replace(right, turns=replace(right.turns, **fault))).different


def test_a_wrong_beginning_and_end_are_seen():
    template = template_of(BY_NAME["chatml"], "qwen")
    right = ollama_template(template).served
    for fault in ({"before": right.before.replace("small", "tall")}, {"before_system": "x"}, {"after": ""}):
        assert parity_of(template, replace(right, **fault)).different


def test_a_wrong_stop_and_a_start_token_too_few_or_too_many_are_seen():
    template = template_of(BY_NAME["gemma"], "bare")
    served = ollama_template(template).served
    assert adds_start(template)
    reasons = [parity_of(template, served, starts=True, stops=stops).different for stops in ((), ("<eos>",))]
    assert all("<end_of_turn>" in lines[-1] for lines in reasons)
    assert parity_of(template, served, starts=False).same == 0
    assert parity_of(template, replace(served, before="<bos>"), starts=True).same == 0


def test_a_white_space_that_a_template_removes_is_the_only_reason_to_refuse_it():
    template = template_of(BY_NAME["llama3"], "llama3")
    served = ollama_template(template)
    assert len(served.notes) == 1 and "white space" in served.notes[0]
    talk = (Message("user", " a "),)
    assert served.served.text(talk) != template.text(talk, answer_next=True)  # what the refusal spares us


def test_templates_of_go_are_those_that_go_rendered():
    for name, kind, text in (("chatml", "qwen", CHATML), ("mistral3", "qwen", MISTRAL), ("llama2", "first", LLAMA2)):
        assert ollama_template(template_of(BY_NAME[name], kind)).served.go == text


def test_odd_characters_are_written_as_constants_of_go():
    assert go_text('\u00a0""" {\u200b{{') == '{{ "\\u00a0" }}{{ "\\"\\"\\"" }} {{ "{" }}{{ "\\u200b" }}{{ "{{" }}'
    assert go_text("a { b } c\n") == "a { b } c\n"


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """A function that renders conversations with Go's own text/template."""
    found = os.environ.get("RANKWISE_GO") or shutil.which("go")
    if not found:
        pytest.skip("Go is not installed; set RANKWISE_GO to its program to compare with Go's own text/template")
    program = tmp_path_factory.mktemp("go") / "render"
    subprocess.run([found, "build", "-o", program, PROGRAM], check=True, timeout=300)

    def rendered(template: str, talks: list[ProbeConversation]) -> list[dict[str, str]]:
        said = [{"messages": [as_openai(message) for message in one.messages]} for one in talks]
        job = json.dumps([{"template": template, "conversations": said}])
        done = subprocess.run([program], input=job, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)[0]

    return rendered


def in_python(served: ServedTemplate, one: ProbeConversation) -> str | None:
    try:
        return served.text(one.messages)
    except TemplateError:
        return None


@pytest.mark.parametrize("family", [*ALL, ODD], ids=lambda family: family.name)
def test_go_itself_renders_the_same(family, go):
    served = ollama_template(template_of(family, "qwen")).served
    talks = [one for one in conversations() if not any(m.tool_calls or m.role == "tool" for m in one.messages)]
    for one, result in zip(talks, go(served.go, talks), strict=True):
        assert in_python(served, one) == (None if "error" in result else result["text"]), one.name


@pytest.mark.parametrize("turns", KNOWN.values(), ids=KNOWN)
def test_go_itself_renders_every_known_template(turns, go):
    served = ServedTemplate("", turns, "{before}", "<|before|> {", "\tafter }}")
    talks = [one for one in conversations() if not any(m.tool_calls or m.role == "tool" for m in one.messages)]
    for one, result in zip(talks, go(served.go, talks), strict=True):
        assert in_python(served, one) == (None if "error" in result else result["text"]), one.name


def test_a_role_that_was_never_trained_is_an_error_and_no_other_prompt(go):
    text = ollama_template(template_of(BY_NAME["gemma"], "bare")).served.go
    talks = [ProbeConversation(role, (Message(role, "Be kind."),)) for role in ("system", "tool", "developer")]
    assert all("this_model_was_trained_without_such_messages" in one["error"] for one in go(text, talks))
