"""Sixty ways in which a GGUF file arrives damaged, made from one sound file.

Thirty-five are built by name, twenty-five are cut or overwritten at random places of the header. `template` cases are
sound but for the chat template inside, so their weights are read and the first conversation is refused.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from functools import partial

from rankwise.base.gguf.header import GgufHeader

HUGE = 2**62
Q, K, NORM = b"blk.0.attn_q.weight", b"blk.1.attn_k.weight", b"output_norm.weight"
TEMPLATE = b"tokenizer.chat_template"
Damage = Callable[[bytes, GgufHeader], bytes]


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _packed(content: bytes, at: int, form: str, *values: int) -> bytes:
    size = struct.calcsize(f"<{form}")
    return content[:at] + struct.pack(f"<{form}", *values) + content[at + size :]


def _entry(content: bytes, name: bytes) -> tuple[int, int]:
    """Where a tensor's entry goes on after its name, and its number of dimensions."""
    at = content.index(_text(name)) + 8 + len(name)
    return at, struct.unpack_from("<I", content, at)[0]


def cut(size: int, content: bytes, header: GgufHeader) -> bytes:
    return content[:size] if size >= 0 else content[: len(content) + size]


def cut_header(share: float, content: bytes, header: GgufHeader) -> bytes:
    return content[: int(share * header.begin)]


def number(at: int, form: str, value: int, content: bytes, header: GgufHeader) -> bytes:
    return _packed(content, at, form, value)


def setting(key: bytes, value: int, content: bytes, header: GgufHeader) -> bytes:
    """Another value of a u32."""
    return _packed(content, content.index(_text(key)) + 8 + len(key) + 4, "I", value)


def setting_type(key: bytes, kind: int, content: bytes, header: GgufHeader) -> bytes:
    return _packed(content, content.index(_text(key)) + 8 + len(key), "I", kind)


def array_count(key: bytes, count: int, content: bytes, header: GgufHeader) -> bytes:
    return _packed(content, content.index(_text(key)) + 8 + len(key) + 8, "Q", count)


