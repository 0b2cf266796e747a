"""Questions about small databases, and the queries that answer them: rows for lab/real_models.py.

A question is one of 18 kinds over one of 18 databases of two tables, of which one names the other: books and their
authors. A row has the statements of its tables, a question, and a query whose result is what counts
(docs/evaluation.md, `sql`). Of the 18 databases 12 are learned and six are measured; of the wordings of a kind two are
learned and all three are measured. Every question has one right result: no two numbers or dates of a column are
equal, only one table row is first where a question asks for the first, and no title is a number.
"""

from __future__ import annotations

import random
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

SYSTEM = "Answer with one query for SQLite."
PARENTS, CHILDREN = 12, 60
FIRST = (
    "amber", "bright", "calm", "dusty", "early", "faint", "gentle", "hollow", "iron", "jade", "keen", "late", "pale",
)  # fmt: skip
SECOND = ("anchor", "bridge", "cedar", "delta", "ember", "field", "grove", "hill", "inlet", "jetty", "knoll", "lake")


@dataclass(frozen=True)
class Table:
    """`kinds` are columns of text with their values, `numbers` columns with bounds, `dates` columns of dates."""

    name: str
    one: str
    title: str
    kinds: dict[str, list[str]]
    numbers: dict[str, tuple[int, int]]
    dates: tuple[str, ...] = ()


def _table(text: str) -> Table:
    """`books book title | genre: Poetry, Crime | pages 80-900, price 5-90 | published`."""
    head, kinds, numbers, *dates = (part.strip() for part in text.split("|"))
    found = {
        column.strip(): [value.strip() for value in values.split(",")]
        for column, values in (one.split(":") for one in kinds.split(";"))
    }
    bounds = {name: (int(low), int(high)) for name, low, high in re.findall(r"(\w+) (\d+)-(\d+)", numbers)}
    name, one, title = head.split()
    return Table(name, one, title, found, bounds, tuple(dates[0].split()) if dates else ())


def _databases(text: str) -> list[tuple[Table, Table]]:
    lines = text.strip().splitlines()
    return [(_table(one), _table(two)) for one, two in zip(lines[::2], lines[1::2], strict=True)]


LEARNED = _databases("""
authors author name | country: Italy, Norway, Chile, Japan | born 1930-1999
books book title | genre: Poetry, Crime, History, Travel | pages 80-900, price 5-90 | published
teams team name | league: North, South, Coast | founded 1890-2010
players player name | position: keeper, defender, striker | goals 0-90, salary 20000-900000 | joined
suppliers supplier name | region: Alps, Baltic, Iberia | rating 1-100
parts part label | material: steel, brass, nylon, oak | weight 1-500, stock 0-4000 | checked
wards ward name | floor: ground, first, second | beds 4-60
patients patient name | blood: A, B, AB, O | age 1-99, stay 1-90 | admitted
routes route name | mode: bus, tram, ferry | length 3-120
trips trip code | weather: rain, sun, fog | passengers 1-300, delay 0-90 | driven
galleries gallery name | city: Bonn, Ghent, Porto | rooms 2-40
paintings painting title | style: cubist, baroque, modern | width 20-400, value 300-90000 | acquired
farms farm name | soil: clay, sand, peat | area 5-800
harvests harvest label | crop: barley, rye, oats, beans | tons 1-300, moisture 5-95 | gathered
clients client name | segment: retail, public, industry | employees 3-9000
invoices invoice code | status: paid, open, overdue | amount 40-20000, days 1-120 | issued
hotels hotel name | area: harbour, station, hills | beds 20-400
bookings booking code | board: breakfast, half, full | nights 1-80, cost 60-5000 | arrived
labs lab name | field: optics, genetics, geology | staff 4-90
samples sample code | state: frozen, dried, fresh | mass 1-900, purity 30-99 | taken
channels channel name | language: Dutch, Polish, Greek | subscribers 100-90000
videos video title | topic: cooking, chess, repair | views 10-900000, seconds 30-7200 | uploaded
depots depot name | state: Texas, Ohio, Maine | capacity 10-900
trucks truck plate | fuel: diesel, gas, electric | mileage 1000-900000, load 1-80 | serviced
""")
MEASURED = _databases("""
breweries brewery name | county: Kent, Devon, Fife | opened 1850-2020
beers beer name | type: stout, pilsner, porter, ale | bitterness 5-100, cost 2-90 | released
schools school name | district: West, East, Centre | classrooms 6-80
pupils pupil name | club: music, chess, rowing | score 1-100, absences 0-90 | enrolled
airlines airline name | alliance: Blue, Green, Gold | aircraft 5-600
flights flight code | cabin: cargo, mixed, passenger | distance 100-12000, fare 20-2000 | departed
museums museum name | owner: city, private, church | visitors 500-900000
exhibits exhibit title | era: Roman, Gothic, Bronze | height 5-500, insurance 100-99000 | restored
landlords landlord name | tax: low, middle, high | income 9000-400000
flats flat label | heating: gas, pump, district | rent 300-4000, surface 18-220 | let
studios studio name | origin: Seoul, Paris, Lagos | founded 1950-2020
films film title | rating: family, teen, adult | budget 1-200, minutes 60-240 | premiered
""")

