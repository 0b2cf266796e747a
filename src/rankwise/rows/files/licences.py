"""The licence of a data source by its SPDX name, where its README or licence file names it clearly.

A README names it by the hub's metadata (`license:` on top) or in a line "Licence: NAME" of its own; a licence file by
its title. A remark beside the name is fine ("MIT (all three sets)") unless a word in it may restrict the name ("MIT for
the code", "not", "per file"): then the licence is "unknown", for nobody may assume. Of several licences the strictest
counts, and unknown is stricter than every known one.
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
STRICTNESS = {name: rank for rank, line in enumerate(FROM_LAX_TO_STRICT) for name in line.split()}
ALIASES = {
    "CC0": "CC0-1.0", "PDDL": "PDDL-1.0", "ODC-By": "ODC-By-1.0", "ODbL": "ODbL-1.0",
    "3-clause BSD": "BSD-3-Clause", "2-clause BSD": "BSD-2-Clause",
}  # fmt: skip
ABBREVIATED = {
    "gnu affero general public": "agpl", "gnu lesser general public": "lgpl", "gnu general public": "gpl",
    "legal code": "", "cc0": "cc zero", "creative commons": "cc", "attribution": "by",
    "non commercial": "nc", "noncommercial": "nc", "share alike": "sa", "sharealike": "sa",
    "no derivatives": "nd", "noderivatives": "nd",
}  # fmt: skip
_EMPTY = re.compile(
    r"\b(?:(?:\d{1,2} )?(?:january|february|march|april|may|june|july|august|september|october|november|december) \d{4}"
    r"|the|licen[cs]e|version|v|international|unported|universal|cc|(?<=\d )(?:only|or later))\b"
)
_RESTRICTING = re.compile(
    r"\b(?:nc|commercial|research|academic|personal|code|software|only|not?|but|without|with|except|unless|per|other"
    r"|stricter|see|un\w+|for|if|may|must|ask|contact|belong\w*|permission)\b|[^\x00-\x7f]|[|]"
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_STATEMENT = re.compile(r"^[ \t>*#_-]*licen[cs]es?[ \t*_]*:[ \t*_]*(\S[^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def find_licence(folder: Path) -> str:
    """The licence by the first README or licence file in the folder that names one."""
    for name in READMES:
        text = _beginning(folder / name)
        metadata = [recognised(one) or UNKNOWN for one in _of_metadata(text)]
        lines = [named_in(one) or UNKNOWN for one in _STATEMENT.findall(text)]
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
    """The licence that the text names if it does nothing else."""
    return _KNOWN.get(_words(text))


def named_in(text: str) -> str | None:
    """The strictest licence that a sentence names, if nothing in the rest may restrict it."""
    words = _words(text)
    names = [_KNOWN[match] for match in _NAME.findall(words)]
    restricting = {*_RESTRICTING.findall(_NAME.sub(" ", words))}
    if "-NC" in (name := strictest(names)):
        restricting -= {"nc", "commercial"}
    return name if names and not restricting else None


def normalised(text: str) -> str:
    """What the user calls the licence: its SPDX name, or else the user's words, cut to 80 characters."""
    return recognised(text) or " ".join(text.split())[:LONGEST_WORDS].rstrip() or UNKNOWN


def strictest(names: Iterable[str]) -> str:
    """The strictest of the names, "unknown" where there are none."""
    return max(names, key=lambda name: (STRICTNESS.get(name, len(STRICTNESS)), name == UNKNOWN, name), default=UNKNOWN)


def _words(text: str) -> str:
    """Write names alike: "Apache License, Version 2" and "apache-2.0" are both "apache 2.0"."""
    words = re.sub(r"[^\w.|]+|_", " ", _LINK.sub(r"\1", text[:500]).lower())
    for long, short in ABBREVIATED.items():
        words = words.replace(long, short)
    words = re.sub(r"(?<=[a-z ])v(?=\d)", " ", words)
    words = re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", words)
    words = _EMPTY.sub(" ", words)
    parts = (part.strip(".") for part in words.split())
    return " ".join(f"{part}.0" if part.isdecimal() else part for part in parts if part)


_KNOWN = {_words(name): name for line in FROM_LAX_TO_STRICT for name in line.split()}
_KNOWN |= {_words(alias): name for alias, name in ALIASES.items()}
_NAME = re.compile(
    rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(_KNOWN, key=len, reverse=True)))})(?![\w.]| [\d.]+(?!\w))"
)


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
