"""Sample rows that a laptop learns in minutes: tickets of a help desk, orders by e-mail, and pictures of products.

The rows follow from a few sentences and things, and the pictures from a few shapes, so that they are the same on each
machine and belong to nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from rankwise.errors import DataError
from rankwise.system.extras import need_extra
from rankwise.system.files import published

SampleRow = dict[str, str]
THINGS = ("the desk lamp", "my headphones", "the blue chair", "order 4711", "the kettle", "my new bicycle")
LEARNED, NEW = slice(0, 4), slice(4, 6)
"""The messages of a queue in the rows to train on, and those in the new rows."""
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


def tickets(part: slice = LEARNED) -> list[SampleRow]:
    """Messages to a help desk, with their queue and the reply that it gives."""
    return [
        {"message": message.format(thing), "queue": queue, "reply": f"Thank you for writing. {reply.format(thing)}"}
        for (queue, (reply, messages)), thing in product(QUEUES.items(), THINGS)
        for message in messages[part]
    ]


def orders(numbers: range = range(96)) -> list[SampleRow]:
    """Orders by e-mail, with what they say as JSON."""
    rows = []
    for number in numbers:
        name, city, item, day = (texts[number % len(texts)] for texts in (NAMES, CITIES, GOODS, DAYS))
        fields = {"name": name, "count": 2 + number * 7 % 41, "item": item, "city": city, "day": day}
        rows.append({"email": MAILS[number // 6 % 3].format(**fields), "fields": json.dumps(fields)})
    return rows


Points = tuple[float, ...]
"""x and y of each corner, from 0 to 1."""
PRODUCTS: Mapping[str, tuple[tuple[str, Points], ...]] = {
    "lamp": (("polygon", (0.35, 0.15, 0.65, 0.15, 0.8, 0.5, 0.2, 0.5)), ("rectangle", (0.47, 0.5, 0.53, 0.85)),
             ("ellipse", (0.3, 0.8, 0.7, 0.92))),
    "mug": (("rectangle", (0.25, 0.25, 0.65, 0.85)), ("arc", (0.5, 0.35, 0.85, 0.7)),
            ("ellipse", (0.25, 0.2, 0.65, 0.32))),
    "shirt": (("polygon", (0.3, 0.15, 0.7, 0.15, 0.95, 0.35, 0.82, 0.5, 0.7, 0.4, 0.7, 0.9, 0.3, 0.9, 0.3, 0.4, 0.18,
                           0.5, 0.05, 0.35)), ("ellipse", (0.42, 0.1, 0.58, 0.2))),
}  # fmt: skip
"""Shapes of each product, the later ones over the earlier."""
SIDE, EACH = 96, 30
"""Pixels of a side, and pictures of each product."""


def pictures(folder: Path) -> int:
    """Write a folder of PNG files for each product, in colours, sizes, places and turns that differ; their number."""
    need_extra("PIL", "drawing pictures", "vision", DataError)
    from PIL import Image

    random = Random(0)
    with published(folder) as temporary:
        for name, number in product(PRODUCTS, range(EACH)):
            (temporary / name).mkdir(exist_ok=True)
            paper = tuple(random.randrange(150, 256) for _ in range(3))
            drawn = _drawn(PRODUCTS[name], paper, random).rotate(random.uniform(-20, 20), fillcolor=paper)
            size = random.randrange(SIDE // 2, SIDE)
            picture = Image.new("RGB", (SIDE, SIDE), paper)
            left, top = (random.randrange(SIDE - size + 1) for _ in range(2))
            picture.paste(drawn.resize((size, size)), (left, top))
            picture.save(temporary / name / f"{name}-{number + 1:02}.png")
    return len(PRODUCTS) * EACH


def _drawn(shapes: Sequence[tuple[str, Points]], paper: tuple[int, ...], random: Random) -> Any:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(picture)
    for shape, points in shapes:
        colour = tuple(random.randrange(0, 140) for _ in range(3))
        corners = [SIDE * one for one in points]
        if shape == "arc":
            draw.arc(corners, 270, 90, fill=colour, width=SIDE // 12)
        else:
            getattr(draw, shape)(corners, fill=colour)
    return picture


@dataclass(frozen=True)
class SampleRows:
    every: Callable[[], list[SampleRow]]
    columns: tuple[str, str]

    @property
    def rows(self) -> list[SampleRow]:
        return [{name: row[name] for name in self.columns} for row in self.every()]


TICKET, REPLY, ORDER = ("message", "queue"), ("message", "reply"), ("email", "fields")
SAMPLES = {
    "tickets": SampleRows(tickets, TICKET),
    "new-tickets": SampleRows(partial(tickets, NEW), TICKET),
    "replies": SampleRows(tickets, REPLY),
    "new-replies": SampleRows(partial(tickets, NEW), REPLY),
    "orders": SampleRows(orders, ORDER),
    "new-orders": SampleRows(partial(orders, range(200, 240)), ORDER),
}
"""The new ones are of the same kind, in other words or with other numbers."""
PICTURES = "pictures"
"""The samples that are a folder of images."""
