"""rankwise.sklearn's probe beside logistic regression on words and on the model's vectors, and what it takes.

    python lab/sklearn_tickets.py FOLDER [--sets tickets,sst-2] [--ways auto,both]     run what is not done yet
    python lab/sklearn_tickets.py FOLDER --table                                       the table of what is done

    auto             TextClassifier(), in a process of its own: a CSV file is read, fitted, saved; the seconds are those
                     of the whole process, the imports and loading the model included
    both             the same on vectors and words, without choosing columns
    words, vectors   twenty lines of scikit-learn (lab/classifiers.py)
    average          the probabilities of the last two, averaged with the weight that cross-validation chooses

1,000 rows are learned from and 1,000 others are asked, but WebNLG's categories have only 872. Intervals of 95 % are
over the test rows of all seeds, and those of a difference are of pairs of rows. Finished cells lie in
FOLDER/sklearn_tickets.jsonl.
"""

from __future__ import annotations

import csv
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import classifiers
import numpy as np
from claims import data
from classifiers import Rows, glue, subjects, tickets
from stored_cells import command

from rankwise.evaluation.intervals import difference, with_interval
from rankwise.evaluation.metrics import METRICS

LEARNED, WAYS, SEEDS = 1000, ("auto", "both", "words", "vectors", "average"), (0, 1, 2)
Cell = tuple[str, str, int]
FROM_CSV = """
import csv, json, sys
from rankwise.sklearn import TextClassifier
with open(sys.argv[1], encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
model = TextClassifier(features=sys.argv[3]).fit([row["text"] for row in rows], [row["label"] for row in rows])
model.save(sys.argv[2])
print(json.dumps({"columns": model.fitted_.columns, "losses": model.fitted_.losses, "says": model.advice_}))
"""


def categories() -> Rows:
    with data("webnlg/dev.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"text": row["lexs"][0], "label": row["category"]} for row in rows]


SETS = {
    "tickets": lambda seed: [*tickets(seed), *tickets(seed + 100)],
    "sst-2": lambda seed: glue("SST-2", "sentence", "label"),
    "cola": lambda seed: glue("CoLA", 3, 1),
    "subjects": lambda seed: subjects(),
    "categories": lambda seed: categories(),
}


def parts(name: str, seed: int) -> tuple[Rows, Rows]:
    rows = SETS[name](seed)
    if name != "tickets":  # whose two halves are made apart already
        random.Random(seed).shuffle(rows)
    learned = min(LEARNED, len(rows) * 2 // 3)
    return rows[:learned], rows[learned : learned + LEARNED]


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    name, way, seed = cell
    learned, asked = parts(name, seed)
    began, work = time.perf_counter(), _worked()
    if way in ("auto", "both"):
        more = from_csv(folder, cell, learned)
        seconds, processor = time.perf_counter() - began, _worked() - work
        from rankwise.sklearn import TextClassifier

        predicted = TextClassifier.load(folder / "-".join(map(str, cell))).predict([row["text"] for row in asked])
    else:
        predicted, more = twenty_lines(way, learned, asked)
        seconds, processor = time.perf_counter() - began, _worked() - work
    hits = [int(one == row["label"]) for one, row in zip(predicted, asked, strict=True)]
    return {"kind": "cell", "cell": list(cell), "accuracy": sum(hits) / len(hits), "learned": len(learned),
            "seconds": seconds, "processor_seconds": processor, **more, "hits": hits}  # fmt: skip


def _worked() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def from_csv(folder: Path, cell: Cell, learned: Rows) -> dict[str, Any]:
    name = "-".join(map(str, cell))
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(learned)
    columns = {"auto": "auto", "both": "both"}[cell[1]]
    words = [sys.executable, "-c", FROM_CSV, str(folder / f"{name}.csv"), str(folder / name), columns]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def twenty_lines(way: str, learned: Rows, asked: Rows) -> tuple[Any, dict[str, Any]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_predict
    from sklearn.pipeline import make_union

    labels, both = np.array([row["label"] for row in learned]), {}
    if way != "vectors":
        union = make_union(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                           TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True))  # fmt: skip
        texts = [[row["text"] for row in rows] for rows in (learned, asked)]
        both["words"] = union.fit_transform(texts[0]), union.transform(texts[1])
    if way != "words":
        both["vectors"] = tuple(map(classifiers._means, (learned, asked)))
    shares, apart, strengths = [], [], {}
    for name, (inputs, others) in both.items():
        search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": classifiers.STRENGTHS}, cv=5).fit(inputs, labels)
        strengths[name] = search.best_params_["C"]
        shares.append(search.predict_proba(others))
        if way == "average":
            apart.append(cross_val_predict(search.best_estimator_, inputs, labels, cv=5, method="predict_proba"))
    classes, weight = np.unique(labels), 1.0
    if way == "average":
        right = np.arange(len(labels)), np.searchsorted(classes, labels)
        losses = {w: -np.log(np.maximum((w * apart[0] + (1 - w) * apart[1])[right], 1e-6)).mean()
                  for w in np.linspace(0, 1, 11).tolist()}  # fmt: skip
        weight = min(losses, key=lambda w: losses[w])
        shares = [weight * shares[0] + (1 - weight) * shares[1]]
    return classes[shares[0].argmax(1)], {"C": strengths, "weight_of_words": weight}


def cells(done: dict[Any, dict[str, Any]], sets: list[str], ways: list[str]) -> Iterator[Cell]:
    for name, seed, way in product(sets, SEEDS, ways):
        yield name, way, seed


def table(folder: Path, done: dict[Any, dict[str, Any]]) -> Iterator[str]:
    accuracy = METRICS["accuracy"]
    yield f"| rows | {' | '.join(WAYS)} | auto less words | auto less vectors | auto: processor s, s |"
    yield "|---" * (len(WAYS) + 4) + "|"
    for name in SETS:
        of = {way: [done[name, way, seed] for seed in SEEDS if (name, way, seed) in done] for way in WAYS}
        if any(len(of[way]) < len(SEEDS) for way in ("auto", "words", "vectors")):
            continue
        hits = {way: [[hit, 1.0] for cell in of[way] for hit in cell["hits"]] for way in WAYS}
        each = {way: ", ".join(f"{one['accuracy']:.3f}" for one in of[way]) for way in WAYS}
        shown = [
            f"{with_interval(accuracy, hits[way]).shown('.3f')}: {each[way]}"
            if len(of[way]) == len(SEEDS)
            else each[way]
            for way in WAYS
        ]
        less = [difference(accuracy, hits[other], hits["auto"]) for other in ("words", "vectors")]
        gains = [f"{one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in less]
        took = [max(cell[unit] for cell in of["auto"]) for unit in ("processor_seconds", "seconds")]
        yield f"| {name} | {' | '.join(shown)} | {' | '.join(gains)} | {took[0]:.0f}, {took[1]:.0f} |"


if __name__ == "__main__":
    command(
        __doc__, "sklearn_tickets.jsonl", {"sets": ",".join(SETS), "ways": ",".join(WAYS)}, cells, run,
        lambda row: f"{row['accuracy']:.3f} {row['seconds']:.0f} s", table,
    )  # fmt: skip