QUESTIONS = """
Show the {title} of all {c} whose {kind} is {value}.
Which {c} have the {kind} {value}? Give the {title}.
I need the {title} of every {one} with {value} as its {kind}.
SELECT {title} FROM {c} WHERE {kind} = '{value}'

List the {title} of {c} whose {kind} is not {value} and whose {number} is at most {n}.
{c} with {number} of no more than {n}, but not those of {kind} {value}: give the {title}.
Leaving out {kind} {value}: which {c} have {number} of at most {n}? Show the {title}.
SELECT {title} FROM {c} WHERE {kind} <> '{value}' AND {number} <= {n}

How many {c} have {number} above {n}?
Count the {c} whose {number} is greater than {n}.
What is the number of {c} that exceed {n} in {number}?
SELECT COUNT(*) FROM {c} WHERE {number} > {n}

What is the average {number} of {c} whose {kind} is {value}?
Give the mean {number} over all {c} of {kind} {value}.
On average, what {number} do {c} with {kind} {value} have?
SELECT AVG({number}) FROM {c} WHERE {kind} = '{value}'

Which {one} has the highest {number}? Give its {title}.
Show the {title} of the {one} with the largest {number}.
What is the {title} of the {one} that tops all others in {number}?
SELECT {title} FROM {c} ORDER BY {number} DESC LIMIT 1

List the {title} of the {few} {c} with the lowest {number}, lowest first.
The {few} {c} that have the smallest {number}, in rising order: show the {title}.
Starting from the smallest, which {few} {c} come first by {number}? Give the {title}.
SELECT {title} FROM {c} ORDER BY {number} LIMIT {few}

For each {kind}, how many {c} are there? Give the {kind} and the number.
Count the {c} of every {kind}; show {kind} and count.
Break the {c} down by {kind}: the {kind} and how many.
SELECT {kind}, COUNT(*) FROM {c} GROUP BY {kind}

Which values of {kind} have an average {number} above {n}?
Show each {kind} whose {c} have more than {n} as their mean {number}.
For what {kind} does the average {number} of the {c} lie over {n}?
SELECT {kind} FROM {c} GROUP BY {kind} HAVING AVG({number}) > {n}

Show the {title} of the {c} of {p} whose {pkind} is {pvalue}.
Which {c} belong to {p} with the {pkind} {pvalue}? Give the {title}.
Give the {title} of each {one} that belongs to one of the {p} of {pkind} {pvalue}.
SELECT {c}.{title} {joined} WHERE {p}.{pkind} = '{pvalue}'

How many {c} does each {pone} have, also those with none? Give {ptitle} and number.
For every {pone}, even without {c}, show the {ptitle} and the count of its {c}.
Show the {ptitle} of all {p} together with how many {c} they have, zero included.
SELECT {p}.{ptitle}, COUNT({c}.id) FROM {p} LEFT JOIN {c} ON {c}.{pone}_id = {p}.id GROUP BY {p}.id

Which {p} have no {c}? Give the {ptitle}.
List the {ptitle} of {p} without any {c}.
What {p} are there to which not one {one} belongs? Show the {ptitle}.
SELECT {ptitle} FROM {p} WHERE id NOT IN (SELECT {pone}_id FROM {c})

Show the {title} of {c} whose {number} is above the average {number} of all {c}.
Which {c} have more than the mean {number}? Give the {title}.
What {c} beat the overall average in {number}? List the {title}.
SELECT {title} FROM {c} WHERE {number} > (SELECT AVG({number}) FROM {c})

Show the {title} of {c} {date} in {year}.
Which {c} were {date} during {year}? Give the {title}.
Give the {title} of every {one} that was {date} in the year {year}.
SELECT {title} FROM {c} WHERE strftime('%Y', {date}) = '{year}'

What is the total {number} of the {c} by {pkind} of their {pone}? Give the {pkind} and the total.
For each {pkind} of the {p}, add up the {number} of their {c}; show {pkind} and sum.
Per {pkind} of the {p}: the {pkind} and the summed {number} of the {c}.
SELECT {p}.{pkind}, SUM({c}.{number}) {joined} GROUP BY {p}.{pkind}

Which {pone} has the most {c}? Give its {ptitle}.
Show the {ptitle} of the {pone} with the largest number of {c}.
To which {pone} do more {c} belong than to any other? Give the {ptitle}.
SELECT {p}.{ptitle} {joined} GROUP BY {p}.id ORDER BY COUNT(*) DESC LIMIT 1

What percentage of the {c} have the {kind} {value}, rounded to one decimal?
Give the share of {c} whose {kind} is {value}, in percent with one decimal.
Out of all {c}, how many percent are of {kind} {value}? Round to one decimal.
SELECT ROUND(100.0 * SUM({kind} = '{value}') / COUNT(*), 1) FROM {c}

For each {kind}, show the {kind} and the {title} of the {one} with the highest {number}.
Which {one} leads its {kind} in {number}? Give {kind} and {title} for every {kind}.
Give every {kind} with the {title} of its {one} of greatest {number}.
SELECT {kind}, {title} FROM {c} AS a WHERE {number} = (SELECT MAX({number}) FROM {c} WHERE {kind} = a.{kind})

Show the {title} of the {one} that was {date} last among those whose {kind} is {value}.
Of the {c} with {kind} {value}, which was {date} most recently? Give the {title}.
What is the {title} of the newest {one} by the date it was {date}, for {kind} {value}?
SELECT {title} FROM {c} WHERE {kind} = '{value}' ORDER BY {date} DESC LIMIT 1
"""
"""Two wordings that are learned, one that is only measured, and the query."""
JOINED = "FROM {c} JOIN {p} ON {p}.id = {c}.{pone}_id"


