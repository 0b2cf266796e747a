"""The header of a GGUF file: settings by key, and the size and place of every tensor, without a weight; and the model's
settings as a config.json would have them, as loading the file would.

    GGUF   u32 version   u64 tensors   u64 settings
    each setting     key, u32 type, value; a text is a u64 length and bytes, an array a u32 type, a u64 count and values
    each tensor      name, u32 dimensions, u64 of each, u32 type, u64 offset

Every count and length is checked against what a model may have and against the end of the file before it is followed,
and long texts and arrays (the tokenizer) are passed over. Numbers have the low byte first; versions 2 and 3 are read.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import ModelError

MAGIC = b"GGUF"
MOST_SETTINGS, MOST_TENSORS, MOST_ITEMS = 10_000, 100_000, 1_000_000
LONGEST_NAME, LONGEST_KEPT, LONGEST_LIST = 1_024, 256, 4_096
LONGEST_TEMPLATE = 1_000_000
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By type, as struct writes them."""
TEXT, ARRAY = 8, 9
FAMILY, TYPE, ADAPTER = "general.architecture", "general.type", "adapter"
ALIGNMENT, LARGEST_ALIGNMENT = 32, 1 << 20
"""Bytes; the first where the file does not say."""

USABLE = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"})
"""Types of tensors in which a base is trained as it lies."""

FAMILIES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "stablelm": "stablelm", "phi3": "phi3", "gpt2": "gpt2",
}  # fmt: skip
"""The model_type of each family whose GGUF files can be loaded, by the architecture that the file names."""
REQUIRED = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads", "feed_forward_length": "intermediate_size",
}  # fmt: skip
OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
}  # fmt: skip
NOT_OF_THE_MODEL = "rope_"
"""Tensors that begin so are computed from settings."""

Value = int | float | bool | str | list[int | float] | list[str]


@dataclass
class GgufHeader:
    settings: dict[str, Value] = field(default_factory=dict)
    kinds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The type of each setting, of those that were passed over too; of a list, its items' type comes second."""
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By name; the first dimension is the one that runs fastest, so of a weight (O, I) it is I."""
    types: dict[str, int] = field(default_factory=dict)
    """In which format each tensor's numbers are stored."""
    offsets: dict[str, int] = field(default_factory=dict)
    """Bytes from where the tensors begin to each."""
    begin: int = 0
    """Where the tensors begin: the first byte after the header that `general.alignment` divides."""
    size: int = 0
    """The size of the file in bytes."""

    def shape(self, name: str) -> tuple[int, ...]:
        """As in torch: the last dimension lies together."""
        return tuple(reversed(self.tensors[name]))

    def type(self, name: str) -> str:
        """The name of the format, such as `F32` or `Q8_0`; empty for an unknown one."""
        from gguf import GGMLQuantizationType

        return next((one.name for one in GGMLQuantizationType if one == self.types[name]), "")

    def span(self, name: str) -> tuple[int, int]:
        """The first byte of a tensor, and the one after its last. ModelError where its rows are no whole blocks."""
        type, columns = self.type(name), self.tensors[name][0]
        if not type:
            raise ModelError(f"is stored in an unknown format ({self.types[name]}).")
        if columns % (together := block_of(type)[0]):
            raise ModelError(f"has rows of {columns:,} numbers, and its format stores {together} at a time.")
        begin = self.begin + self.offsets[name]
        return begin, begin + stored_bytes(self.tensors[name], type)


def block_of(type: str) -> tuple[int, int]:
    """How many numbers are stored together, and in how many bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[type]]


def stored_bytes(sizes: Sequence[int], type: str) -> int:
    """Bytes of a tensor, whose rows are whole blocks of its type."""
    numbers, size = block_of(type)
    return math.prod(sizes) // numbers * size


def tensor_names(architecture: str, blocks: int) -> Any:
    """The gguf package's table: `get_name` has the name in GGUF for the path of a layer in transformers."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    (number,) = (one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture)
    return get_tensor_name_map(number, blocks)


class _Damaged(Exception):
    pass