def more(key: bytes, kind: int, value: bytes, content: bytes, header: GgufHeader) -> bytes:
    """One more setting, before the others; the tensors stay where they begin."""
    entry = _text(key) + struct.pack("<I", kind) + value
    counted = _packed(content, 16, "Q", struct.unpack_from("<Q", content, 16)[0] + 1)
    whole = counted[:24] + entry + counted[24:]
    end = len(content[: header.begin].rstrip(b"\0"))  # the offset of the last tensor may end in zeros
    grown = len(entry) + end + 8
    begin = -(-grown // 32) * 32
    return (
        whole[: header.begin + len(entry)] + bytes(max(0, begin - header.begin - len(entry))) + content[header.begin :]
    )


def renamed(old: bytes, new: bytes, content: bytes, header: GgufHeader) -> bytes:
    return content.replace(_text(old), _text(new))


def tensor_type(name: bytes, kind: int, content: bytes, header: GgufHeader) -> bytes:
    at, count = _entry(content, name)
    return _packed(content, at + 4 + 8 * count, "I", kind)


def tensor_sizes(name: bytes, value: int, content: bytes, header: GgufHeader) -> bytes:
    at, count = _entry(content, name)
    return _packed(content, at + 4, f"{count}Q", *[value] * count)


def tensor_dimensions(name: bytes, value: int, content: bytes, header: GgufHeader) -> bytes:
    return _packed(content, _entry(content, name)[0], "I", value)


def tensor_offset(name: bytes, value: int, content: bytes, header: GgufHeader) -> bytes:
    at, count = _entry(content, name)
    return _packed(content, at + 8 + 8 * count, "Q", value)


def template(source: str, content: bytes, header: GgufHeader) -> bytes:
    """The template of the file, which is longer, becomes this one."""
    at = content.index(_text(TEMPLATE)) + 8 + len(TEMPLATE) + 4
    length = struct.unpack_from("<Q", content, at)[0]
    given = source.encode().ljust(length)
    assert len(given) == length
    return content[: at + 8] + given + content[at + 8 + length :]


def fuzzed(seed: int, content: bytes, header: GgufHeader) -> bytes:
    """Cut inside the header, or eight bytes of a length, count or offset replaced by random ones."""
    draw = random.Random(seed)
    if seed % 3 == 0:
        return content[: draw.randrange(24, header.begin)]
    if seed % 3 == 1:
        name = draw.choice(sorted(header.tensors)).encode()
        return tensor_offset(name, draw.randrange(len(content), 2**64), content, header)
    keys = [key.encode() for key in sorted(header.settings)]
    at = content.index(_text(draw.choice(keys)))
    return _packed(content, at, "Q", draw.randrange(2**40, 2**64))


BUILT: Mapping[str, Damage] = {
    "empty": partial(cut, 0), "only the magic": partial(cut, 4), "cut in the counts": partial(cut, 20),
    "cut in the settings": partial(cut_header, 0.3), "cut in the tensors' names": partial(cut_header, 0.97),
    "cut before the tensors": partial(cut_header, 1.0), "one byte short": partial(cut, -1),
    "half of the tensors": lambda content, header: content[: (header.begin + len(content)) // 2],
    "another magic": lambda content, header: b"GGML" + content[4:],
    "version 1": partial(number, 4, "I", 1), "version 2^31": partial(number, 4, "I", 2**31),
    "2^62 tensors": partial(number, 8, "Q", HUGE), "2^62 settings": partial(number, 16, "Q", HUGE),
    "2^62 tokens": partial(array_count, b"tokenizer.ggml.tokens", HUGE),
    "2^62 merges": partial(array_count, b"tokenizer.ggml.merges", HUGE),
    "2^62 types of tokens": partial(array_count, b"tokenizer.ggml.token_type", HUGE),
    "2^31 blocks": partial(setting, b"llama.block_count", 2**31),
    "width 0": partial(setting, b"llama.embedding_length", 0),
    "width of a thousand million": partial(setting, b"llama.embedding_length", 10**9),
    "no heads": partial(setting, b"llama.attention.head_count", 0),
    "a width of an unknown type": partial(setting_type, b"llama.embedding_length", 99),
    "a width that is a text": partial(setting_type, b"llama.embedding_length", 8),
    "alignment 3": partial(more, b"general.alignment", 4, struct.pack("<I", 3)),
    "alignment 0": partial(more, b"general.alignment", 4, struct.pack("<I", 0)),
    "alignment 2^31": partial(more, b"general.alignment", 4, struct.pack("<I", 2**31)),
    "one part of two": partial(more, b"split.count", 2, struct.pack("<H", 2)),
    "a tensor with another's name": partial(renamed, K, b"blk.0.attn_k.weight"),
    "a tensor is missing": partial(renamed, Q, b"blk.9.attn_q.weight"),
    "an unknown type": partial(tensor_type, Q, 99), "another type": partial(tensor_type, Q, 30),
    "a type whose blocks do not fill a row": partial(tensor_type, Q, 12),
    "sizes of 2^62": partial(tensor_sizes, Q, HUGE), "2^31 dimensions": partial(tensor_dimensions, Q, 2**31),
    "tensors that overlap": partial(tensor_offset, Q, 0), "an offset outside": partial(tensor_offset, K, 2**64 - 32),
}  # fmt: skip
TEMPLATES: Mapping[str, Damage] = {
    "a template that is none": partial(template, "{% for message in messages %}"),
    "a template that looks for code": partial(template, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that counts far": partial(template, "{% for i in range(10**12) %}x{% endfor %}"),
}


SAID: Mapping[str, str] = {
    "a tensor is missing": "1 tensor is missing: 'blk.0.attn_q.weight'",
    "a tensor with another's name": "tensor 'blk.0.attn_k.weight' occurs twice",
    "tensors that overlap": "overlap from byte ", "an offset outside": "tensor 'blk.1.attn_k.weight' ends at byte ",
    "one byte short": ", but the file ends at ", "an unknown type": "is stored in an unknown format (99)",
    "a type whose blocks do not fill a row": "and its format stores 256", "alignment 0": '"general.alignment" is ',
    "alignment 3": '"general.alignment" is ', "alignment 2^31": '"general.alignment" is ',
}  # fmt: skip
"""What the refusal names, where one thing alone is wrong."""


def _listed(kind: int, *values: bytes) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def instead(key: bytes, kind: int, value: bytes, content: bytes, header: GgufHeader) -> bytes:
    """Another value of any type."""
    return more(key, kind, value, renamed(key, b"x" + key[1:], content, header), header)


NUMBER, NUMBERS, TEXTS = struct.pack("<I", 7), _listed(4, struct.pack("<I", 7)), _listed(8, _text(b"ab"))
VOCABULARY: tuple[tuple[str, Damage], ...] = (
    ("tokenizer.ggml.tokens", partial(renamed, b"tokenizer.ggml.tokens", b"xokenizer.ggml.tokens")),
    *((key, partial(instead, key.encode(), kind, value)) for key, kind, value in (
        ("tokenizer.ggml.tokens", 9, NUMBERS), ("tokenizer.ggml.model", 9, TEXTS), ("tokenizer.ggml.pre", 4, NUMBER),
        ("tokenizer.ggml.merges", 4, NUMBER), ("tokenizer.ggml.merges", 9, TEXTS),
        ("tokenizer.ggml.token_type", 9, TEXTS), ("tokenizer.ggml.eos_token_id", 8, _text(b"7")),
        ("tokenizer.ggml.bos_token_id", 4, b"\xff" * 4), ("tokenizer.chat_template", 9, NUMBERS),
        ("tokenizer.chat_template", 9, TEXTS),
    )),
)  # fmt: skip
"""A setting of the tokenizer that no reader can use, and how it came to be one."""
DAMAGES: Mapping[str, Damage] = (
    BUILT | TEMPLATES | {f"random {seed}": partial(fuzzed, seed) for seed in range(60 - len(BUILT) - len(TEMPLATES))}
)
