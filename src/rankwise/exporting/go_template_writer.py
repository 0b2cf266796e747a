"""Write the structure of a chat template (go_template_probe.py) as a template of Go for Ollama.

The literals between texts are divided into an ending, which always follows a kind of text, and a beginning, which may
depend on the context. Only what depends on a context is written with conditions. All literals are written exactly,
without trim markers. Characters that Ollama's reader of Modelfiles would drop or read otherwise are written as Go's
string constants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from rankwise.exporting.go_template_probe import TOOLS, Context, Structure

ROLES = ("system", "user", "assistant", "tool")
CHOICES = ("tools", "late", "before")
REFUSAL = "{{ .Role.this_model_was_trained_without_such_messages }}"
"""A field that no role has, so that Ollama reports an error with this name instead of writing another prompt."""
COUNT = (
    '{{ $question := -1 }}{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $question = $i }}{{ end }}{{ end }}'
)
LATE = "not (gt $question $i)"
ARGUMENTS = (
    '{{ "{" }}{{ $comma := "" }}{{ range $key, $value := .Function.Arguments }}{{ $comma }}'
    '{{ json $key }}: {{ json $value }}{{ $comma = ", " }}{{ end }}{{ "}" }}'
)
"""The arguments of a call as JSON with spaces, as Python writes it. Go visits the keys in sorted order."""
DESCRIBED = (
    '{{ "{" }}"name": {{ json .Function.Name }}{{ if .Function.Description }}, "description": '
    '{{ json .Function.Description }}{{ end }}, "parameters": '
    '{{ "{" }}"type": {{ json .Function.Parameters.Type }}, "properties": {{ "{" }}{{ $comma := "" }}'
    "{{ range $name, $one := .Function.Parameters.Properties }}{{ $comma }}{{ json $name }}: "
    '{{ "{" }}"type": {{ json $one.Type }}{{ if $one.Description }}, "description": {{ json $one.Description }}'
    '{{ end }}{{ if $one.Enum }}, "enum": [{{ $bar := "" }}{{ range $one.Enum }}{{ $bar }}{{ json . }}{{ $bar = ", " }}'
    '{{ end }}]{{ end }}{{ "}" }}{{ $comma = ", " }}{{ end }}{{ "}" }}{{ if .Function.Parameters.Required }}, '
    '"required": [{{ $bar := "" }}{{ range .Function.Parameters.Required }}{{ $bar }}{{ json . }}{{ $bar = ", " }}'
    '{{ end }}]{{ end }}{{ "}" }}{{ "}" }}'
)
"""The function of a tool as JSON with spaces, with the fields that Ollama keeps, in OpenAI's order."""


def written(structure: Structure, start: str = "") -> str:
    """The Go template. `start` is the text of the start token if the engine adds it, so that it is left out here."""
    return _Writer(structure, start).template()


def tool_text(as_what: str) -> str:
    """The part of a template that describes one tool."""
    return (
        '{{ "{" }}"type": {{ json .Type }}, "function": ' + DESCRIBED + '{{ "}" }}' if as_what == "whole" else DESCRIBED
    )


def go_text(literal: str) -> str:
    """A literal as text of a Go template inside a Modelfile."""
    parts = re.split(r'(\{+(?=$|"""|\r|[^\n\t -~])|\{\{+|"""+|\r|[^\n\t -~]+)', literal)
    return "".join(
        f"{{{{ {_constant(part)} }}}}" if number % 2 and _unsafe(part) else part for number, part in enumerate(parts)
    )


def _unsafe(part: str) -> bool:
    return part[0] in '{"\r' or not part.isprintable()


