"""Our classifiers by default beside twenty lines of scikit-learn: words, and vectors of the same model.

    python lab/classifiers.py FOLDER [--sets tickets,sst-2] [--ways ours,words]     run what is not done yet
    python lab/classifiers.py FOLDER --table                                        the table of what is done

    ours      rankwise train --model minilm, everything by default; a tenth of the training rows is held out
    words     TF-IDF of words and of parts of words, and logistic regression, on all training rows
    vectors   the mean of the model's vectors of a text's tokens, and logistic regression, on all training rows

Each way is measured on test rows that it never saw, with three seeds, which shuffle the rows (of tickets they also make
other rows). scikit-learn must be importable. Finished cells lie in FOLDER/classifiers.jsonl.

Tickets are 1,000 made rows of six queues of unlike sizes: sentences about one thing, with words that all queues share,
spelling mistakes and 4 % wrong labels, on both sides. Of GLUE come 1,000 rows of SST-2 and of CoLA; `subjects` are
questions of MMLU, and the class is their subject.
"""

from __future__ import annotations

import csv
import json
import random

from claims import data

MODEL, TRAINED, TESTED = "minilm", 700, 300
SEEDS = (0, 1, 2)
QUEUES = {
    "billing": (
        0.3,
        (
            "i was charged twice for {thing}",
            "the invoice for order {number} shows the wrong amount",
            "please send me a receipt for {thing}",
            "my card was declined but the money is gone",
            "why does the bill say {number} euro when {thing} was cheaper",
            "the tax on my statement is not right",
        ),
    ),
    "delivery": (
        0.25,
        (
            "{thing} has not arrived yet",
            "the tracking of order {number} has not moved for {number} days",
            "the courier left {thing} with a neighbour i do not know",
            "can you send {thing} to another address",
            "the parcel came open and {thing} was missing",
            "your driver never rang the bell on {day}",
        ),
    ),
    "technical": (
        0.2,
        (
            "{thing} does not turn on any more",
            "since the update on {day} the app crashes when i open my order",
            "i get error {number} when i connect {thing}",
            "the screen of {thing} freezes after {number} minutes",
            "how do i reset {thing}",
            "{thing} cannot find the network at home",
        ),
    ),
    "returns": (
        0.12,
        (
            "i want to send {thing} back",
            "{thing} does not fit , can i exchange it for another size",
            "{thing} came with a scratch , i would like a new one",
            "where do i get the label to return order {number}",
            "is {thing} still under warranty after {number} days",
            "i changed my mind about {thing} from {day}",
        ),
    ),
    "account": (
        0.08,
        (
            "i cannot log in since {day}",
            "please change the email of my account",
            "delete all my data and order {number}",
            "the link to set a new password never came",
            "stop sending me the newsletter every {day}",
            "my account shows the orders of somebody else",
        ),
    ),
    "sales": (
        0.05,
        (
            "is {thing} in stock again",
            "what would {number} pieces of {thing} cost for our office",
            "do you have {thing} in another colour",
            "can i try {thing} before i buy it",
            "is there a discount for schools on {thing}",
            "when does the new model of {thing} come out",
        ),
    ),
}
"""Share of each queue, and what its customers write."""
THINGS = (
    "the coffee machine", "my headphones", "the lamp", "the blue jacket", "the router", "my keyboard", "the phone case",
    "the vacuum cleaner", "the running shoes", "the kettle", "the charger", "my watch", "the desk", "the speaker",
)  # fmt: skip
DAYS = ("monday", "tuesday", "friday", "saturday")
ANYWHERE = (
    "hello", "good morning", "hi there", "i wrote to you about order {number} on {day}", "nobody answers the phone",
    "please help me soon", "this is the second time", "i bought {thing} on {day}", "i am a customer for {number} years",
    "thanks", "kind regards", "i paid by card", "the delivery was fine last time", "i am not happy with your service",
    "your app says that all is well", "i need {thing} by {day}",
)  # fmt: skip
"""What customers of every queue write."""


def tickets(seed: int) -> list[dict[str, str]]:
    """1,000 rows."""
    draw = random.Random(seed)
    names, shares = list(QUEUES), [share for share, _ in QUEUES.values()]
    rows = []
    for _ in range(TRAINED + TESTED):
        queue = draw.choices(names, shares)[0]
        sentences = [draw.choice(QUEUES[queue][1]), *draw.sample(ANYWHERE, draw.randrange(1, 4))]
        draw.shuffle(sentences)
        filled = (_filled(one, draw) for one in sentences)
        words = [
            _misspelt(word, draw) if draw.random() < 0.12 else word for one in filled for word in [*one.split(), "."]
        ]
        label = draw.choice(names) if draw.random() < 0.04 else queue
        rows.append({"text": " ".join(words[:-1]), "label": label})
    return rows


def _filled(sentence: str, draw: random.Random) -> str:
    return sentence.format(thing=draw.choice(THINGS), day=draw.choice(DAYS), number=draw.randrange(2, 90))


def _misspelt(word: str, draw: random.Random) -> str:
    """With a letter left out, doubled or swapped with the next."""
    if len(word) < 4:
        return word
    at = draw.randrange(1, len(word) - 1)
    return draw.choice((
        word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ))  # fmt: skip


def glue(folder: str, text: str | int, label: str | int) -> list[dict[str, str]]:
    """CoLA has no header."""
    with data(f"glue/{folder}/train.tsv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = [text, label]
    if isinstance(text, str):
        header = lines.pop(0)
        columns = [header.index(str(one)) for one in columns]
    texts, labels = columns
    return [{"text": line[int(texts)], "label": line[int(labels)]} for line in lines]


def subjects() -> list[dict[str, str]]:
    with data("retention/mmlu_test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"text": row["question"], "label": row["subject"]} for row in rows]


SETS = {
    "tickets": tickets,
    "sst-2": lambda seed: glue("SST-2", "sentence", "label"),
    "cola": lambda seed: glue("CoLA", 3, 1),
    "subjects": lambda seed: subjects(),
}


def parts(name: str, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training rows and test rows."""
    rows = SETS[name](seed)
    random.Random(seed).shuffle(rows)
    return rows[:TRAINED], rows[TRAINED : TRAINED + TESTED]
