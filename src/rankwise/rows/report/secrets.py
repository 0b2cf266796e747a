"""What should not be in training rows: keys, passwords, card numbers and e-mail addresses. They are only counted.

Most texts have no sign of any, so each search begins with a sign that it cannot do without.
"""

from __future__ import annotations

import re

_KEY = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|gh[opsru]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|hf_[A-Za-z0-9]{30,}|"
    r"glpat-[\w-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_NAMED_KEY = re.compile(r"(?:[Kk]ey|KEY|[Tt]oken|TOKEN)[\"']?\s*[:=]\s*[\"']?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,}")
_PASSWORD = re.compile(
    r"\b(?:password|passwd|passwort|pwd)(?:[\"']?\s*[:=]|\s+is\s)\s*[\"']?(?=[^\s\"'<>(){}]*\d)[^\s\"'<>(){}]{6,}",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]+@(?!(?:[\w-]*(?:example|domain|company)[\w-]*|e?mail|test)\.)(?:[\w-]+\.)+[A-Za-z]{2,}\b")
_CARD = re.compile(r"[3-6]\d{3}([ -]?)(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5})")
_ISSUERS = re.compile(r"4|5[1-5]|3[47]|6(?:011|5)")


def holds_secret(text: str) -> bool:
    return holds_key(text) or holds_password(text) or holds_email(text) or holds_card(text)


def holds_key(text: str) -> bool:
    begins = (
        ("-" in text and ("sk-" in text or "glpat-" in text or "xox" in text or "PRIVATE KEY" in text))
        or ("_" in text and ("gh" in text or "hf_" in text))
        or "AKIA" in text or "AIza" in text or "eyJ" in text
    )  # fmt: skip
    if begins and _KEY.search(text) is not None:
        return True
    named = "key" in text or "KEY" in text or "Key" in text or "oken" in text or "OKEN" in text
    return named and _NAMED_KEY.search(text) is not None


def holds_password(text: str) -> bool:
    return ("assw" in text or "pwd" in text or "PASSW" in text) and _PASSWORD.search(text) is not None


def holds_email(text: str) -> bool:
    return "@" in text and _EMAIL.search(text) is not None


def holds_card(text: str) -> bool:
    return any(
        _ISSUERS.match(one[0]) is not None and _is_checked(re.sub(r"\D", "", one[0]))
        and not text[max(0, one.start() - 1) : one.start()].isalnum() and not text[one.end() : one.end() + 1].isalnum()
        for one in _CARD.finditer(text)
    )  # fmt: skip


def _is_checked(digits: str) -> bool:
    """Whether the last digit is what Luhn's sum makes of the others."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[::-2]))) % 10 == 0
