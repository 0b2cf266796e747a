"""Tokenizers and chat templates in the manner of those that people fine-tune, built here and small.

A family is how conversations are written; a kind is how a tokenizer cuts text. Real models pair them in some ways
only, but no law of ours depends on the pairing, so tests may take any family with any kind that can spell it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.tokenize import Tokens, prompt_ids
from rankwise.rows.text.tokenizer import HubTokenizer

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TEXT = [
    "user assistant system model tool USER: ASSISTANT: User: Assistant: the quick brown fox jumps over the lazy dog",
    "What is the capital of France? The capital of France is Paris.\n\n### Response:\nParis.\n\n### End\n\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    'def area(radius):\n    return 3.14 * radius ** 2\n\n\nif __name__ == "__main__":\n    print(area(2))\n',
    "[INST] [/INST] [INST] [/INST] <<SYS>>\n <</SYS>>\n\n <|user|>\n <|assistant|>\n <|system|>\n ### Instruction:\n",
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n<think>\n\n</think>\n\n",
    "Caf\u00e9 cr\u00e8me, \u00fcber, na\u00efve: \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d",
] * 4  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARK = "\u2581"
"""SentencePiece's visible space."""


@dataclass(frozen=True)
class Family:
    """`lead` and `tail` are white space that the template writes before an answer and between it and its end."""

    name: str
    template: str
    end: str
    """What ends an answer."""
    control: tuple[str, ...]
    """Special tokens beside bos and eos."""
    bos: str | None = "<s>"
    eos: str = "</s>"
    words: tuple[str, ...] = ()
    """Added tokens that are not special."""
    shaped: Callable[[str], str] = str
    """What the template makes of an answer."""
    lead: str = ""
    tail: str = ""
    system: bool = True
    """Has a place for a system message."""
    several: bool = True
    """Writes a conversation of several turns so that it begins with what was asked."""
    eats_space: bool = False
    """Special tokens take white space behind them."""
    spellable: tuple[str, ...] = ()
    """The only kinds that can spell its tokens; all without it."""

    def written(self, answer: str) -> str:
        return self.shaped(answer) + self.tail + self.end