def read_gguf_header(file: Path, *, full: bool = False) -> GgufHeader:
    """With `full`, long texts and lists are read too, such as those of the tokenizer."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _HeaderReader(data, full=full).header()
    except (_Damaged, OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ModelError(f"{file} cannot be read as a GGUF file: {error}.") from None


def is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def is_gguf_adapter(file: Path) -> bool:
    """Whether a GGUF file says that it is an adapter. A damaged one does not."""
    try:
        return is_gguf(file) and read_gguf_header(file).settings.get(TYPE) == ADAPTER
    except (ModelError, OSError):
        return False


def matrix_bytes(header: GgufHeader) -> int:
    """Bytes of all tensors of two dimensions; 0 where one of them has a type that is converted before training."""
    types = {name: header.type(name) for name, sizes in header.tensors.items() if len(sizes) > 1}
    if not USABLE.issuperset(types.values()):
        return 0
    return sum(stored_bytes(header.tensors[name], type) for name, type in types.items())


def config_of_gguf(header: GgufHeader, file: Path) -> dict[str, Any]:
    """What decides of which weights the model is made."""
    family = header.settings.get(FAMILY)
    if not isinstance(family, str) or family not in FAMILIES:
        told = 'setting "general.architecture" is missing' if family is None else f"architecture {shown(family)}"
        tail = "" if family is None else " is not supported"
        raise ModelError(f"{file}: {told}{tail}. Supported architectures: {', '.join(sorted(FAMILIES))}.")
    parts = header.settings.get("split.count", 1)
    if parts not in (0, 1):
        raise ModelError(f"{file} is one of {shown(parts)} parts (split.count); give the whole model as one file.")
    config = {
        "model_type": FAMILIES[family], "tie_word_embeddings": "output.weight" not in header.tensors,
        "pad_token_id": None,
    }  # fmt: skip
    problems = [f'setting "{family}.{key}" is missing.' for key in REQUIRED if f"{family}.{key}" not in header.settings]
    if "token_embd.weight" not in header.tensors:
        problems.append('tensor "token_embd.weight" is missing.')
    for key, name in (REQUIRED | OPTIONAL).items():
        value = header.settings.get(f"{family}.{key}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            problems.append(f'setting "{family}.{key}" is {shown(value)}: a whole number is expected.')
        elif value is not None:
            config[name] = value
    if problems:
        raise ModelError("\n  ".join([f"{file} does not describe a model that can be planned:", *problems]))
    return config | _of_family(family, header, config)


def _of_family(family: str, header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    """What one family has and the others have not, or calls otherwise."""
    more: dict[str, Any] = {"vocab_size": header.tensors["token_embd.weight"][-1]}
    if family == "llama" and "head_dim" not in config and "llama.rope.dimension_count" in header.settings:
        more["head_dim"] = header.settings["llama.rope.dimension_count"]
    if family == "stablelm":
        more["use_qkv_bias"] = "blk.0.attn_q.bias" in header.tensors
        more["qk_layernorm"] = "blk.0.attn_q_norm.weight" in header.tensors
        more["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in header.tensors
    if family == "gpt2":
        more |= {"n_inner": config["intermediate_size"]}
        if "position_embd.weight" in header.tensors:
            more["n_positions"] = more["max_position_embeddings"] = header.tensors["position_embd.weight"][-1]
    return more


class _HeaderReader:
    def __init__(self, data: mmap.mmap, *, full: bool) -> None:
        self._data, self._full = data, full
        self._size = len(data)
        self._position = 0

    def header(self) -> GgufHeader:
        if self._data[:4] != MAGIC:
            raise _Damaged("it does not begin with GGUF")
        self._position = 4
        version = self._number("I")
        if version not in (2, 3):
            raise _Damaged(f"its version is {version}, and only versions 2 and 3 are supported")
        tensors, settings = self._numbers("Q", 2)
        for count, what, most in ((tensors, "tensors", MOST_TENSORS), (settings, "settings", MOST_SETTINGS)):
            if count > most:
                raise _Damaged(f"its header announces {count:,} {what}, and at most {most:,} are read")
        header = GgufHeader(size=self._size)
        for _ in range(settings):
            key = self._name("setting", header.settings)
            kinds, value = self._setting(key)
            header.kinds[key] = kinds
            if value is not None:
                header.settings[key] = value
        for _ in range(tensors):
            name = self._name("tensor", header.tensors)
            header.tensors[name] = self._dimensions(name)
            header.types[name], header.offsets[name] = self._number("I"), self._number("Q")
        alignment = header.settings.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise _Damaged(f'setting "general.alignment" is {shown(alignment)}; a power of two is needed')
        header.begin = -(-self._position // alignment) * alignment
        return header

    def _take(self, size: int) -> int:
        """The place where the next `size` bytes begin, which are there."""
        begin = self._position
        if size > self._size - begin:
            raise _Damaged(f"it ends at byte {self._size:,}, in the middle of its header")
        self._position = begin + size
        return begin

    def _numbers(self, form: str, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}{form}", self._data, self._take(count * struct.calcsize(f"<{form}")))

    def _number(self, form: str) -> int:
        return self._numbers(form, 1)[0]

    def _name(self, what: str, known: Container[str]) -> str:
        length = self._number("Q")
        if not 0 < length <= LONGEST_NAME:
            raise _Damaged(f"the name of a {what} has {length:,} bytes; 1 to {LONGEST_NAME:,} are allowed")
        name = self._text(length, f"a {what}")
        if name in known:
            raise _Damaged(f"{what} {shown(name)} occurs twice")
        return name

    def _text(self, length: int, what: str) -> str:
        begin = self._take(length)
        try:
            return self._data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"the text of {what} is not UTF-8") from None

    def _setting(self, key: str) -> tuple[tuple[int, ...], Value | None]:
        """The types of a setting and its value, which is None where it is passed over."""
        first = self._number("I")
        is_list = first == ARRAY
        kinds = (first, self._number("I")) if is_list else (first,)
        count = self._number("Q") if is_list else 1
        if (form := NUMBERS.get(kinds[-1])) is not None:
            if count > (MOST_ITEMS if self._full else LONGEST_LIST):
                self._take(count * struct.calcsize(f"<{form}"))
                return kinds, None
            values = self._numbers(form, count)
            return kinds, list(values) if is_list else values[0]
        if kinds[-1] != TEXT:
            raise _Damaged(
                f"setting {shown(key)} {'is an array of' if is_list else 'has'} the unknown type {kinds[-1]}"
            )
        if is_list:
            return kinds, self._texts(key, count)
        length = self._number("Q")
        if length <= (LONGEST_TEMPLATE if self._full else LONGEST_KEPT):
            return kinds, self._text(length, f'"{key}"')
        self._take(length)
        return kinds, None

    def _texts(self, key: str, count: int) -> list[str] | None:
        if count > MOST_ITEMS:
            raise _Damaged(f"setting {shown(key)} announces {count:,} texts, and at most {MOST_ITEMS:,} are read")
        length_of, data, size, place = struct.Struct("<Q").unpack_from, self._data, self._size, self._position
        texts: list[bytes] = []
        for _ in range(count):  # a vocabulary, so this is the one loop that must be quick
            if place + 8 > size:
                self._take(size)
            begin = place + 8
            place = begin + length_of(data, place)[0]
            if self._full:
                texts.append(data[begin:place])
        self._position = min(place, size)
        self._take(place - self._position)
        return [text.decode("utf-8", errors="surrogateescape") for text in texts] if self._full else None

    def _dimensions(self, name: str) -> tuple[int, ...]:
        count = self._number("I")
        if not 1 <= count <= 4:
            raise _Damaged(f"tensor {shown(name)} has {count:,} dimensions; 1 to 4 are allowed")
        sizes = self._numbers("Q", count)
        if not all(0 < size <= 10**9 for size in sizes):
            raise _Damaged(f"tensor {shown(name)} has the impossible shape {sizes}")
        return sizes
