"""A Modelfile, as Ollama reads it, and the Jinja template of a GGUF file, as plain Jinja renders it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.command import printed, rankwise
from kit.families import BY_NAME, FAMILIES, Family, template_of, written_by
from kit.served_families import EXPRESSIBLE
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import TemplateError
from rankwise.exporting.ollama import modelfile, ollama_template, quoted
from rankwise.exporting.served_jinja import gguf_parity, served_jinja
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

WHOLE = {"conversations": 30, "same": 30, "refused": []}


def commands_in(text: str) -> list[tuple[str, str]]:
    """Read a Modelfile by Ollama's rules (parser/parser.go of 0.33.0-rc2).

    A command ends at a line break outside quotes. Characters that cannot be printed are dropped.
    """
    commands, rest = [], text
    while rest.strip():
        name, _, rest = rest.lstrip(" \t\n").partition(" ")
        if name.lower() == "parameter":
            name, _, rest = rest.lstrip(" \t").partition(" ")
        value, rest = "", rest.lstrip(" \t")
        for position, letter in enumerate(rest):
            if letter in "\r\n" and closed(value):
                rest = rest[position:]
                break
            value += letter if letter in "\r\n\t" or letter.isprintable() else ""
        else:
            rest = ""
        commands.append((name.lower(), unquoted(value.strip())))
    return commands


def closed(value: str) -> bool:
    mark = '"""' if value.startswith('"""') else '"'
    return not value.startswith('"') or (len(value) >= 2 * len(mark) and value.endswith(mark))


def unquoted(value: str) -> str:
    mark = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
    return value[len(mark) : len(value) - len(mark)]


@pytest.mark.parametrize("family", (*FAMILIES, *EXPRESSIBLE), ids=lambda family: family.name)
def test_a_modelfile_is_read_back_as_it_was_written(family):
    served = ollama_template(template_of(family, "qwen"))
    system = 'You "quote" it.\n\n Twice: "'
    text = modelfile(served, system=system, max_length=512, positions=8192)
    assert commands_in(text) == [
        ("from", "."), ("template", served.served.go), ("system", system),
        *(("stop", stop) for stop in served.stops),
        ("num_ctx", "4096"), ("temperature", "0"), ("repeat_penalty", "1"),
    ]  # fmt: skip


def test_the_context_is_that_of_the_rows_and_of_the_model():
    served = ollama_template(template_of(BY_NAME["chatml"], "qwen"))
    for max_length, positions, context in (
        (None, None, 4096),
        (9000, None, 9000),
        (9000, 8192, 8192),
        (64, 2048, 2048),
    ):
        assert ("num_ctx", str(context)) in commands_in(modelfile(served, max_length=max_length, positions=positions))


@pytest.mark.parametrize("text", ['a """ b', "a\u00a0b", "a\u200bb", "a\x00b", "a\rb"])
def test_a_text_that_ollama_would_read_as_another_is_refused(text):
    with pytest.raises(TemplateError, match="Modelfile"):
        quoted(text, "the system message")


def test_odd_characters_of_a_template_reach_ollama():
    start = '\u00a0""" {\u200b{{ \'{{\' }}'  # Jinja writes the last part as {{
    odd = Family("odd", start + BY_NAME["zephyr"].template, "</s>", ())
    served = ollama_template(template_of(odd, "qwen"))
    assert dict(commands_in(modelfile(served)))["template"] == served.served.go
    talk = (Message("user", "Hello"),)
    assert served.served.text(talk) == template_of(odd, "qwen").text(talk, answer_next=True).removeprefix("<s>")


@pytest.mark.parametrize("family", (*FAMILIES, *EXPRESSIBLE), ids=lambda family: family.name)
def test_the_jinja_of_a_gguf_file_gives_the_ids_of_training(family):
    assert gguf_parity(template_of(family, "qwen")).summary() == WHOLE | {"in": "tokenizer.chat_template"}


def test_the_jinja_of_a_recipe_and_of_the_plain_template_give_the_ids_of_training(hub_tokenizer):
    plain = written_by(BY_NAME["llama2"], "prepend", "")
    recipes = [ChatTemplate.of_recipe(HubTokenizer(hub_tokenizer, [2]), recipe_named(name)) for name in RECIPES]
    for template in (plain, *recipes):
        assert gguf_parity(template).summary() == WHOLE | {"in": "tokenizer.chat_template"}
        assert "generation %}" not in served_jinja(template)


@pytest.mark.parametrize("fault", [
    ("\\n' + m.content", "' + m.content"), ("'user'", "'assistant'"), ("<|im_end|>", "<|im_start|>"),
    ("You are small.", "You are tall."), ("add_generation_prompt", "false"),
])  # fmt: skip
def test_a_wrong_jinja_template_is_seen(fault):
    template = template_of(BY_NAME["chatml"], "qwen")
    right = served_jinja(template).replace("m.role +", "('user' if m.role == 'user' else m.role) +")
    wrong = right.replace("('user' if", "('assistant' if") if fault[0] == "'user'" else right.replace(*fault)
    assert wrong != right
    assert not gguf_parity(template, right).different
    assert gguf_parity(template, wrong).different


def test_a_start_token_that_the_jinja_leaves_out_is_seen():
    template = template_of(BY_NAME["gemma"], "bare")
    assert gguf_parity(template, served_jinja(template).replace("{{ bos_token }}", "")).same == 0


def test_thinking_is_off_where_an_engine_does_not_say_so():
    template = template_of(BY_NAME["qwen3"], "qwen")
    own = template.facts.sources["default"]
    assert gguf_parity(template, own).same == 0
    assert gguf_parity(template).same == 30


def test_a_run_is_exported_for_ollama(library, tmp_path: Path, monkeypatch):
    home = library.lay_out(tmp_path / "home", "short")
    monkeypatch.chdir(home)
    parity = printed("export", "short", "--to", "out", "--format", "ollama")["template_parity"]
    assert parity == WHOLE | {"in": "Modelfile"}
    commands = commands_in((home / "out" / "Modelfile").read_text())
    assert [name for name, _ in commands] == ["from", "template", "stop", "num_ctx", "temperature", "repeat_penalty"]
    assert dict(commands)["from"] == "." and dict(commands)["stop"] == "<|im_end|>"
    assert (home / "out" / "model.safetensors").is_file()


def test_a_template_that_ollama_cannot_render_is_refused_before_anything_is_written(
    library, tmp_path: Path, monkeypatch
):
    home = library.lay_out(tmp_path / "home", "short")
    monkeypatch.chdir(home)
    report = next(path for path in (home / "runs" / "short").rglob("data_report.json"))
    facts = json.loads(report.read_text())
    facts["template"]["sources"]["default"] = "{{ strftime_now('%d') }}" + facts["template"]["sources"]["default"]
    report.write_text(json.dumps(facts))
    words = ["export", "short", "--to", "out", "--format", "ollama", "--force-result"]
    done = rankwise(*words)
    assert done.exit_code == 2
    assert "date" in done.stderr and "llama-server --jinja" in done.stderr
    assert not (home / "out").exists()
