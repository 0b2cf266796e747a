"""The rows of `rankwise demo`, made from a seed: messy customer messages in, one line of strict JSON out.

    python lab/demo_rows.py src/rankwise/rows/demo.jsonl      writes the file that the package ships

    it's about the glass radio, #70728!! i'd like a refund for it... it's not urgent. Felix
    {"intent": "refund", "product": "glass radio", "order": "70728", "urgency": "low"}

The first 400 rows are for training, the last 100 for testing. Names, products and order numbers of the test rows never
occur in the training rows, so a right answer is read from the message and not remembered. Days, prices and counts stand
in the way; some phrases have typing errors, some messages give no order number, and wishes and urgency vary in wording.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from rankwise.rows.text.example import Example, Message

INSTRUCTION = "Answer with one line of JSON: intent, product, order, urgency."

INTENTS = {
    "refund": "i want my money back|please refund me|can i get a refund|send me my money back|i'd like a refund for it",
    "exchange": "can i swap it for another one|please exchange it|i want a replacement|could you send a different one"
    " instead|i'd like to exchange it",
    "cancel": "please cancel it|i don't want it anymore, cancel that|stop the order|can you cancel my order|i need to"
    " call the purchase off",
    "delivery": "where is it|it still hasn't arrived|when will it get here|the parcel never came|can you track my"
    " parcel",
    "repair": "it stopped working, can you fix it|can you repair it|it's broken and needs fixing|do you mend these|it"
    " needs a repair",
    "invoice": "i need the invoice|please send me the bill|could i have a receipt|i need an invoice for my taxes|the"
    " bill is missing",
}
URGENCIES = {
    "high": "it's urgent|asap|i need this today|right now please|this can't wait",
    "low": "no rush|take your time|whenever you can|it's not urgent|there is no hurry",
    "normal": "||thanks|cheers|thank you",
}
OPENINGS = "hi|hello|hey|good morning|hi there|hello team||"
ASIDES = (
    "||i bought it on the {day}th|it cost {price} euros|i paid {price} for it|i have {count} at home already"
    "|my neighbour has {count} of them"
)
ORDERED = "order {}|order no {}|order number {}|#{}|my order is {}|order nr. {}"
MATERIALS = "walnut copper blue folding ceramic wireless cotton steel bamboo leather glass green red small grey oak"


@dataclass(frozen=True)
class _Words:
    """What one split may use; the two splits share none of it."""

    names: str
    things: str
    orders: range


TRAIN = _Words(
    names="Marta Jonas Aylin Peter Sofia Liam Noor Emil Clara Hugo Mina Tariq Greta Paolo Yuki Anna",
    things="lamp kettle chair backpack speaker blanket mirror toaster clock desk umbrella vase wallet keyboard pillow"
    " bottle jacket mug shelf tent watch basket carpet helmet camera curtain drill fan guitar stool mattress blender"
    " whisk sandals easel hammock violin planter doormat juicer futon router lantern kayak thermos ottoman anvil apron"
    " bathrobe binoculars bookcase candle colander dresser earphones flute griddle hairdryer iron jigsaw kimono loom"
    " microscope napkins oven paddle quilt rucksack sled tablet unicycle vest wok xylophone yoyo zither",
    orders=range(10_000, 60_000),
)
TEST = _Words(
    names="Ines Bruno Leyla Oskar Daria Felix Zoe Kofi",
    things="bench scooter teapot printer cushion ladder notebook scarf radio frame bowl heater sofa brush tripod",
    orders=range(60_000, 100_000),
)


def order_examples(rows: int, words: _Words, seed: int) -> list[Example]:
    """The same rows for the same seed, on every machine."""
    chance = random.Random(seed)
    return [_example(chance, words, f"demo:{number}") for number in range(1, rows + 1)]


def _example(chance: random.Random, words: _Words, where: str) -> Example:
    intent, urgency = chance.choice(list(INTENTS)), chance.choice(list(URGENCIES))
    product = f"{_word(chance, MATERIALS)} {_word(chance, words.things)}"
    order = str(chance.choice(words.orders)) if chance.random() < 0.85 else None
    message = _message(chance, words, intent, urgency, product, order)
    answer = json.dumps({"intent": intent, "product": product, "order": order, "urgency": urgency})
    return Example((Message("system", INSTRUCTION), Message("user", message), Message("assistant", answer)), where)


def _message(chance: random.Random, words: _Words, intent: str, urgency: str, product: str, order: str | None) -> str:
    opening, name = _phrase(chance, OPENINGS), _word(chance, words.names)
    numbered = _phrase(chance, ORDERED).format(order) if order else ""
    numbers = {"day": chance.randint(4, 19), "price": chance.randint(12, 480), "count": chance.randint(2, 9)}
    aside = _phrase(chance, ASIDES).format(**numbers)
    in_brackets = order is not None and chance.random() < 0.5
    subject = f"it's about the {product}" + (f" ({numbered})" if in_brackets else "")
    wish, hurry = _typed(chance, _phrase(chance, INTENTS[intent])), _typed(chance, _phrase(chance, URGENCIES[urgency]))
    middle = [aside, f"{wish}, {subject}"] if chance.random() < 0.4 else [subject, aside, wish]
    greeting = f"{opening} {name} here".strip() if chance.random() < 0.5 else opening
    signature = name if name not in greeting and chance.random() < 0.5 else ""
    parts = [greeting, *middle, "" if in_brackets else numbered, hurry, signature]
    return _loose(chance, [part for part in parts if part])


def _phrase(chance: random.Random, phrases: str) -> str:
    return chance.choice(phrases.split("|"))


def _word(chance: random.Random, words: str) -> str:
    return chance.choice(words.split())


def _typed(chance: random.Random, words: str) -> str:
    """As somebody in a hurry types: now and then two letters inside a word change places."""
    if len(words) < 8 or chance.random() > 0.1:
        return words
    places = [i for i in range(1, len(words) - 2) if words[i - 1 : i + 3].isalpha() and words[i] != words[i + 1]]
    if not places:
        return words
    place = chance.choice(places)
    return words[:place] + words[place + 1] + words[place] + words[place + 2 :]


def _loose(chance: random.Random, parts: list[str]) -> str:
    text = parts[0]
    for part in parts[1:]:
        text += chance.choice([", ", ". ", ". ", " - ", "!! ", "... "]) + part
    return text + chance.choice(["", ".", "!", "!!"])


def lines() -> list[str]:
    """The lines of the shipped file, as OpenAI's messages."""
    examples = [*order_examples(400, TRAIN, 0), *order_examples(100, TEST, 1)]
    rows = ([{"role": message.role, "content": message.content} for message in one.messages] for one in examples)
    return [json.dumps({"messages": messages}) for messages in rows]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
