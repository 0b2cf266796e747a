"""The licence of a data source, as its README says it, and the strictest of several.

A licence's name is its SPDX identifier where the words name a known one, with the version only if they give it. What
names several licences, or names one and then restricts it, is as strict as the strictest of them. Words that name no
known licence are kept as found, and count as stricter than every known one: nobody may assume.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

FILES = (
    "README.md", "README", "README.txt", "DATA_LICENSE", "DATA_LICENCE", "LICENSE", "LICENCE", "LICENSE.txt",
    "LICENSE.md",
)  # fmt: skip
LARGEST_FILE = 100_000
LONGEST_WORDS = 80
LONGEST_STATEMENT = 2000
TITLE = 300
"""Characters of a licence's own text that name it. Further down it may name others, to compare itself with."""


class Terms(IntEnum):
    """What a licence asks of those who use the data; a later one is stricter."""

    PUBLIC_DOMAIN = 0
    PERMISSIVE = 1
    ATTRIBUTION = 2
    SHARE_ALIKE = 3
    LIMITED_USE = 4
    """Some uses are forbidden to everyone downstream: OpenRAIL, Llama, Gemma."""
    NON_COMMERCIAL = 5
    NON_COMMERCIAL_SHARE_ALIKE = 6
    NO_DERIVATIVES = 7
    NON_COMMERCIAL_NO_DERIVATIVES = 8
    UNKNOWN = 9


@dataclass(frozen=True)
class Licence:
    name: str
    """SPDX identifier where known, else the words found, else "unknown"."""
    where: str
    """Where it is said, as in "README.md beside the file"."""


# Gaps have a largest length, so that a long line of dashes costs no more than a short one.
_VERSION = (
    r"(?![a-uw-z])(?:[\s,_-]{0,3}(?:(?:public|general|community) )?(?:licen[cs]e)?[\s,_-]{0,3}"
    r"(?:version|v)?[\s._-]{0,3}(\d(?:\.\d)?))?"
)
_CONDITIONS = r"(?:[\s_-]{0,3}(?:nc|sa|nd|non[\s-]?commercial|share[\s-]?alike|no[\s-]?deriv\w*)\b)*"
_CREATIVE_COMMONS = re.compile(
    r"(?:\bcc[\s_-]?by|licenses/by|\bcreative commons[^\w]{0,3}attribution"
    rf"|\battribution(?={_CONDITIONS}(?: international| unported)? \d\.\d))"
    rf"({_CONDITIONS})"
    r"(?:[\s_/(-]{0,3}(?:international|unported|licen[cs]e)?[\s,_/(-]{0,3}(?:version |v)?(\d\.\d))?",
    re.IGNORECASE,
)
_KNOWN: tuple[tuple[str, str, Terms], ...] = (
    (r"\bcc[\s_-]?(?:0|zero)\b|publicdomain/zero", "CC0-1.0", Terms.PUBLIC_DOMAIN),
    (r"\bpddl\b|public domain dedication and licen[cs]e", "PDDL-1.0", Terms.PUBLIC_DOMAIN),
    (r"\bunlicense\b", "Unlicense", Terms.PUBLIC_DOMAIN),
    (r"\bapache" + _VERSION, "Apache", Terms.PERMISSIVE),
    (
        r"(?-i:\bMIT\b)|^mit$|\bmit[\s-]licen[cs]e|\bfree of charge, to any person obtaining",
        "MIT",
        Terms.PERMISSIVE,
    ),
    (r"\b(?:(\d-clause) )?bsd\b(?:[\s-](\d-clause))?|redistribution and use in source", "BSD", Terms.PERMISSIVE),
    (r"\bafl" + _VERSION, "AFL", Terms.PERMISSIVE),
    (r"(?-i:\bISC\b)|^isc$", "ISC", Terms.PERMISSIVE),
    (r"\bcdla[\s-]permissive" + _VERSION, "CDLA-Permissive", Terms.PERMISSIVE),
    (r"\bodc[\s-]?by\b|open data commons attribution", "ODC-By-1.0", Terms.ATTRIBUTION),
    (r"\bodbl\b|\bopen database licen[cs]e", "ODbL-1.0", Terms.SHARE_ALIKE),
    (r"\bcdla[\s-]sharing" + _VERSION, "CDLA-Sharing", Terms.SHARE_ALIKE),
    (r"\b(?:gpl|(?<!lesser )(?<!library )(?<!affero )general public licen[cs]e)" + _VERSION, "GPL", Terms.SHARE_ALIKE),
    (r"\b(?:lgpl|(?:lesser|library) general public licen[cs]e)" + _VERSION, "LGPL", Terms.SHARE_ALIKE),
    (r"\b(?:agpl|affero general public licen[cs]e)" + _VERSION, "AGPL", Terms.SHARE_ALIKE),
    (r"\b(?:gfdl|gnu free documentation licen[cs]e)" + _VERSION, "GFDL", Terms.SHARE_ALIKE),
    (r"\b(?:mpl|mozilla public licen[cs]e)" + _VERSION, "MPL", Terms.SHARE_ALIKE),
    (r"\bopen-?rail|(?-i:\bRAIL\b)", "OpenRAIL", Terms.LIMITED_USE),
    (r"\bllama(?=[\s_-]?(?:\d|v\d|community|licen[cs]e))" + _VERSION, "Llama", Terms.LIMITED_USE),
    (r"\bgemma\b", "Gemma", Terms.LIMITED_USE),
)
_RESTRICTIONS: tuple[tuple[str, str, Terms], ...] = (
    (r"^(?:in )?(?:the )?public domain$", "public domain", Terms.PUBLIC_DOMAIN),
    (r"\bnon-?\s?commercial", "non-commercial", Terms.NON_COMMERCIAL),
    (r"\bresearch[\w\s-]{0,20}\bonly\b|\bonly for [\w\s-]{0,20}research\b", "research only", Terms.NON_COMMERCIAL),
    (r"\b(?:no|without)(?: (?:an?|any|explicit|stated|known|clear))* licen[cs]e\b", "unknown", Terms.UNKNOWN),
    (r"\blicen[cs]es? (?:is |are )?(?:unknown|unclear|not (?:known|stated|given))", "unknown", Terms.UNKNOWN),
    (r"^(?:unknown|other|none|null|n/?a|unlicensed|[^\w]*)$", "unknown", Terms.UNKNOWN),
)
_STATEMENT = re.compile(r"^[ \t>*#_-]*licen[cs]es?[ \t*_]*:[ \t*_]*(\S[^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"^licen[cs]e[ \t]*:([^\r\n]*)((?:\r?\n[ \t]*-[ \t][^\r\n]*)*)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, order=True)
class _Found:
    terms: Terms
    specific: bool
    """A licence rather than a word about it; "CC BY-NC 4.0 (non-commercial)" is the first."""
    name: str


