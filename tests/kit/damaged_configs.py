"""Sixty-seven ways in which the config.json of a Llama arrives wrong: sizes, kinds of values, nesting and bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")
NUMBERS: tuple[Any, ...] = (0, -1, 10**9, 10**18, 1.5, "2", None, [2], True)
CHANGES: dict[str, dict[str, Any]] = {f"{name} is {value!r}": {name: value} for name in COUNTS for value in NUMBERS} | {
    "a hundred million labels": {"num_labels": 10**8}, "no positions": {"max_position_embeddings": 0},
    "fewer than no positions": {"max_position_embeddings": -5}, "architectures is [5]": {"architectures": [5]},
    "architectures is a number": {"architectures": 5},
    "model_type is a list": {"model_type": ["llama"]}, "model_type is missing": {"model_type": None},
    "model_type is an object": {"model_type": {"a": 1}}, "model_type is unknown": {"model_type": "nothing-like-it"},
    "model_type is a number": {"model_type": 3}, "model_type is empty": {"model_type": ""},
    "head_dim is 10^9": {"head_dim": 10**9}, "more key heads than heads": {"num_key_value_heads": 64},
    "an unknown activation": {"hidden_act": "nothing"},
    "rope of an unknown kind": {"rope_parameters": {"rope_type": "nothing", "rope_theta": 1.0}},
}  # fmt: skip


def _deep(depth: int) -> bytes:
    return b'{"model_type": "llama", "x": ' + b"[" * depth + b"]" * depth + b"}"


CONTENTS: dict[str, bytes] = {
    "nested 900 deep": _deep(900), "nested 100,000 deep": _deep(100_000), "a list": b"[]", "empty": b"",
    "a number": b"3",
}  # fmt: skip


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _one_key_head_less(file: Path) -> None:
    """Than there are heads, which divides them by nothing."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_key_value_heads": config["num_attention_heads"] - 1}))


def _changed(changes: dict[str, Any]) -> Callable[[Path], None]:
    return lambda file: (file.write_text(json.dumps(json.loads(file.read_text()) | changes)), None)[1]


def _replaced(content: bytes) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(content), None)[1]


DAMAGES: dict[str, Callable[[Path], None]] = (
    {name: _changed(changes) for name, changes in CHANGES.items()}
    | {name: _replaced(content) for name, content in CONTENTS.items()}
    | {"a pipe": _pipe, "key heads that divide nothing": _one_key_head_less}
)
BROKE = (
    "num_hidden_layers is 1000000000", "a hundred million labels", "model_type is a list", "nested 900 deep",
    "no positions", "fewer than no positions", "architectures is [5]", "architectures is a number", "a pipe",
    "hidden_size is 1000000000", "key heads that divide nothing",
)  # fmt: skip
"""Those that hung, filled the memory, ended in a traceback or were taken before there were bounds."""
