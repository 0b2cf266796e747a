"""The licence of a data source by its SPDX name, where its README or licence file names exactly one known licence.

A README names it by the hub's metadata (`license:` on top) or in a line "Licence: NAME" of its own; a licence file by
its title. Words around the name ("MIT for the code", a cell of a table) may restrict it, so they make it "unknown":
nobody may assume. Of several licences the strictest is said, and unknown is stricter than every known one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

READMES = ("README.md", "README", "README.txt")
FILES = ("DATA_LICENSE", "DATA_LICENCE", "LICENSE", "LICENCE", "LICENSE.txt", "LICENSE.md")
UNKNOWN = "unknown"
LARGEST_FILE = 100_000
LONGEST_WORDS = 80
TITLE_LINES = 3
FROM_LAX_TO_STRICT = (
    "CC0-1.0 PDDL-1.0 Unlicense 0BSD",
    "MIT MIT-0 Apache-2.0 BSD-2-Clause BSD-3-Clause ISC AFL-3.0 Zlib CDLA-Permissive-1.0 CDLA-Permissive-2.0",
    "CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 ODC-By-1.0",
    "CC-BY-SA-2.0 CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 ODbL-1.0 CDLA-Sharing-1.0 GPL-2.0 GPL-3.0 LGPL-2.1 LGPL-3.0 "
    "AGPL-3.0 GFDL-1.3 MPL-2.0 EUPL-1.2",
    "openrail bigscience-openrail-m creativeml-openrail-m llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma",
    "CC-BY-NC-2.0 CC-BY-NC-2.5 CC-BY-NC-3.0 CC-BY-NC-4.0",
    "CC-BY-NC-SA-2.0 CC-BY-NC-SA-2.5 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0",
    "CC-BY-ND-2.0 CC-BY-ND-2.5 CC-BY-ND-3.0 CC-BY-ND-4.0",
    "CC-BY-NC-ND-2.0 CC-BY-NC-ND-2.5 CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0",
)
"""SPDX names, and the hub's for model licences that have none; each line asks more of those who use the data."""
WITHOUT_VERSION = {"CC0": "CC0-1.0", "PDDL": "PDDL-1.0", "ODC-By": "ODC-By-1.0", "ODbL": "ODbL-1.0"}
ABBREVIATED = {
    "gnu affero general public": "agpl", "gnu lesser general public": "lgpl", "gnu general public": "gpl",
    "legal code": "", "cc0": "cc zero", "creative commons": "cc", "attribution": "by",
    "non commercial": "nc", "noncommercial": "nc", "share alike": "sa", "sharealike": "sa",
    "no derivatives": "nd", "noderivatives": "nd",
}  # fmt: skip
SAYING_NOTHING = {
    "the", "license", "licence", "version", "v", "international", "unported", "universal", "cc", "only", "or", "later",
}  # fmt: skip
_DATE = re.compile(
    r"\b(?:\d{1,2} )?(?:january|february|march|april|may|june|july|august|september|october|november|december) \d{4}"
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_STATEMENT = re.compile(r"^[ \t>*#_-]*licen[cs]es?[ \t*_]*:[ \t*_]*(\S[^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def find_licence(folder: Path) -> str:
    """As the first README or licence file in the folder says that says anything."""
    for name in READMES:
        text = _beginning(folder / name)
        metadata = [recognised(one) or UNKNOWN for one in _of_metadata(text)]
        lines = [recognised(one.strip(" \t*_.")) or UNKNOWN for one in _STATEMENT.findall(text)]
        if metadata:  # the formal statement; what a line adds can only be stricter
            lines = [one for one in lines if one != UNKNOWN]
        if metadata or lines:
            return strictest([*metadata, *lines])
    for name in FILES:
        lines = [line for line in _beginning(folder / name).splitlines() if line.strip()][:TITLE_LINES]
        titles = (recognised(" ".join(lines[:many])) for many in range(1, len(lines) + 1))
        if lines:
            return next(filter(None, titles), UNKNOWN)
    return UNKNOWN


def recognised(text: str) -> str | None:
    """The licence that the text names and does nothing else."""
    return _KNOWN.get(_key(text))


def normalised(text: str) -> str:
    """For what the user says of the data: the licence's name, else the words, cut to 80 characters."""
    return recognised(text) or " ".join(text.split())[:LONGEST_WORDS].rstrip() or UNKNOWN


def strictest(names: Iterable[str]) -> str:
    """Of none, "unknown"."""
    return max(names, key=lambda name: (_strictness(name), name == UNKNOWN, name), default=UNKNOWN)


def _strictness(name: str) -> int:
    return next((rank for rank, line in enumerate(FROM_LAX_TO_STRICT) if name in line.split()), len(FROM_LAX_TO_STRICT))


def _key(text: str) -> tuple[str, ...]:
    """Its words in any order, without those that say nothing and with numbers as versions: "Apache License, Version 2"
    is apache and 2.0."""
    words = re.sub(r"[^\w.]+|_", " ", _LINK.sub(r"\1", text[:500]).lower())
    words = re.sub(r"(?<=[a-z ])v(?=\d)", " ", _DATE.sub("", words))
    for long, short in ABBREVIATED.items():
        words = words.replace(long, short)
    found = [word.strip(".") for word in re.findall(r"[^\W\d_]+|[\d.]+", words)]
    return tuple(sorted(f"{word}.0" if word.isdigit() else word for word in found if word not in SAYING_NOTHING))


_KNOWN = {_key(name): name for line in FROM_LAX_TO_STRICT for name in line.split()} | {
    _key(short): name for short, name in WITHOUT_VERSION.items()
}


def _of_metadata(readme: str) -> list[str]:
    """The values of `license` in the YAML on top."""
    if not readme.lstrip("\ufeff").startswith("---"):
        return []
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard(readme.lstrip("\ufeff"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # whatever the library and its YAML reader raise: metadata that nobody can read say nothing
        return []
    said = card.get("license") or card.get("licence") or []
    return [str(one) for one in (said if isinstance(said, list) else [said])]


def _beginning(file: Path) -> str:
    """Whole lines. Empty if there is no such file, or it cannot be read."""
    try:
        if not file.is_file():  # a pipe would wait for someone to write
            return ""
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except (OSError, ValueError):
        return ""
    if len(content) > LARGEST_FILE:  # a line that is cut may name another licence than the whole
        content = content[: content.rfind(b"\n") + 1]
    return content.decode("utf-8", errors="replace")