CHATML = """\
{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}{{ '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{%- endif -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
LLAMA3 = """\
{%- for m in messages -%}
{%- set turn = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -%}
{{ (bos_token if loop.first else '') + turn }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
QWEN2 = """\
{%- set first = messages[0] -%}
{{ '<|im_start|>system\\n' + (first.content if first.role == 'system' else 'You are a helpful assistant.') }}
{%- if tools -%}
{{ '\\n\\n# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '\\n</tools>' }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' -%}
{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\\n' + m.content }}{% endif %}
{%- for call in m.tool_calls -%}
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif m.role == 'tool' -%}
{%- if loop.previtem.role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
QWEN3 = """\
{%- set ns = namespace(last_query_index=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_query_index = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content -%}
{%- if loop.index0 > ns.last_query_index -%}{{ '<think>\\n\\n</think>\\n\\n' + said.lstrip('\\n') }}
{%- else -%}{{ said }}{%- endif -%}
{%- else -%}{{ m.content }}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}
"""
MISTRAL1 = """\
{{ bos_token }}
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set ns.system = m.content + '\\n\\n' -%}
{%- elif m.role == 'user' -%}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{%- set ns.system = '' -%}
{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}
"""
MISTRAL3 = """\
{{ bos_token }}
{%- set ns = namespace(last=0, system='') -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}
{%- elif m.role == 'system' -%}{%- set ns.system = m.content + '\\n\\n' -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '[INST] ' + (ns.system if loop.index0 == ns.last else '') + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' -%}{{ ' ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}
"""
GEMMA = """\
{{ bos_token }}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
PHI3 = """\
{{ bos_token }}
{%- for m in messages -%}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}
"""
VICUNA = """\
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ m.content + ' ' }}
{%- elif m.role == 'user' -%}{{ 'USER: ' + m.content + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
LLAMA2 = """\
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set ns.system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' -%}
{%- elif m.role == 'user' -%}
{{ bos_token + '[INST] ' + (ns.system + m.content) | trim + ' [/INST]' }}{%- set ns.system = '' -%}
{%- else -%}{{ ' ' + m.content | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}
"""
DEEPSEEK = """\
{{ bos_token }}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ m.content }}
{%- elif m.role == 'user' -%}{{ '<\uff5cUser\uff5c>' + m.content }}
{%- else -%}{{ '<\uff5cAssistant\uff5c>' + m.content.split('</think>')[-1] + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<\uff5cAssistant\uff5c>' }}{%- endif -%}
"""
ZEPHYR = """\
{%- for m in messages -%}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""
IM = ("<|im_start|>", "<|im_end|>")
TOOL_WORDS = ("<tool_call>", "</tool_call>")
BYTE_LEVEL = ("gpt2", "llama3", "qwen", "neox")
SENTENCEPIECE = ("prepend", "first", "bare", "unigram")
KINDS = (*BYTE_LEVEL, *SENTENCEPIECE)
"""How a text is cut. Byte-level BPE with the split of GPT-2, of Llama-3, of Qwen (which composes accents) and of
GPT-NeoX (which composes them and has runs of spaces among its added tokens); SentencePiece's BPE with byte fallback
with a space before every piece (Llama-2), before the text alone, and none (Gemma); and Unigram."""
FAMILIES = (
    Family("chatml", CHATML, "<|im_end|>", IM, bos=None, eos="<|im_end|>"),
    Family(
        "llama3", LLAMA3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", eos="<|end_of_text|>", shaped=str.strip,
    ),
    Family("qwen2", QWEN2, "<|im_end|>", IM, bos=None, eos="<|endoftext|>", words=TOOL_WORDS),
    Family(
        "qwen3", QWEN3, "<|im_end|>", IM, bos=None, eos="<|im_end|>", words=("<think>", "</think>", *TOOL_WORDS),
        shaped=lambda answer: answer.lstrip("\n"), several=False,
    ),
    Family("mistral1", MISTRAL1, "</s>", (), lead=" "),
    Family("mistral3", MISTRAL3, "</s>", ("[INST]", "[/INST]"), lead=" "),
    Family(
        "gemma", GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>",
        shaped=str.strip, system=False,
    ),
    Family(
        "phi3", PHI3, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), eos="<|endoftext|>",
        eats_space=True,
    ),
    Family("vicuna", VICUNA, "</s>", (), lead=" "),
    Family("llama2", LLAMA2, "</s>", (), shaped=str.strip, lead=" ", tail=" "),
    Family(
        "deepseek", DEEPSEEK, "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        eos="<\uff5cend\u2581of\u2581sentence\uff5c>", spellable=BYTE_LEVEL,
    ),
    Family("zephyr", ZEPHYR, "</s>", ()),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
COMBINATIONS = [(family, kind) for family in FAMILIES for kind in family.spellable or KINDS]
NAMES = [f"{family.name}-{kind}" for family, kind in COMBINATIONS]
SOME = COMBINATIONS[::3]
"""Every family and every kind of tokenizer, in a third of their combinations."""


@cache
def learned_pieces(kind: str) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of a BPE trained on a little text."""
    tokenizer = Tokenizer(models.BPE())
    if kind in BYTE_LEVEL:
        tokenizer.pre_tokenizer = _byte_level(kind)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        alphabet = [chr(code) for code in range(32, 127)]
    trainer = trainers.BpeTrainer(vocab_size=700, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    lines = TEXT if kind in BYTE_LEVEL else [line for text in TEXT for line in text.splitlines()]
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], tuple((left, right) for left, right in model["merges"])


def _byte_level(kind: str) -> pre_tokenizers.PreTokenizer:
    if kind in ("gpt2", "neox"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = LLAMA3_SPLIT if kind == "llama3" else LLAMA3_SPLIT.replace("{1,3}", "")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def _byte_level_tokenizer(kind: str) -> Tokenizer:
    vocab, merges = learned_pieces(kind)
    tokenizer = Tokenizer(models.BPE(dict(vocab), list(merges)))
    tokenizer.pre_tokenizer = _byte_level(kind)
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ("qwen", "neox"):
        tokenizer.normalizer = normalizers.NFC()
    if kind == "neox":
        tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in range(8, 1, -1)])
    return tokenizer


def _sentencepiece_tokenizer(kind: str, first: Sequence[str]) -> Tokenizer:
    learned, merges = learned_pieces("sentencepiece")
    joins = [*merges, (MARK, MARK), (MARK * 2, MARK * 2), *([("\n", "\n")] if kind in ("bare", "joining") else [])]
    words = dict.fromkeys([*sorted(learned, key=learned.__getitem__), *(part for join in joins for part in join)])
    pieces = ["<unk>", *first, *BYTES, *dict.fromkeys([*words, *map("".join, joins)])]
    if kind == "unigram":
        scores = [
            (piece, -100.0 if number <= 256 + len(first) else -4.0 - 1 / len(piece))
            for number, piece in enumerate(pieces)
        ]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    else:
        vocab = {piece: number for number, piece in enumerate(pieces)}
        model = models.BPE(vocab, joins, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        tokenizer = Tokenizer(model)
    if kind in ("first", "unigram", "joining"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=kind == "unigram")
    else:
        spaces = normalizers.Replace(" ", MARK)
        before = [normalizers.Prepend(MARK)] if kind == "prepend" else []
        tokenizer.normalizer = normalizers.Sequence([*before, spaces])
    strip = [] if kind == "bare" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


@cache
def backend(family: Family, kind: str, *, normalized: bool = False) -> Tokenizer:
    """`normalized`: control tokens are looked for in normalized text, as by the first Llama's tokenizer.json."""
    named = [*([family.bos] if family.bos else []), family.eos]
    if kind == "letters":  # one token for each
        tokenizer = Tokenizer(models.BPE({chr(code): code - 32 for code in range(32, 127)} | {"\n": 95}, []))
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer = _byte_level_tokenizer(kind) if kind in BYTE_LEVEL else _sentencepiece_tokenizer(kind, named)
    names = dict.fromkeys([*named, *family.control])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=normalized, rstrip=family.eats_space and name in family.control) for name in names]
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in family.words])
    if family.bos:
        start = tokenizer.token_to_id(family.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[(family.bos, start)]
        )
    return tokenizer