def _constant(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _Writer:
    def __init__(self, structure: Structure, start: str) -> None:
        self.structure = structure
        literals = {
            at: literal if at.before else literal.removeprefix(start) for at, literal in structure.literals.items()
        }
        self.endings: dict[str, str] = {}
        for kind in {at.before for at in literals} - {"", "said"}:
            self.endings[kind] = _shared([literal for at, literal in literals.items() if at.before == kind])
        self.beginnings = {at: literal[len(self.endings.get(at.before, "")) :] for at, literal in literals.items()}
        self.opening = _common_end([literal for at, literal in self.beginnings.items() if at.kind == "calls"])

    def template(self) -> str:
        known = [role for role in ROLES if role in self.structure.kinds]
        body = "".join(self._branch(role, number) for number, role in enumerate(known))
        loop = f"{{{{ range $i, $m := .Messages }}}}{body}{{{{ else }}}}{REFUSAL}{{{{ end }}}}{{{{ end }}}}"
        whole = loop + self._before("end")
        follows = "$before" in whole
        marked = re.sub(r"\x00(\w+)\x00", r'{{ $before = "\1" }}' if follows else "", whole)
        return (COUNT if "$question" in marked else "") + ('{{ $before := "" }}' if follows else "") + marked

    def _branch(self, role: str, number: int) -> str:
        """What is written for a message of a role."""
        start = f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}'
        late = self.structure.system_late
        if role == "system" and late:
            return start
        text = self._element(role, "{{ .Content }}")
        if role == "user" and late:
            system = self._element("system", "{{ $.System }}")
            first = '{{ if and (eq $i $question) (eq (index $.Messages 0).Role "system") }}'
            text = f"{first}{system}{{{{ end }}}}{text}"
        if role == "assistant" and "calls" in self.structure.kinds:
            text = f"{{{{ if .ToolCalls }}}}{self._calls()}{{{{ else }}}}{text}{{{{ end }}}}"
        return start + text

    def _element(self, kind: str, content: str) -> str:
        return f"{self._before(kind)}{content}{go_text(self.endings.get(kind, ''))}\0{kind}\0"

    def _calls(self) -> str:
        """Calls. What stands before them is written as constants: Ollama takes the first text here for the mark by
        which a model begins a call."""
        said = f"{self._before('said', constant=True)}{{{{ .Content }}}}\0said\0"
        spoken = f"{{{{ if .Content }}}}{said if 'said' in self.structure.kinds else REFUSAL}{{{{ end }}}}"
        lead = self._before("calls", constant=True)
        one = "{{ .Function.Name }}" + go_text(self.structure.between_name_and_arguments or "") + ARGUMENTS
        between = f"{{{{ if $n }}}}{go_text(self.structure.between_calls)}{{{{ end }}}}"
        content = f"{{{{ range $n, $call := .ToolCalls }}}}{between}{one}{{{{ end }}}}"
        return f"{spoken}{lead}{go_text(self.opening)}{content}{go_text(self.endings.get('calls', ''))}\0calls\0"

    def _before(self, kind: str, *, constant: bool = False) -> str:
        """What is written before a text, without the ending of the text before it."""
        opening = self.opening if kind == "calls" else ""
        table = {at: literal.removesuffix(opening) for at, literal in self.beginnings.items() if at.kind == kind}
        return self._chosen(table, constant=constant)

    def _chosen(self, table: Mapping[Context, str], *, constant: bool) -> str:
        """The literal of the context, by as few conditions as possible."""
        if len(set(table.values())) <= 1:
            return self._with_tools(next(iter(table.values()), ""), constant=constant)
        name = min((one for one in CHOICES if _splits(table, one)), key=lambda one: _leaves(table, one))
        groups = _groups(table, name)
        groups.sort(key=lambda group: not group[0][0] if name != "before" else len(group[0]))
        parts: list[str] = []
        for number, (values, part) in enumerate(groups):
            text = self._chosen(part, constant=constant)
            if number + 1 < len(groups):
                parts.append(f"{{{{ {'else if' if number else 'if'} {_condition(name, values)} }}}}{text}")
            elif text:
                parts.append(f"{{{{ else }}}}{text}")
        return "".join(parts) + "{{ end }}"

    def _with_tools(self, literal: str, *, constant: bool) -> str:
        if constant:
            return f"{{{{ {_constant(literal)} }}}}" if literal else ""
        before, mark, after = literal.partition(TOOLS)
        if not mark:
            return go_text(literal)
        between = f"{{{{ if $n }}}}{go_text(self.structure.between_tools)}{{{{ end }}}}"
        loop = f"{{{{ range $n, $tool := $.Tools }}}}{between}{tool_text(self.structure.tool_as or '')}{{{{ end }}}}"
        return go_text(before) + loop + go_text(after)


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts, default=""), max(texts, default="")
    size = next((number for number, letter in enumerate(first) if letter != last[number]), len(first))
    return first[:size]


def _common_end(literals: Sequence[str]) -> str:
    return _common_start([literal[::-1] for literal in literals])[::-1]


def _shared(literals: Sequence[str]) -> str:
    """What all literals begin with; if that is a tag, then the tag alone with the white space around it."""
    common = _common_start(literals).partition(TOOLS)[0]
    tag = re.match(r"\s*<[^<>]*>\s*", common)
    return tag[0] if tag else common


def _splits(table: Mapping[Context, str], name: str) -> bool:
    return len(_groups(table, name)) > 1


def _groups(table: Mapping[Context, str], name: str) -> list[tuple[list[object], dict[Context, str]]]:
    """The values of a part of the context, those together that lead to the same literals."""
    by_value: dict[object, dict[Context, str]] = {}
    for context, literal in table.items():
        by_value.setdefault(getattr(context, name), {})[context] = literal
    groups: list[tuple[list[object], dict[Context, str]]] = []
    for value, part in by_value.items():
        blind = {context._replace(**{name: None}): literal for context, literal in part.items()}
        same = next((one for one in groups if _agree(blind, one[1], name)), None)
        if same is None:
            groups.append(([value], part))
        else:
            same[0].append(value)
            same[1].update(part)
    return groups


def _agree(blind: Mapping[Context, str], part: Mapping[Context, str], name: str) -> bool:
    other = {context._replace(**{name: None}): literal for context, literal in part.items()}
    shared = blind.keys() & other.keys()
    return bool(shared) and all(blind[context] == other[context] for context in shared)


def _leaves(table: Mapping[Context, str], name: str) -> int:
    return sum(len(set(part.values())) for _, part in _groups(table, name))


def _condition(name: str, values: Iterable[object]) -> str:
    if name == "tools":
        return "$.Tools"
    if name == "late":
        return LATE
    return " ".join(["eq $before", *(json.dumps(value) for value in values)])
