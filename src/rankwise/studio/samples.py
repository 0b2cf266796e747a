"""Ways to begin in the studio, each with a model of a fitting kind and with the sample rows of rows/samples.py."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwise.rows.samples import orders, tickets
from rankwise.studio.uploads import FOLDER


@dataclass(frozen=True)
class Way:
    """`settings` are those of the form for the sample rows."""

    title: str
    about: str
    model: str
    file: str
    rows: Callable[[], list[dict[str, str]]]
    settings: Mapping[str, str]

    def content(self) -> bytes:
        """The columns of the sample rows that are used, as a CSV file."""
        text, names = io.StringIO(newline=""), re.findall(r"{(\w+)}", " ".join(self.settings.values()))
        table = csv.DictWriter(text, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(self.rows())
        return text.getvalue().encode()

    def path(self) -> Path:
        """Where the file lies once it was stored as an upload."""
        return FOLDER / hashlib.sha256(self.content()).hexdigest()[:32] / self.file


WAYS = {
    "classify": Way(
        "Classify texts", "Each text gets one of your labels: tickets their queue, reviews their mood.", "minilm",
        "sample tickets.csv", tickets, {"data.prompt": "{message}", "data.completion": "{queue}"},
    ),
    "extract": Way(
        "Extract fields", "Each text becomes JSON: who ordered what, how much, for which day.", "smollm2-135m",
        "sample orders.csv", orders,
        {"data.prompt": "Extract the fields of this e-mail as JSON: {email}", "data.completion": "{fields}"},
    ),
    "write": Way(
        "Write answers", "Each message gets an answer in your own style, learned from answers that you wrote.",
        "smollm2-135m", "sample replies.csv", tickets, {"data.prompt": "{message}", "data.completion": "{reply}"},
    ),
}  # fmt: skip