def hub_of(
    family: Family, kind: str, template: str | None = None, *, normalized: bool = False
) -> PreTrainedTokenizerFast:
    """As transformers loads it. Not kept: some tests change it."""
    made = backend(family, kind, normalized=normalized)
    named = {"bos_token": family.bos} if family.bos else {}
    hub = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=family.eos, **named)
    hub.chat_template = family.template if template is None else template or None
    return hub


def written_by(family: Family, kind: str, template: str | None = None, *, normalized: bool = False) -> ChatTemplate:
    """The family's template, or another over its tokens; "" for a model that brings none."""
    hub = hub_of(family, kind, template, normalized=normalized)
    return ChatTemplate.of_model(HubTokenizer(hub, [hub.eos_token_id]))


@cache
def template_of(family: Family, kind: str) -> ChatTemplate:
    return written_by(family, kind)


def talk(*turns: str, system: str | None = None, where: str = "rows.jsonl:7") -> Example:
    """Questions and answers in turn."""
    first = [Message("system", system)] if system is not None else []
    roles = ("user", "assistant")
    said = [Message(roles[place % 2], turn) for place, turn in enumerate(turns)]
    return Example((*first, *said), where)


def runs(tokens: Tokens) -> list[tuple[int, int]]:
    """Where stretches of learned ids begin and stop."""
    found, place = [], 0
    for learned, group in groupby(tokens.loss_mask):
        size = len(list(group))
        found += [(place, place + size)] if learned else []
        place += size
    return found


def learned_texts(tokens: Tokens, tokenizer: HubTokenizer) -> list[str]:
    """What each stretch adds to the text before it: alone, SentencePiece would write it without its space."""
    ids = list(tokens.ids)
    texts = []
    for start, stop in runs(tokens):
        before, all_ = tokenizer.decode(ids[:start]), tokenizer.decode(ids[:stop])
        assert all_.startswith(before)
        texts.append(all_[len(before) :])
    return texts


def asked_prompts(example: Example, template: ChatTemplate) -> list[list[int]]:
    """The ids that generation is given for each answer."""
    return [
        prompt_ids(template.text(example.messages[:index], example.tools, answer_next=True), template.tokenizer)
        for index, message in enumerate(example.messages)
        if message.role == "assistant" and message.learned
    ]


def squeezed(text: str) -> str:
    """Without any white space."""
    return "".join(text.split())
