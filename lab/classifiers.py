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
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from claims import data
from stored_cells import command, fresh

from rankwise.base.sources import find
from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.runs.records import silent

MODEL, TRAINED, TESTED = "minilm", 700, 300
WAYS, SEEDS, STRENGTHS = ("words", "vectors", "ours"), (0, 1, 2), (0.1, 1.0, 10.0, 100.0)
Rows = list[dict[str, str]]
Cell = tuple[str, str, int]
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


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    name, way, seed = cell
    trained, tested = parts(name, seed)
    labels, actual = ([row["label"] for row in rows] for rows in (trained, tested))
    largest = max(labels, key=labels.count)
    began, worked = time.perf_counter(), time.process_time()
    found = {"ours": ours, "words": words, "vectors": vectors}[way](folder, cell, trained, tested)
    return {
        "kind": "cell", "cell": list(cell), **found, "largest": actual.count(largest) / len(actual),
        "trained": len(trained), "tested": len(tested), "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
    }  # fmt: skip


def ours(folder: Path, cell: Cell, trained: Rows, tested: Rows) -> dict[str, Any]:
    files = {part: folder / f"{cell[0]}-{cell[2]}-{part}.jsonl" for part in ("trained", "tested")}
    for file, rows in zip(files.values(), (trained, tested), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    name = fresh(f"{cell[0]}-{cell[2]}")
    experiment = Experiment(
        model=MODEL, run=name, data={"path": str(files["trained"]), "held_out": len(trained) // 10},
        training={"seed": cell[2]},
    )  # fmt: skip
    results = train(experiment).manifest.results
    assert results is not None
    scores = evaluate(name, data=str(files["tested"]), callback=silent).tuned.metrics
    return {
        "accuracy": scores["accuracy"].value, "f1": scores["f1"].value, "steps": results.steps,
        "kept": results.kept_step, "train_seconds": results.train_seconds, "baselines": results.baselines,
    }  # fmt: skip


def words(folder: Path, cell: Cell, trained: Rows, tested: Rows) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    parts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
             TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)]  # fmt: skip
    both = make_union(*parts)
    return _fitted(both.fit_transform([row["text"] for row in trained]), trained,
                   both.transform([row["text"] for row in tested]), tested)  # fmt: skip


def vectors(folder: Path, cell: Cell, trained: Rows, tested: Rows) -> dict[str, Any]:
    return _fitted(_means(trained), trained, _means(tested), tested)


def _means(rows: Rows) -> Any:
    """By transformers alone, as its documentation of such models says to."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = find(ModelConfig(name=MODEL), silent).folder
    tokenizer, model, found = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval(), []
    for at in range(0, len(rows), 32):
        texts = [row["text"] for row in rows[at : at + 32]]
        given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            states, real = model(**given).last_hidden_state, given["attention_mask"][..., None]
        found.append((states * real).sum(1) / real.sum(1))
    return torch.cat(found).numpy()


def _fitted(features: Any, trained: Rows, others: Any, tested: Rows) -> dict[str, Any]:
    """With the strength that five folds of the training rows choose."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": STRENGTHS}, cv=5)
    predicted = search.fit(features, [row["label"] for row in trained]).predict(others)
    actual = [row["label"] for row in tested]
    right = sum(one == other for one, other in zip(predicted, actual, strict=True)) / len(actual)
    return {"accuracy": right, "f1": f1_score(actual, predicted, average="macro"), "C": search.best_params_["C"]}


def cells(done: dict[Any, dict[str, Any]], sets: list[str], ways: list[str]) -> Iterator[Cell]:
    for seed, name, way in product(SEEDS, sets, ways):
        yield name, way, seed


def table(folder: Path, done: dict[Any, dict[str, Any]]) -> Iterator[str]:
    yield "| rows | words | vectors | ours | against the better | largest class | processor seconds |"
    yield "|---|---|---|---|---|---|---|"
    for name in SETS:
        seeds = [seed for seed in SEEDS if all((name, way, seed) in done for way in WAYS)]
        if not seeds:
            continue
        of = {way: [done[name, way, seed] for seed in seeds] for way in WAYS}
        means = {way: statistics.mean(one["accuracy"] for one in of[way]) for way in WAYS}
        each = {way: ", ".join(f"{one['accuracy']:.3f}" for one in of[way]) for way in WAYS}
        best = max(means["words"], means["vectors"])
        largest = statistics.mean(one["largest"] for one in of["ours"])
        seconds = ", ".join(f"{statistics.mean(one['processor_seconds'] for one in of[way]):.0f}" for way in WAYS)
        listed = " | ".join(f"{means[way]:.3f} ({each[way]})" for way in WAYS)
        yield f"| {name} | {listed} | {100 * (means['ours'] - best):+.1f} points | {largest:.3f} | {seconds} |"


if __name__ == "__main__":
    command(
        __doc__, "classifiers.jsonl", {"sets": ",".join(SETS), "ways": ",".join(WAYS)}, cells, run,
        lambda row: f"{row['accuracy']:.3f} {row['seconds']:.0f} s", table,
    )  # fmt: skip
