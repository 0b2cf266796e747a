"""Answers held to a schema: whether they are valid, what it costs, and what it adds to training.

python lab/constrained.py FOLDER [--parts validity,extraction,cost]     run what is not done yet
python lab/constrained.py FOLDER --table                                the table of what is done

validity     25 complete answers of SmolLM2-135M at temperature 0 (25 prompts) and 25 at 1, for each of 200 schemas
             of ten families; what was cut is counted apart
extraction   E2E: the facts of a sentence about a restaurant as JSON; 240 rows to train on, 60 that were never seen,
             LoRA by default for 2 passes, three seeds: base and run, held to the schema of the rows and free
cost         a batch of 16 answers of 96 tokens and the time to the first token, held to a schema and free, in turn
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from claims import data
from stored_cells import command, fresh

from rankwise.base.loaded import LoadedModel
from rankwise.base.sources import find
from rankwise.commands.evaluate import evaluate
from rankwise.commands.train import train
from rankwise.config.data import Constraint
from rankwise.config.experiment import Experiment
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import TaskConfig
from rankwise.config.validation import GenerationConfig
from rankwise.constraints.constraint import constraint_of, problem_with
from rankwise.evaluation.intervals import difference
from rankwise.evaluation.metrics import METRICS
from rankwise.inference.generate import answer, answers_in_turn, asking_ids
from rankwise.inference.tuned_model import load_tuned
from rankwise.objectives.registry import language_model
from rankwise.rows.text.example import Message
from rankwise.runs.records import silent

MODEL = "smollm2-135m"
FAMILIES, EACH, ANSWERS, MOST = 10, 20, 25, 3
"""Schemas of a family, complete answers at each temperature, and batches that are tried for them."""
Json = dict[str, Any]
Cell = tuple[str, int]
WORDS = ("name", "city", "colour", "price range", "größe", "備考", "e-mail", "x", "isOpen", "count")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
THINGS = ("a river", "a table", "an old friend", "the sea", "a train", "bread", "a small dog", "the year 1999", "zero",
          "a red car", "a city", "music", "tea", "a storm", "my house", "a game", "the moon", "a shop", "rain",
          "a book", "nothing",
          "a letter", "glass", "a bird", "winter")  # fmt: skip


def word(chance: random.Random) -> Json:
    low = chance.randrange(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + chance.randrange(3, 10)}


def integer(chance: random.Random) -> Json:
    low = chance.randrange(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + chance.randrange(1, 3000)}


def listed(chance: random.Random) -> Json:
    values: list[Any] = ["red", "naïve", "新しい", "a b", 'q"t', 7, -1.5, True, None, "\U0001f600"]
    return {"enum": chance.sample(values, chance.randrange(2, 7))}


def record(chance: random.Random, parts: Callable[[random.Random], Json], most: int = 4) -> Json:
    names = chance.sample(WORDS, chance.randrange(1, most + 1))
    required = [name for name in names if chance.random() < 0.7]
    return {"type": "object", "properties": {name: parts(chance) for name in names}, "required": required}


def simple(chance: random.Random) -> Json:
    return chance.choice((word, integer, listed))(chance)


def array(chance: random.Random) -> Json:
    low = chance.randrange(0, 3)
    return {"type": "array", "items": simple(chance), "minItems": low, "maxItems": low + chance.randrange(1, 4)}


def union(chance: random.Random) -> Json:
    return {"anyOf": [integer(chance), record(chance, simple, 2), {"type": "null"}, {"const": "none"}]}


def pattern(chance: random.Random) -> Json:
    found = ("^[A-Z]{2}-[0-9]{3}$", "^(yes|no)( please)?$", "^[a-z]+@[a-z]{2,9}\\.org$", "^#[0-9a-f]{6}$")
    return {"type": "string", "maxLength": 20, "pattern": chance.choice(found)}


def form(chance: random.Random) -> Json:
    return {"type": "string", "format": chance.choice(FORMATS)}


def tree(chance: random.Random) -> Json:
    node = record(chance, integer, 1)
    name = chance.choice(("next", "kind", "新"))
    node["properties"][name] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    return {"$defs": {"node": node | {"required": [name]}}, "$ref": "#/$defs/node"}


def fixed(chance: random.Random) -> Json:
    return {"type": "array", "prefixItems": [simple(chance) for _ in range(chance.randrange(1, 4))], "items": False,
            "minItems": 1}  # fmt: skip


def nested(chance: random.Random) -> Json:
    return record(chance, lambda inside: record(inside, simple, 2), 2)


FORMS = (lambda chance: record(chance, simple), nested, array, listed, union, pattern, form, tree, fixed,
         lambda chance: record(chance, chance.choice((array, union, pattern, form)), 2))  # fmt: skip


def schemas(family: int) -> list[Json]:
    chance = random.Random(family)
    return [FORMS[family](chance) for _ in range(EACH)]


def loaded() -> LoadedModel:
    spec = ModelConfig(name=MODEL)
    return language_model(find(spec, silent).config).load(spec, silent)


def prompts(model: LoadedModel, about: str) -> list[list[int]]:
    return [
        asking_ids(model, [Message("user", f"Write JSON by this schema about {thing}: {about}")]) for thing in THINGS
    ]


def validity(family: int) -> Json:
    model, counts, broken = loaded(), {"complete": 0, "cut": 0}, list[str]()
    for at, schema in enumerate(schemas(family)):
        constraint = constraint_of("schema", json.dumps(schema), f"schema {at}")
        asked = prompts(model, json.dumps(schema, ensure_ascii=False)[:200])
        for temperature in (0.0, 1.0):
            found = list[str]()
            for batch in range(MOST):
                new = 64 * (batch + 1)
                spec = GenerationConfig(
                    max_new_tokens=new, temperature=temperature, seed=batch, constraint=constraint
                )  # fmt: skip
                made = answers_in_turn(model, asked, spec)
                counts["cut"] += sum(one.stopped != "end" for one in made)
                found += [one.text for one in made if one.stopped == "end"]
                if len(found) >= ANSWERS:
                    break
            counts["complete"] += len(found)
            broken += [one for one in found if problem_with(constraint, one) is not None]
    return {**counts, "broken": broken}


def facts(meaning: str) -> Json:
    """`name[Alimentum], area[city centre]` as an object."""
    pairs = [one.strip().removesuffix("]").split("[", 1) for one in meaning.split("],")]
    return {name.strip(): value.strip() for name, value in pairs}


def extraction_rows() -> list[Json]:
    with (data("e2e") / "devset.csv").open(encoding="utf-8", newline="") as file:
        every = list(csv.DictReader(file))
    chosen = random.Random(5).sample(every, 300)
    return [
        {"prompt": f"Give the facts of this text as JSON.\n{row['ref']}", "completion": json.dumps(facts(row["mr"]))}
        for row in chosen
    ]


def extraction(seed: int) -> Json:
    rows, run = extraction_rows(), f"facts-{seed}"
    for name, part in (("train.jsonl", rows[:240]), ("test.jsonl", rows[240:])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    train(Experiment.model_validate({
        "model": {"name": MODEL}, "data": {"path": "train.jsonl", "answer_schema": "infer", "held_out": 0},
        "training": {"steps": 60, "batch_size": 8, "seed": seed}, "run": fresh(run),
    }))  # fmt: skip
    task = TaskConfig(task="facts", data="test.jsonl", score=("json", "json_exact", "json_valid"), max_new_tokens=128)
    held = evaluate(run, task, forgetting=False)
    free = evaluate(run, task, forgetting=False, constraint="none")
    assert held.base is not None and free.base is not None
    found: Json = {}
    for name, scores in (("base free", free.base), ("base held", held.base), ("run free", free.tuned),
                         ("run held", held.tuned)):  # fmt: skip
        found[name] = {metric: one.measured.value for metric, one in scores.scores.items()}
    for name, before, after in (("base: held against free", free.base, held.base),
                                ("run: held against free", free.tuned, held.tuned),
                                ("free: run against base", free.base, free.tuned)):  # fmt: skip
        other = difference(METRICS["json"], before.scores["json"].sums, after.scores["json"].sums)
        found[name] = [other.difference, other.low, other.high]
    tuned = load_tuned(run)
    report = tuned.artifact.data_report
    assert report is not None and report.constraint is not None
    ids = [asking_ids(tuned.model, [*tuned.opening(None), Message("user", row["prompt"])]) for row in rows[240:]]
    spec = GenerationConfig(max_new_tokens=128, constraint="none")
    alone = answers_in_turn(tuned.model, ids, spec)
    by_schema = answers_in_turn(tuned.model, ids, spec.model_copy(update={"constraint": report.constraint}))
    valid = [
        (one.text, other.text) for one, other in zip(alone, by_schema, strict=True)
        if problem_with(report.constraint, one.text) is None
    ]  # fmt: skip
    found["valid when free"] = len(valid)
    found["of these with the same bytes when held"] = sum(one == other for one, other in valid)
    found["others"] = [pair for pair in valid if pair[0] != pair[1]]
    return found


LONG = {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 200}


def cost(round_: int) -> Json:
    model, held = loaded(), Constraint(kind="schema", text=json.dumps(LONG))
    asked = prompts(model, "a list of texts")[:16]
    found: dict[str, list[float]] = {"free": [], "held": [], "first free": [], "first held": []}
    for number in range(6):
        for name, constraint in (("free", "none"), ("held", held)):
            spec = GenerationConfig(max_new_tokens=96, constraint=constraint, repetition_check=False)
            began = time.perf_counter()
            made = answers_in_turn(model, asked, spec)
            if number:
                found[name].append(sum(one.tokens for one in made) / (time.perf_counter() - began))
            for _ in range(4):
                began = time.perf_counter()
                answer(model, [Message("user", "hi")], spec.model_copy(update={"max_new_tokens": 1}))
                found[f"first {name}"] += [1000 * (time.perf_counter() - began)] * bool(number)
    return {name: statistics.median(values) for name, values in found.items()}


PARTS: dict[str, tuple[Callable[[int], Json], int]] = {
    "validity": (validity, FAMILIES), "extraction": (extraction, 3), "cost": (cost, 3),
}  # fmt: skip


def cells(done: dict[Any, Json], parts: list[str]) -> Iterator[Cell]:
    for part in parts:
        yield from ((part, number) for number in range(PARTS[part][1]))


def run(folder: Path, cell: Cell) -> Json:
    part, number = cell
    began = time.perf_counter()
    return {"kind": "cell", "cell": list(cell)} | PARTS[part][0](number) | {"seconds": time.perf_counter() - began}


def line(row: Json) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in ("kind", "cell")})[:600]


def table(folder: Path, done: dict[Any, Json]) -> Iterator[str]:
    valid = [row for cell, row in done.items() if cell[0] == "validity"]
    yield (
        f"validity: {EACH * len(valid)} schemas, {sum(row['complete'] for row in valid):,} complete answers, "
        f"{sum(len(row['broken']) for row in valid)} invalid, {sum(row['cut'] for row in valid):,} cut and said so"
    )
    rows = [row for cell, row in done.items() if cell[0] == "extraction"]
    for name in ("base free", "base held", "run free", "run held"):
        means = {
            metric: np.mean([row[name][metric] for row in rows]) for metric in ("json_valid", "json", "json_exact")
        }
        yield f"{name:10} " + "  ".join(f"{metric} {value:.3f}" for metric, value in means.items())
    for name in ("base: held against free", "run: held against free", "free: run against base"):
        yield f"json, {name}: " + ", ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(*row[name]) for row in rows)
    if rows:
        same = sum(row["of these with the same bytes when held"] for row in rows)
        yield f"valid when free: {sum(row['valid when free'] for row in rows)}, the same bytes when held: {same}"
    for cell, row in done.items():
        if cell[0] == "cost":
            rate, first = row["held"] / row["free"], row["first held"] - row["first free"]
            yield f"cost: tokens a second {rate:.3f} of {row['free']:.0f} free, first token {first:+.1f} ms"


if __name__ == "__main__":
    command(__doc__, "constrained.jsonl", {"parts": "validity,extraction,cost"}, cells, run, line, table)
