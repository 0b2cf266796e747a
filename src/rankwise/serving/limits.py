"""What an engine takes at once, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.inference.prefixes import MOST


@dataclass(frozen=True)
class Limits:
    together: int = 16
    """Answers that are written at once."""
    waiting: int = 64
    positions: int = 2**15
    """Tokens of prompts and answers that are in memory at once, but for a single answer of more."""
    reading: int = 512
    """Tokens of prompts that are read before the answers that are being written get their next token."""
    prefix_bytes: int = MOST
    """Keys and values that stay for prompts that begin as earlier ones did."""


@dataclass
class Counts:
    """Since the start."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    answer_tokens: int = 0
