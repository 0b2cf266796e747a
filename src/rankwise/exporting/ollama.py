"""A run as a folder that `ollama create` reads: the merged model, and a Modelfile with the chat template of the run as
a template of Go.

The template is one of those that are known (ollama_templates.py): the first that gives thirty conversations the token
ids of training (template_parity.py). It is chosen before any weight is written, so that a chat template which Ollama
cannot render is refused in the first second. What Ollama reads itself, by its source of version 0.33.0-rc2:

- TEMPLATE is rendered by Go's text/template. If a Modelfile has none, or if the GGUF file's own Jinja template knows
  tools and TEMPLATE does not, versions from 0.30 on render the Jinja template with llama.cpp instead.
- SYSTEM is put before a conversation that has no system message.
- Characters that cannot be printed are dropped from the file without a word, so none are written.
- The start token is added by the engine if the GGUF file's tokenizer.ggml.add_bos_token says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from rankwise.base.loading import load_tokenizer
from rankwise.errors import TemplateError
from rankwise.exporting.merge import Merged, Order, export_merged
from rankwise.exporting.ollama_templates import ANY_QUESTION, KNOWN, ServedTemplate, candidates
from rankwise.exporting.served_jinja import template_of
from rankwise.exporting.template_parity import Parity, ProbeConversation, template_parity
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.template_process import names

SMALLEST_CONTEXT = 4096
ELSEWHERE = (
    "Export it as GGUF or merged and serve it with an engine that renders the model's own Jinja template: llama.cpp "
    "(llama-server --jinja) or vLLM."
)
CLOCK, THOUGHT = "strftime_now", "</think>"
TOOLS = "tools; Ollama from 0.30 on writes them by the chat template in the model's own file"
EDGES = "white space around a text, which the chat template removes"
EMPTY = "an empty text, which the chat template writes in another way"
CONTEXT = "the context of a question apart from its text, for which the chat template has a place"
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class OllamaTemplate:
    """A known template with the result of the comparison."""

    served: ServedTemplate
    stops: tuple[str, ...]
    parity: Parity
    notes: tuple[str, ...]
    """What the template of Go cannot carry."""


def adds_start(template: ChatTemplate) -> bool:
    """Whether the engine should put the start token before every prompt: what add_bos_token in a GGUF file must say.

    True if the tokenizer puts it there by itself and training's prompts begin with it.
    """
    start = template.tokenizer.start
    return bool(start) and template.text([Message("user", "?")], answer_next=True).startswith(start)


def ollama_template(template: ChatTemplate) -> OllamaTemplate:
    """The known template with the token ids of this one. TemplateError if there is none."""
    sources = list(template.facts.sources.values())
    if any(CLOCK in names(source) for source in sources):
        raise TemplateError(
            f"Ollama's template cannot be written: the chat template uses the date ({CLOCK}). {ELSEWHERE}"
        )
    starts, differences = adds_start(template), list[str]()
    for served in candidates(template, template.tokenizer.start if starts else ""):
        parity = template_parity(
            template, lambda messages, tools, served=served: served.text(messages), adds_start=starts,
            stops=template.ends, reasons=partial(limits_of, template, served), carrier="Modelfile",
        )  # fmt: skip
        if not parity.different:
            notes = [line.rpartition(" (")[0] for line in parity.refused] + [CONTEXT] * _has_context(template)
            notes += [f"the text {THOUGHT!r} in an answer"] * any(THOUGHT in source for source in sources)
            return OllamaTemplate(served, tuple(template.ends), parity, tuple(notes))
        differences += [f"written as {served.name}, {parity.different[0]}"] * (served.turns != ANY_QUESTION)
    why = differences[0] if differences else f"it is none of {', '.join(list(KNOWN)[:-1])}"
    raise TemplateError(
        f"Ollama's template cannot be written: no known template gives the token ids of training ({why}). {ELSEWHERE}"
    )


def limits_of(template: ChatTemplate, served: ServedTemplate, conversation: ProbeConversation) -> list[str]:
    """Why a template of Go cannot write this conversation, which writes each text as it is."""
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in conversation.messages):
        return [TOOLS]
    stripped = [replace(message, content=message.content.strip()) for message in conversation.messages]
    trained = template.text(conversation.messages, answer_next=True)
    if tuple(stripped) != conversation.messages and template.text(stripped, answer_next=True) == trained:
        return [EDGES]
    if all(message.content for message in conversation.messages):
        return []
    try:
        return [EMPTY] * (not trained.endswith(served.text(conversation.messages)))
    except TemplateError:
        return [EMPTY]


def _has_context(template: ChatTemplate) -> bool:
    apart, whole = Message("user", "Xq0word", "Xq1word"), Message("user", "Xq0word\n\nXq1word")
    try:
        return template.text([apart], answer_next=True) != template.text([whole], answer_next=True)
    except TemplateError:
        return False


def modelfile(
    template: OllamaTemplate, *, system: str | None = None, max_length: int | None = None, positions: int | None = None
) -> str:
    """The text of a Modelfile beside the model.

    `system` is the system message that rows without one were trained with. `max_length` is the length of the run's rows
    in tokens, and `positions` that of the model. Like `rankwise generate`, it always takes the most likely token.
    """
    context = max(max_length or 0, SMALLEST_CONTEXT)
    lines = ["FROM .", f"TEMPLATE {quoted(template.served.go, 'the template')}"]
    lines += [f"SYSTEM {quoted(system, 'the system message')}"] if system else []
    lines += [f"PARAMETER stop {quoted(stop, 'the end of an answer')}" for stop in template.stops]
    lines.append(f"PARAMETER num_ctx {min(context, positions or context)}")
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


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


def export_ollama(order: Order) -> tuple[Merged, OllamaTemplate]:
    """Write the merged model with a Modelfile beside it; the Modelfile names the folder as its base."""
    artifact = order.artifact
    tokenizer, _, positions = load_tokenizer(artifact.model, order.callback)
    served = ollama_template(template_of(artifact, tokenizer))
    report, run = artifact.data_report, artifact.run
    text = modelfile(
        served, system=None if report is None else report.system,
        max_length=None if run is None else run.experiment.data.max_length, positions=positions,
    )  # fmt: skip
    return export_merged(order, {MODELFILE: text}), served
