"""What may become of a file: it is missing, empty, cut, full of zeros, one bit is another, or it is another's."""

from __future__ import annotations

from pathlib import Path

DAMAGES = ("missing", "empty", "cut in half", "full of zeros", "with one bit flipped", "exchanged with an older one")


def damage(file: Path, kind: str, other: Path | None = None) -> None:
    """`other` is the file that it is exchanged with."""
    content = file.read_bytes()
    match kind:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "cut in half":
            file.write_bytes(content[: len(content) // 2])
        case "full of zeros":
            file.write_bytes(bytes(len(content)))
        case "with one bit flipped":
            at = len(content) // 2
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case _:
            assert other is not None, "only what has another can be exchanged"
            older = other.read_bytes()
            other.write_bytes(content)
            file.write_bytes(older)
