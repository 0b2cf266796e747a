"""Answers of SmolLM2-135M-Instruct that cannot be malformed, asked for by OpenAI's own client, unchanged.

    python bench/openai_structures.py [--parts correct,first,rate] [--out TITLE]

correct   classes of pydantic and strict tools, whole and streamed, and 16 clients with 16 schemas: valid, invalid, cut
first     seconds to the first token with a schema that was used before and with a new one, in turn, 20 times
rate      tokens a second of 16 answers at once, held to a schema and free, in turn, 5 times

The model's own template writes no tools, so it is served with one that writes them as Hermes does.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema_rs
from openai import LengthFinishReasonError, OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field
from telling import parser_of, tell

from rankwise.base.starters import STARTERS, index_copy
from rankwise.runs.records import silent
from serving import serving

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nFunctions:' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif -%}
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{%- for call in m.tool_calls or [] -%}
{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}
{{- '}\\n</tool_call>' + ('\\n' if not loop.last else '') }}{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


class Ticket(BaseModel):
    queue: Literal["billing", "delivery", "returns"]
    urgent: bool
    summary: str = Field(max_length=80)
    stars: int = Field(ge=1, le=5)


def about(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"A customer writes about order {number}. Write a ticket as JSON."}]
    return {"model": "smollm2", "messages": messages, "max_tokens": 300, "seed": number} | more


def ticket(number: int) -> dict[str, Any]:
    """A schema of its own for each number."""
    kinds = {"enum": [f"{number} {kind}" for kind in "abc"]}
    own = {f"kind {number}": kinds, "all": {"type": "array", "items": kinds, "maxItems": number % 4 + 1}}
    fields = own | Ticket.model_json_schema()["properties"]
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}}


def correct(client: OpenAI) -> dict[str, dict[str, int]]:
    chat, tools = client.chat.completions, [pydantic_function_tool(Ticket, name=name) for name in ("save", "send")]
    ways: dict[str, Any] = {
        "classes": {"response_format": Ticket},
        "calls": {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False},
    }

    def streamed(**asked: Any) -> Any:
        with chat.stream(**asked) as stream:
            return stream.get_final_completion()

    def kind(ask: Callable[..., Any], number: int, own: dict[str, Any] | None, **asked: Any) -> str:
        try:
            choice = ask(**about(number, **asked)).choices[0]
        except LengthFinishReasonError:
            return "cut"
        if own is not None:
            held = choice.finish_reason == "stop" and jsonschema_rs.is_valid(own, json.loads(choice.message.content))
            return "cut" if choice.finish_reason == "length" else "valid" if held else "invalid"
        found = [call.function.parsed_arguments for call in choice.message.tool_calls or []] or [choice.message.parsed]
        return "valid" if all(isinstance(one, Ticket) for one in found) else "invalid"

    counts = dict[str, dict[str, int]]()
    with ThreadPoolExecutor(16) as pool:
        for name, way in ways.items():
            for ask in (chat.parse, streamed):
                found = pool.map(lambda number, ask=ask, way=way: kind(ask, number, None, **way), range(16))
                counts[f"{name}, {ask.__name__}"] = dict(Counter(found))
        every = [ticket(number % 16) for number in range(64)]
        found = pool.map(lambda number: kind(chat.create, number, every[number], **form(every[number])), range(64))
        return counts | {"16 clients with 16 schemas": dict(Counter(found))}


def in_turn(rounds: int, measured: Mapping[str, Callable[[int], float]]) -> dict[str, float]:
    """Medians; the first round reads the prompts and does not count."""
    every = [{name: measure(number) for name, measure in measured.items()} for number in range(rounds + 1)]
    return {name: round(statistics.median(one[name] for one in every[1:]), 4) for name in measured}


def first(client: OpenAI) -> dict[str, float]:
    def seconds(schema: dict[str, Any]) -> float:
        began = time.perf_counter()
        with client.chat.completions.create(**about(0, **form(schema)), stream=True) as stream:
            next(one for one in stream if one.choices and one.choices[0].delta.content)
        return time.perf_counter() - began

    return in_turn(20, {"used before": lambda _: seconds(ticket(0)), "new": lambda at: seconds(ticket(1000 + at))})


def rate(client: OpenAI) -> dict[str, float]:
    def by_second(more: dict[str, Any]) -> float:
        every, began = [about(number, **more) | {"max_tokens": 96} for number in range(16)], time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            made: Any = list(pool.map(lambda one: client.chat.completions.create(**one), every))
        return sum(one.usage.completion_tokens for one in made) / (time.perf_counter() - began)

    long = form({"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 100})
    return in_turn(5, {"held": lambda _: by_second(long), "free": lambda _: by_second({"logit_bias": {"2": -100}})})


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", default="correct,first,rate")
    chosen, parts = parser.parse_args(), {"correct": correct, "first": first, "rate": rate}
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "smollm2").mkdir()
        for file in index_copy(STARTERS["smollm2-135m"], silent).iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        made: Any = SimpleNamespace(folder=Path(name), names=[])
        with serving(made, "--model", "smollm2") as ((host, port), _):
            client = OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", timeout=900, max_retries=0)
            found = {part: parts[part](client) for part in chosen.parts.split(",")}
    tell(chosen, found, lambda one: print(json.dumps(one, indent=1)))


if __name__ == "__main__":
    main()
