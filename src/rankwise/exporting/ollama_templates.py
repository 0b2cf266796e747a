"""The chat templates that an export for Ollama knows, each as what stands around the texts of its turns.

Which one a model was trained with is found by trying: the texts before the first turn and after the last one are read
from its chat template, and what is written of them must have the token ids of training (ollama.py). So a default system
message, and what an answer begins with, need no row of their own. The template of Go and the text that is compared are
made of the same parts; tests/exporting/test_ollama_templates.py compares both with Go itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message

WORD, SYSTEM = Message("user", "Xq0word"), Message("system", "Xq1word")
NEVER = "{{ .Role.this_model_was_trained_without_such_messages }}"
"""Go fails on it, since a role has no fields."""
OPEN = "{{ $open := false }}"
LAST = '{{ $last := -1 }}{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $last = $i }}{{ end }}{{ end }}'


@dataclass(frozen=True)
class TemplateTurns:
    """`{}` is the text of a turn, and `{end}` what ended an answer in training. None for a role that is unknown."""

    question: str
    answer: str | None = None
    system: str | None = None
    inside: Literal["first", "last"] | None = None
    """The question that the system message is a part of, behind the text before the question's own."""


CHATML = TemplateTurns("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n{}<|im_end|>\n",
               "<|im_start|>system\n{}<|im_end|>\n")  # fmt: skip
GEMMA = TemplateTurns(
    "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n{}<end_of_turn>\n", "{}\n\n", "first"
)
USER, ASSISTANT, FIRST = (
    f"<|start_header_id|>{role}<|end_header_id|>\n\n{{}}<|eot_id|>" for role in ("user", "assistant", "system")
)
MISTRAL = TemplateTurns("[INST] {}[/INST]", " {}</s>", "{}\n\n", "last")
ANY_QUESTION = TemplateTurns("{}")
KNOWN = {
    "ChatML": CHATML,
    "Llama 3": TemplateTurns(USER, ASSISTANT, FIRST),
    "Gemma": GEMMA,
    "Mistral": MISTRAL,
    "Mistral before 0.3": TemplateTurns("[INST] {} [/INST]", " {}</s>", "{}\n\n", "first"),
    "Mistral 0.1": TemplateTurns("[INST] {} [/INST]", "{}</s>"),
    "Mistral Nemo": TemplateTurns("[INST]{}[/INST]", "{}</s>", "{}\n\n", "last"),
    "Mistral Small": TemplateTurns("[INST]{}[/INST]", "{}</s>", "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]"),
    "Llama 2": TemplateTurns("[INST] {} [/INST]", " {} </s><s>", "<<SYS>>\n{}\n<</SYS>>\n\n", "first"),
    "Phi-3": TemplateTurns("<|user|>\n{}<|end|>\n", "<|assistant|>\n{}<|end|>\n", "<|system|>\n{}<|end|>\n"),
    "Phi-4": TemplateTurns("<|im_start|>user<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>{}<|im_end|>",
                   "<|im_start|>system<|im_sep|>{}<|im_end|>"),
    "Vicuna": TemplateTurns("USER: {} ", "ASSISTANT: {}{end}", "{} "),
    "DeepSeek": TemplateTurns("<\uff5cUser\uff5c>{}", "<\uff5cAssistant\uff5c>{}{end}", "{}"),
    "Zephyr": TemplateTurns("<|user|>\n{}{end}\n", "<|assistant|>\n{}{end}\n", "<|system|>\n{}{end}\n"),
    "StableLM": TemplateTurns("<|USER|>{}", "<|ASSISTANT|>{}", "<|SYSTEM|>{}"),
    "plain": TemplateTurns("User: {}\n", "Assistant: {}{end}\n", "System: {}\n"),
    "a single question": ANY_QUESTION,
}  # fmt: skip
"""The last one is of the recipes alpaca, alpaca-lora, dolly and gpt4all-j."""


