"""General instructions that come with rankwise: questions, rewriting, summaries, code, arithmetic and small talk.

A base's answers to them are replayed while it learns something else (training/extras/replay.py). They lie in
instructions.txt with an empty line between two of them.
"""

from __future__ import annotations

from importlib.resources import files


def instructions() -> tuple[str, ...]:
    text = (files("rankwise.rows") / "instructions.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in text.split("\n\n") if part.strip())