def sql_rows(measured: bool, count: int, seed: int) -> list[dict[str, str]]:
    """Rows with `tables`, `prompt`, `completion` and `wording`, no two with the same prompt."""
    chance, rows = random.Random(f"{seed} {measured}"), dict[str, dict[str, str]]()
    kinds = [block.splitlines() for block in QUESTIONS.strip().split("\n\n")]
    while len(rows) < count:
        parent, child = chance.choice(MEASURED if measured else LEARNED)
        made, filled = _statements(parent, child, chance)
        *wordings, query = chance.choice(kinds)
        words = _words(parent, child, chance)
        query = query.replace("{joined}", JOINED).format(**words)
        if _tells(made + filled, query):
            wording = chance.choice(wordings if measured else wordings[:2])
            question = wording.format(**words)
            prompt = f"{made}\n\n{question[0].upper()}{question[1:]}"
            row = {"tables": made + filled, "prompt": prompt, "completion": query, "wording": wording}
            rows.setdefault(prompt, row)
    return list(rows.values())


def _words(parent: Table, child: Table, chance: random.Random) -> dict[str, Any]:
    kind, pkind = chance.choice(list(child.kinds)), chance.choice(list(parent.kinds))
    number = chance.choice(list(child.numbers))
    low, high = child.numbers[number]
    middle = (high - low) // 4
    return {
        "c": child.name, "one": child.one, "title": child.title, "kind": kind, "number": number,
        "value": chance.choice(child.kinds[kind]), "n": chance.randint(low + middle, high - middle),
        "few": chance.randint(3, 8), "date": child.dates[0], "year": chance.randint(2018, 2024), "p": parent.name,
        "pone": parent.one, "ptitle": parent.title, "pkind": pkind, "pvalue": chance.choice(parent.kinds[pkind]),
    }  # fmt: skip


def _statements(parent: Table, child: Table, chance: random.Random) -> tuple[str, str]:
    """What makes the tables, as the model reads it, and what fills them. The last two parents have no children, and are
    of the kinds of the first."""
    made, filled = [], []
    for table, many, extra in ((parent, PARENTS, []), (child, CHILDREN, [f"{parent.one}_id"])):
        columns = ["id INTEGER PRIMARY KEY", f"{table.title} TEXT", *(f"{one} INTEGER" for one in extra)]
        columns += [f"{one} TEXT" for one in table.kinds] + [f"{one} INTEGER" for one in table.numbers]
        columns += [f"{one} DATE" for one in table.dates]
        made.append(f"CREATE TABLE {table.name} ({', '.join(columns)});")
        titles = chance.sample([f"{one} {two}" for one in FIRST for two in SECOND], many)
        kinds = [chance.choices(one, k=many) for one in table.kinds.values()]
        numbers = [chance.sample(range(low, high + 1), many) for low, high in table.numbers.values()]
        days = [chance.sample(range(2557), many) for _ in table.dates]
        for one in [] if extra else kinds:
            one[-2:] = [one[0]] * 2
        values = [
            (at + 1, titles[at], *(chance.randint(1, PARENTS - 2) for _ in extra), *(one[at] for one in kinds),
             *(one[at] for one in numbers), *(str(date(2018, 1, 1) + timedelta(one[at])) for one in days))
            for at in range(many)
        ]  # fmt: skip
        filled.append(f"INSERT INTO {table.name} VALUES {', '.join(map(str, values))};")
    return "\n".join(made), "\n" + "\n".join(filled)


def _tells(tables: str, query: str) -> bool:
    """Whether a wrong query is known by its result: there are rows, none of them empty, and only one is the first."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(tables)
        rows = database.execute(query).fetchall()
        if "COUNT(*) DESC" in query:
            both = "SELECT COUNT(*)" + query[query.index(" FROM") :].replace("LIMIT 1", "LIMIT 2")
            first, second = database.execute(both).fetchall()
            return first != second
    return bool(rows) and None not in rows[0] and rows[0] != (0,)
