"""Chat templates that test what another template language can say, beside those of families.py.

Each is written here in the manner of a family of models: its structure, and not its text.
"""

from __future__ import annotations

from kit.families import BY_NAME, IM, TOOL_WORDS, Family

DATED = """\
{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}
{{ bos_token }}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + ('Today is ' + today + '.' if loop.first else '') }}
{{- m.content + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
FOLDED = """\
{{ bos_token }}
{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- m.content + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
TOOLS_LATE = """\
{{ bos_token }}
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and loop.index0 == ns.last -%}
{{ '[AVAILABLE_TOOLS] [' }}
{%- for tool in tools -%}{{ tool | tojson }}{{ ', ' if not loop.last else '' }}{%- endfor -%}
{{ '][/AVAILABLE_TOOLS]' }}
{%- endif -%}
{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' and m.tool_calls -%}
{{ '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls -%}
{{ '{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}{{ IDS }}
{{- '}' + (', ' if not loop.last else '') }}
{%- endfor -%}
{{ ']' + eos_token }}
{%- elif m.role == 'assistant' -%}{{ ' ' + m.content + eos_token }}
{%- elif m.role == 'tool' -%}{{ '[TOOL_RESULTS] {"content": ' + m.content + '}[/TOOL_RESULTS]' }}
{%- endif -%}
{%- endfor -%}
"""
WITHOUT_IDS = TOOLS_LATE.replace("{{ IDS }}", "")
WITH_IDS = TOOLS_LATE.replace(
    "{{ IDS }}", "{{ ', \"id\": \"' + (call.id or 'abcdefghi') + call.function.name + '\"' }}"
)
INDENTED = BY_NAME["qwen2"].template.replace("tool | tojson", "tool | tojson(indent=4)")
NUMBERED = BY_NAME["chatml"].template.replace("m.role + '\\n'", "m.role + ' ' + loop.index | string + '\\n'")
SHOUTED = BY_NAME["chatml"].template.replace("m.content", "m.content | upper")
SHORTENED = BY_NAME["chatml"].template.replace("m.content", "m.content[:150]")
INST = (
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")

EXPRESSIBLE = (
    Family("folded", FOLDED, "<end_of_turn>", GEMMA, bos="<bos>", eos="<eos>"),
    Family("tools-late", WITHOUT_IDS, "</s>", INST, system=False),
    Family("qwen2-indented", INDENTED, "<|im_end|>", IM, bos=None, eos="<|endoftext|>", words=TOOL_WORDS),
    Family("tools-with-ids", WITH_IDS, "</s>", INST, system=False),
)
"""Those that a known template writes, without tools."""
REFUSED = {
    "dated": (Family("dated", DATED, "<|eot_id|>", LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>"), "date"),
    "numbered": (
        Family("numbered", NUMBERED, "<|im_end|>", IM, bos=None, eos="<|im_end|>"),
        "none of ChatML",
    ),
    "shouted": (Family("shouted", SHOUTED, "<|im_end|>", IM, bos=None, eos="<|im_end|>"), "none of ChatML"),
    "shortened": (Family("shortened", SHORTENED, "<|im_end|>", IM, bos=None, eos="<|im_end|>"), "written as ChatML, "),
}
"""Those that none writes, with a part of the message."""
