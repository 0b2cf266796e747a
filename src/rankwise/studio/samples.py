"""Three ways to begin, each with a model of a fitting kind and with invented rows that a laptop learns in two minutes.

The rows follow from a few sentences and things, so that they are the same on each machine and belong to nobody.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rankwise.studio.uploads import FOLDER

THINGS = ("the desk lamp", "my headphones", "the blue chair", "order 4711")
QUEUES = {
    "billing": ("We will check the payment for {} today, and send back what is too much.", (
        "I was charged twice for {}.", "The invoice for {} shows the wrong amount.",
        "Can I pay for {} in two parts?", "I need a receipt for {} with our company's name.",
        "My card was refused when I paid for {}.", "You took money for {}, but I had cancelled it.",
    )),
    "delivery": ("We will ask the carrier where {} is, and tell you the new day.", (
        "When will {} arrive?", "The parcel with {} went to my neighbour's old address.",
        "Tracking says that {} was delivered, but nobody has seen it.", "Can you send {} to my office instead?",
        "I have waited ten days for {}.", "Please leave {} at the back door on Friday.",
    )),
    "returns": ("You can send {} back free of charge; the label is on its way.", (
        "I would like to send {} back.", "How many days do I have to return {}?",
        "I want to exchange {} for a smaller one.", "The label for returning {} is missing.",
        "I changed my mind about {}. Where do I send it?", "You have had {} back for a week. When do I hear from you?",
    )),
    "technical": ("Please hold the button of {} for ten seconds; if that does not help, we repair it.", (
        "Since yesterday {} no longer turns on.", "There is a strange noise when I use {}.",
        "A screw of {} was loose and now it wobbles.", "How do I connect {} with my phone?",
        "I read the manual of {}, but step three does not work.", "The switch of {} is broken.",
    )),
}  # fmt: skip
"""Queues of a help desk, each with its reply and with what customers write."""
NAMES, CITIES = ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran"), ("Oslo", "Turin", "Lyon", "Graz")
GOODS, DAYS = ("teapots", "maps", "lanterns", "pencils", "blankets"), ("Monday", "Wednesday", "Friday")
MAILS = (
    "Hello, please send {count} {item} to {city} by {day}. Thanks, {name}",
    "Hi! {name} here. We need {count} {item} in {city}, on {day} at the latest.",
    "Dear all, could {city} get {count} {item} before {day}? Best wishes, {name}",
)


def tickets() -> list[dict[str, str]]:
    """Messages to a help desk, with their queue and the reply that it gives."""
    return [
        {"message": message.format(thing), "queue": queue, "reply": f"Thank you for writing. {reply.format(thing)}"}
        for (queue, (reply, messages)), thing in product(QUEUES.items(), THINGS) for message in messages
    ]  # fmt: skip


def orders() -> list[dict[str, str]]:
    """Orders by e-mail, with what they say as JSON."""
    rows = []
    for number in range(96):
        name, city, item, day = (texts[number % len(texts)] for texts in (NAMES, CITIES, GOODS, DAYS))
        fields = {"name": name, "count": 2 + number * 7 % 41, "item": item, "city": city, "day": day}
        rows.append({"email": MAILS[number // 6 % 3].format(**fields), "fields": json.dumps(fields)})
    return rows


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
        return FOLDER / f"{hashlib.sha256(self.content()).hexdigest()[:32]}.csv"


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