@dataclass(frozen=True)
class ServedTemplate:
    """A known template with what stands around all turns."""

    name: str
    turns: TemplateTurns
    before: str = ""
    before_system: str = ""
    """Before the first turn where that is a system message."""
    after: str = ""

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama writes it, up to where the model begins to write."""
        first = bool(messages) and messages[0].role == "system"
        return (self.before_system if first else self.before) + "".join(self._parts(messages)) + self.after

    def _parts(self, messages: Sequence[Message]) -> Iterator[str]:
        turns, open_question, system = self.turns, False, None
        last = max((number for number, one in enumerate(messages) if one.role == "user"), default=-1)
        begin, _, end = turns.question.partition("{}")
        for number, one in enumerate(messages):
            form = {"system": turns.system, "user": turns.question, "assistant": turns.answer}.get(one.role)
            if form is None:
                raise TemplateError(f"the template knows no messages of the role {one.role}.")
            if one.role == "system" and turns.inside is not None:
                system = form.replace("{}", one.content)
                open_question = turns.inside == "first"
                yield begin + system if open_question else ""
            elif one.role == "user":
                inside = system if number == last and turns.inside == "last" else None
                yield ("" if open_question else begin) + (inside or "") + one.content + end
                open_question = False
            else:
                yield form.replace("{}", one.content)

    @property
    def go(self) -> str:
        """The template of Go."""
        turns, inside = self.turns, self.turns.inside
        begin, end = map(go_text, turns.question.split("{}"))
        system = None if turns.system is None else _turn(turns.system)
        question = f"{begin}{{{{ .Content }}}}{end}"
        if inside == "first" and system is not None:
            system = f"{begin}{system}{{{{ $open = true }}}}"
            question = f"{{{{ if not $open }}}}{begin}{{{{ end }}}}{{{{ .Content }}}}{end}{{{{ $open = false }}}}"
        elif inside == "last" and system is not None:
            given = '{{ if and (eq $i $last) (eq (index $.Messages 0).Role "system") }}'
            question = f"{begin}{given}{system.replace('.Content', '$.System')}{{{{ end }}}}{{{{ .Content }}}}{end}"
            system = ""
        roles = {"system": system, "user": question, "assistant": turns.answer and _turn(turns.answer)}
        known = [f'if eq .Role "{role}" }}}}{part}' for role, part in roles.items() if part is not None]
        begins = {"first": OPEN, "last": LAST}.get(inside or "", "") if system is not None else ""
        loop = self._start + "{{ " + "{{ else ".join(known)
        return f"{begins}{loop}{{{{ else }}}}{NEVER}{{{{ end }}}}{{{{ end }}}}{go_text(self.after)}"

    @property
    def _start(self) -> str:
        loop = "{{ range $i, $m := .Messages }}"
        if self.before == self.before_system:
            return go_text(self.before) + loop
        choice = f'{{{{ if eq .Role "system" }}}}{go_text(self.before_system)}{{{{ else }}}}{go_text(self.before)}'
        return f"{loop}{{{{ if eq $i 0 }}}}{choice}{{{{ end }}}}{{{{ end }}}}"


def candidates(template: ChatTemplate, start: str) -> Iterator[ServedTemplate]:
    """Known templates that write a single question as this one does. `start` is what the engine puts before a text."""
    for name, form in KNOWN.items():
        end = (*template.ends, "")[0]
        question, answer, system = (
            part and part.replace("{end}", end) for part in (form.question, form.answer, form.system)
        )
        turns = replace(form, question=question or "", answer=answer, system=system)
        around = _around(template, start, ServedTemplate(name, turns), WORD)
        if around is None:
            continue
        with_system = (
            None if turns.system is None else _around(template, start, ServedTemplate(name, turns), SYSTEM, WORD)
        )
        if with_system is None:
            turns = replace(turns, system=None)
        yield ServedTemplate(name, turns, around[0], (with_system or around)[0], around[1])


def _around(template: ChatTemplate, start: str, served: ServedTemplate, *messages: Message) -> tuple[str, str] | None:
    """What a chat template writes before and after these turns; None where it writes them in another way."""
    try:
        text = template.text(messages, answer_next=True).removeprefix(start)
    except TemplateError:
        return None
    before, turns, after = text.partition(served.text(messages))
    return (before, after) if turns else None


def go_text(literal: str) -> str:
    """A literal as text of a Go template inside a Modelfile."""
    parts = re.split(r'(\{+(?=$|"""|\r|[^\n\t -~])|\{\{+|"""+|\r|[^\n\t -~]+)', literal)
    return "".join(_constant(part) if number % 2 and _unsafe(part) else part for number, part in enumerate(parts))


def _turn(form: str) -> str:
    return "{{ .Content }}".join(map(go_text, form.split("{}")))


def _unsafe(part: str) -> bool:
    return part[0] in '{"\r' or not part.isprintable()


def _constant(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=not text.isprintable())} }}}}"