def find_licence(folder: Path) -> Licence | None:
    """As said by a README or a licence file in the folder, the first that says anything."""
    for name in FILES:
        text = _beginning(folder / name)
        statements = [text[:TITLE]] if "LICEN" in name else list(_statements(text))
        if any(statement.strip() for statement in statements):
            return Licence(strictest(statements), f"{name} beside the file")
    return None


def normalised(text: str) -> str:
    """The SPDX identifier of the licence named, of several the strictest; else the words, cut to 80 characters."""
    words = _words(text)
    found = _found(words)
    return found.name if found else words[:LONGEST_WORDS].rstrip() or "unknown"


def strictest(names: Iterable[str]) -> str:
    """Of none, "unknown"."""
    known = [normalised(name) for name in names]
    return max(known, key=lambda name: (terms_of(name), name == "unknown", name), default="unknown")


def terms_of(name: str) -> Terms:
    found = _found(_words(name))
    return found.terms if found else Terms.UNKNOWN


def _words(text: str) -> str:
    dashes = re.sub("[\u2010-\u2015\u2212]", "-", text[:LONGEST_STATEMENT])
    return " ".join(dashes.split())


def _found(words: str) -> _Found | None:
    """The strictest licence or restriction that the words name."""
    found = [_creative_commons(match) for match in _CREATIVE_COMMONS.finditer(words)]
    for pattern, name, terms in _KNOWN:
        for match in re.finditer(pattern, words, re.IGNORECASE):
            found.append(_Found(terms, True, _with_version(name, "".join(filter(None, match.groups())))))
    for pattern, name, terms in _RESTRICTIONS:
        if re.search(pattern, words, re.IGNORECASE):
            found.append(_Found(terms, False, name))
    return max(found, default=None)


def _with_version(name: str, version: str) -> str:
    if version.isdigit() and name != "Llama":
        version += ".0"
    return f"{name}-{version.title()}" if version else name


def _creative_commons(match: re.Match[str]) -> _Found:
    conditions = re.sub(r"[\s_-]", "", match.group(1).lower())
    commercial = "nc" not in conditions and "noncommercial" not in conditions
    if "nd" in conditions or "noderiv" in conditions:
        short, terms = "-ND", (Terms.NON_COMMERCIAL_NO_DERIVATIVES, Terms.NO_DERIVATIVES)
    elif "sa" in conditions or "sharealike" in conditions:
        short, terms = "-SA", (Terms.NON_COMMERCIAL_SHARE_ALIKE, Terms.SHARE_ALIKE)
    else:
        short, terms = "", (Terms.NON_COMMERCIAL, Terms.ATTRIBUTION)
    version = f"-{match.group(2)}" if match.group(2) else ""
    return _Found(terms[commercial], True, f"CC-BY{'' if commercial else '-NC'}{short}{version}")


def _beginning(file: Path) -> str:
    """Empty if there is none, or it cannot be read: a licence nobody can read says nothing."""
    try:
        if not file.is_file():  # a pipe would wait for someone to write
            return ""
        with file.open("rb") as opened:
            return opened.read(LARGEST_FILE).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _statements(readme: str) -> Iterator[str]:
    """Of the `license` key of YAML front matter, and of lines that begin with "Licence:"."""
    front = _FRONT_MATTER.match(readme)
    for value, items in _KEY.findall(front.group(1)) if front else ():
        listed = value.strip(" \t[]").split(",") if value.lstrip().startswith("[") else [value]
        for part in [*listed, *re.split(r"\n[ \t]*-[ \t]", items)]:
            words = re.sub(r"(^|\s)#.*", "", part).strip(" \t\r\n\"'")
            if words:
                yield words
    for match in _STATEMENT.finditer(readme, front.end() if front else 0):
        yield match.group(1)
