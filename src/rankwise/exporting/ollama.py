"""A Modelfile for Ollama: the model's files, and the chat template of the run as a template of Go.

The template is derived from the one that the run recorded, and compared with it on thirty conversations before it is
used (template_parity.py). What Ollama reads itself, by its source of version 0.33.0-rc2:

- TEMPLATE is rendered by Go's text/template. If a Modelfile has none, or if the GGUF file's own Jinja template knows
  tools and TEMPLATE does not, versions from 0.30 on render the Jinja template with llama.cpp instead.
- SYSTEM is put before a conversation that has no system message.
- Characters that cannot be printed are dropped from the file without a word, so none are written.
- The start token is added by the engine if the GGUF file's tokenizer.ggml.add_bos_token says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.errors import TemplateError
from rankwise.exporting.go_json import template_values
from rankwise.exporting.go_template import render
from rankwise.exporting.go_template_limits import limits_of
from rankwise.exporting.go_template_probe import probe
from rankwise.exporting.go_template_writer import written
from rankwise.exporting.template_parity import Parity, template_parity
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.example import Message

SMALLEST_CONTEXT = 4096
ELSEWHERE = (
    "Export it as GGUF or merged and serve it with an engine that renders the model's own Jinja template: llama.cpp "
    "(llama-server --jinja) or vLLM."
)


@dataclass(frozen=True)
class OllamaTemplate:
    """A template of Go with the result of the comparison."""

    text: str
    stops: tuple[str, ...]
    parity: Parity
    notes: tuple[str, ...]
    """What the template of Go cannot do."""


def adds_start(template: ChatTemplate) -> bool:
    """Whether the engine should put the start token before every prompt: what add_bos_token in a GGUF file must say.

    True if the tokenizer puts it there by itself and training's prompts begin with it.
    """
    start = template.tokenizer.start
    return bool(start) and template.text([Message("user", "?")], answer_next=True).startswith(start)


def ollama_template(template: ChatTemplate, *, starts: bool | None = None) -> OllamaTemplate:
    """Derive a template of Go. `starts` says whether the engine adds the start token; by default `adds_start` decides.

    Raises TemplateError if the template cannot be expressed, or if a conversation gets other token ids.
    """
    try:
        structure = probe(template)
    except TemplateError as error:
        raise TemplateError(f"Ollama's template cannot be written: {str(error).rstrip('.')}. {ELSEWHERE}") from None
    starts = adds_start(template) if starts is None else starts
    text = written(structure, template.tokenizer.hub.bos_token or "" if starts else "")
    limits = limits_of(template, structure)
    parity = template_parity(
        template, lambda messages, tools: render(text, template_values(messages, tools)), adds_start=starts,
        stops=template.ends, reasons=lambda one: limits.of(one.messages, one.tools, structure),
        carrier="Modelfile",
    )  # fmt: skip
    if parity.different:
        raise TemplateError(
            f"Ollama's template would give the model other tokens than training: {parity.different[0]}. {ELSEWHERE}"
        )
    notes = (*limits.lines(), *(f"tools: {why}" for why in structure.untold))
    return OllamaTemplate(text, tuple(template.ends), parity, notes)


def modelfile(
    template: OllamaTemplate, *, base: str, adapter: str | None = None, system: str | None = None,
    max_length: int | None = None, positions: int | None = None,
) -> str:  # fmt: skip
    """The text of a Modelfile.

    `base` and `adapter` are file names beside the Modelfile, or for `base` a folder of safetensors. `system` is the
    system message that rows without one were trained with. `max_length` is the length of the run's rows in tokens, and
    `positions` that of the model. Like `rankwise generate`, it always takes the most likely token.
    """
    context = max(max_length or 0, SMALLEST_CONTEXT)
    lines = [f"FROM {_path(base)}"]
    lines += [f"ADAPTER {_path(adapter)}"] if adapter is not None else []
    lines.append(f"TEMPLATE {quoted(template.text, 'the template')}")
    lines += [f"SYSTEM {quoted(system, 'the system message')}"] if system else []
    lines += [f"PARAMETER stop {quoted(stop, 'the end of an answer')}" for stop in template.stops]
    lines.append(f"PARAMETER num_ctx {min(context, positions or context)}")
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def _path(name: str) -> str:
    return name if name.startswith((".", "/")) else f"./{name}"


def quoted(text: str, what: str) -> str:
    """The text in the quotes of a Modelfile. TemplateError if Ollama would read another text."""
    lost = sorted({character for character in text if not character.isprintable() and character not in "\n\t"})
    if lost:
        raise TemplateError(
            f"{what} contains {', '.join(map(ascii, lost))}, which Ollama drops from a Modelfile. {ELSEWHERE}"
        )
    if '"""' in text:
        raise TemplateError(f'{what} contains """, which ends a text in a Modelfile. {ELSEWHERE}')
    return f'"""{text}"""'
