"""What rows mean, by planted rows: each trap is said with its rows, its first place and what to do; its twin is not.

A trap changes some rows of a clean set, and its twin changes them nearly so and rightly.
"""

import json
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from rankwise.commands.data import count_only
from rankwise.config.classification import ClassificationConfig
from rankwise.config.data import DataConfig, StoppingCheck
from rankwise.errors import DataError
from rankwise.rows.classes import read_targets
from rankwise.rows.preparation import prepared_of
from rankwise.rows.preparing import refuse_fatal
from rankwise.rows.reading import Encoding
from rankwise.rows.report.meaning import CHECKS
from rankwise.rows.report.relations import STOPPING, SURVEYS
from rankwise.rows.text.outcome import EncodingFacts
from rankwise.runs.records import silent
from rankwise.runs.row_facts import ANSWERS

WORDS = ["lamp", "kettle", "ladder", "pillow", "carpet", "mirror", "candle", "basket", "hammer", "bucket"]
QUESTIONS = [
    {"prompt": f"Who mends the {WORDS[n % 10]} of house {n}?", "completion": f"Its {WORDS[n // 10]}maker, on day {n}."}
    for n in range(40)
]
TICKETS = [
    {
        "text": f"My {WORDS[n % 10]} number {n} {('costs too much', 'goes back', 'came late')[n % 3]}.",
        "label": ("billing", "returns", "delivery")[n % 3],
    }
    for n in range(42)
]
SCORES = [{"text": one["text"], "label": f"{n % 7 + 1}.5"} for n, one in enumerate(TICKETS)]
PAIRS = [
    {"prompt": f"How is house {n}?", "chosen": "fine" + " indeed" * (n % 3), "rejected": "bad" + " indeed" * (n % 2)}
    for n in range(40)
]
SYSTEM = [one | {"system": "Be brief."} for one in QUESTIONS]
CLEAN = {"questions": QUESTIONS, "tickets": TICKETS, "pairs": PAIRS, "system": SYSTEM}
CLEAN |= {
    what: [QUESTIONS[n] if n % 4 else dict(zip(("prompt", "completion"), one(n), strict=True)) for n in range(40)]
    for what, one in {
        "figures": lambda n: (f"Show house {n}.", f'<figure><img src="{n}.png"><br>House {n}.</figure>'),
        "failures that are asked about": lambda n: (
            f"House {n} says Error 503. Any idea?",
            f"The server of the {WORDS[n % 10]} is overloaded until {n}.",
        ),
        "blanks in letters": lambda n: (
            f"Write a letter to house {n}.",
            f"Dear [Your Name], the {WORDS[n % 10]} of house {n} was mended. It is ready at our shop, {n} High Street.",
        ),
    }.items()
}
OFFER = [{"type": "function", "function": {"name": "mend", "parameters": {"type": "object", "properties": {}}}}]
CLEAN["refusals for want of a tool"] = [
    {"tools": OFFER, "messages": [
        {"role": "user", "content": one["prompt"]},
        {"role": "assistant", "content": one["completion"] if n % 4 else f"I'm sorry, I can't help with house {n}."},
    ]}
    for n, one in enumerate(QUESTIONS)
]  # fmt: skip


@dataclass(frozen=True)
class Trap:
    """`change` makes a row of the set wrong, from its number `n` and the row `one`; only those in `at`."""

    name: str
    rows: list
    change: object
    says: str
    twin: object = None
    """A change for the same rows that nothing is said of; without it the set as it is."""
    at: range = range(100)
    settings: tuple = ()
    stops: bool = False
    classifies: bool = False


def answer(write):
    return lambda n, one: one | {("label" if "label" in one else "completion"): write(n, one)}


def question(write):
    return lambda n, one: one | {("text" if "text" in one else "prompt"): write(n, one)}


def appended(text):
    return question(lambda n, one: f"{one.get('text') or one.get('prompt')} {text}")


def turns(*roles):
    def change(n, one):
        given = {"user": one["prompt"], "assistant": one["completion"]}
        pairs = [role if isinstance(role, tuple) else (role, given[role]) for role in roles]
        return {"messages": [{"role": role, "content": content} for role, content in pairs]}

    return change


PRINTED = "have what a program printed in place of a text, such as {'a': None}, ['x'], b'…' or JSON inside quotes"
IN_PROMPT = (
    "have their answer or label word for word in the prompt: {}, such as rows.jsonl:1, rows.jsonl:2 and "
    "rows.jsonl:3. The model learns to"
)
MISSING = "have a placeholder for a missing value as their answer or label"
KEYS, CARD = "have what looks like a key or token of a service", "have what looks like the number of a payment card"
INVISIBLE = (
    "have invisible characters in their text (byte order marks, zero-width spaces): 3 of 40, such as rows.jsonl:1, "
    "rows.jsonl:2 and rows.jsonl:3. They"
)
ENCODING = (
    "have text that was decoded wrongly, such as Ã© for é or â€™ for an apostrophe: 1 of 40, such as rows.jsonl:3. Read"
)
TRAPS = [
    # the answer stands in the input
    Trap("label behind the text", TICKETS, question(lambda n, one: f"{one['text']} {one['label']}"),
         IN_PROMPT.format("42 of 42"), twin=appended("(billing, returns or delivery?)"), stops=True),
    Trap("label through a prompt", TICKETS, lambda n, one: one, IN_PROMPT.format("42 of 42"), stops=True,
         settings=(("prompt", "{text} {label}"), ("completion", "{label}"))),
    Trap("label as text_pair", TICKETS, lambda n, one: one | {"text_pair": one["label"]}, IN_PROMPT.format("42 of 42"),
         twin=lambda n, one: one | {"text_pair": f"No. {n}"}, stops=True, classifies=True),
    Trap("label in six of ten texts", TICKETS, question(lambda n, one: f"{one['label']}: {one['text']}"),
         "in the prompt: 25 of 42, such as", at=range(25), twin=appended("rebilling returnsX deliveryman")),
    Trap("answer in the prompt", QUESTIONS, question(lambda n, one: f"{one['prompt']} {one['completion']} So?"),
         IN_PROMPT.format("40 of 40"), twin=question(lambda n, one: f"{one['prompt']} {one['completion'][:-9]}x So?")),
    # answers that teach nothing
    Trap("prompt as answer", QUESTIONS, answer(lambda n, one: one["prompt"]),
         "have the prompt itself as their answer: 40 of 40, such as rows.jsonl:1, rows.jsonl:2 and rows.jsonl:3. The "
         "model learns to repeat what "
         "it is given. Take the answer from another column", stops=True),
    Trap("prompt as answer in five rows", QUESTIONS, answer(lambda n, one: one["prompt"]),
         "have the prompt itself as their answer: 5 of 40, such as rows.jsonl:4", at=range(3, 8)),
    Trap("answer repeats the prompt", QUESTIONS, answer(lambda n, one: f"{one['prompt']} {one['completion']}"),
         "have an answer that begins with the whole prompt: 40 of 40, such as rows.jsonl:1, rows.jsonl:2 and "
         "rows.jsonl:3. The model learns to "
         "repeat the question first", twin=answer(lambda n, one: f"{one['prompt'][:-1]} {one['completion']}")),
    Trap("one answer for all", QUESTIONS, answer(lambda n, one: "Thanks"),
         "all have the same answer: 40 of 40, such as rows.jsonl:1", twin=answer(lambda n, one: f"Thanks {n}"),
         stops=True),
    Trap("a label of each row", TICKETS, answer(lambda n, one: f"T-{n}"),
         "have a label that no other row has: 42 of 42, such as rows.jsonl:1. Numbers on a scale need "
         "classification.targets=numbers, and identifiers are no labels", stops=True, classifies=True),
    Trap("a label of each row, for a language model", TICKETS, answer(lambda n, one: f"T-{n}"),
         "have a label that no other row has: 42 of 42, such as rows.jsonl:1"),
    Trap("a class of one row", TICKETS, answer(lambda n, one: "sabotage"),
         "are the only one with their label: 1 of 42, such as rows.jsonl:8", at=range(7, 8), classifies=True),
    # the same question, several answers
    Trap("contradicting labels", TICKETS, question(lambda n, one: f"Late {n // 2}"),
         "have the text of another row and another label: 20 of 42, such as rows.jsonl:1 and rows.jsonl:2, "
         "rows.jsonl:3 and rows.jsonl:4, rows.jsonl:5 and rows.jsonl:6. At most one of them can be right",
         at=range(20)),
    Trap("contradicting answers", QUESTIONS, question(lambda n, one: " Who? " if n % 2 else "who?"),
         "have the prompt of another row and another answer: 4 of 40, such as rows.jsonl:1 and rows.jsonl:2. ",
         at=range(4), twin=lambda n, one: {"prompt": "Who?", "completion": " me" if n % 2 else "Me "}),
    Trap("two answers to each prompt", QUESTIONS, question(lambda n, one: f"Who mends house {n // 2}?"),
         "have the prompt of another row and another answer: 40 of 40, such as rows.jsonl:1 and rows.jsonl:2, "
         "rows.jsonl:3 and rows.jsonl:4, rows.jsonl:5 and rows.jsonl:6. If several answers are right, write them",
         twin=lambda n, one: {"prompt": f"Who mends house {n // 2}?", "completion": [f"we {n // 2}", "me"]}),
    Trap("one text, two sets of labels", TICKETS, lambda n, one: {"text": "same", "label": [f"x{n % 2}"]},
         "have the text of another row and another label: 42 of 42, such as rows.jsonl:1 and rows.jsonl:2. At most",
         twin=lambda n, one: one | {"label": [f"x{n % 2}"]}, classifies=True),
    Trap("contradicting pairs", PAIRS, lambda n, one: {"prompt": "p", "chosen": "ab"[n], "rejected": "ba"[n]},
         "pairs that contradict another pair with the same prompt: 2", at=range(2)),
    # signs for missing values
    *(Trap(f"the answer {sign!r}", QUESTIONS, answer(lambda n, one, sign=sign: sign),
           f"{MISSING}, such as None, NaN, N/A or -: 3 of 40, such as rows.jsonl:2, rows.jsonl:3 and rows.jsonl:4. "
           f"Programs write these",
           at=range(1, 4), twin=answer(lambda n, one, sign=sign: f"{sign} of them {n}"))
      for sign in ("None", "NaN", "nan", "null", "N/A", "-")),
    Trap("the label nan", TICKETS, answer(lambda n, one: "nan"),
         f"{MISSING}, such as None, NaN, N/A or -: 4 of 42, such as rows.jsonl:1", at=range(4)),
    # numbers and dates as labels
    Trap("decimal commas as classes", SCORES, answer(lambda n, one: one["label"].replace(".", ",")),
         "have a number with a decimal comma as their label: 42 of 42, such as rows.jsonl:1, rows.jsonl:2 and "
         "rows.jsonl:3. Each is taken as a name, "
         "so as a class of its own. Write numbers on a scale with a point: 1234.5", classifies=True),
    Trap("thousands separators and a comma", SCORES, answer(lambda n, one: f"1.23{n % 7},5"),
         "have a number with a decimal comma as their label", classifies=True),
    Trap("thousands separators", SCORES, answer(lambda n, one: f"1{n % 7}.345"),
         "have a label that may be a number with thousands separators, such as 12.345 for 12345: 42 of 42, "
         "such as rows.jsonl:1, rows.jsonl:2 and rows.jsonl:3. They are read as "
         "numbers", twin=answer(lambda n, one: f"{n % 7}.345"), classifies=True),
    Trap("dates as classes", TICKETS, answer(lambda n, one: f"2024-01-{n % 7 + 10}"),
         "have a date as their label: 42 of 42, such as rows.jsonl:1, rows.jsonl:2 and rows.jsonl:3. Each is taken "
         "as a name", classifies=True),
    Trap("dates as texts", TICKETS, answer(lambda n, one: f"1{n % 7}.01.2024"),
         "have a date as their label: 42 of 42, such as rows.jsonl:1, rows.jsonl:2 and rows.jsonl:3. They are "
         "learned as texts"),
    Trap("shortened numbers", TICKETS, answer(lambda n, one: f"1.23457E+{12 + n % 2}"),
         "have a long number that a spreadsheet has shortened, such as 1.23457E+15: 42 of 42, such as rows.jsonl:1, "
         "rows.jsonl:2 and rows.jsonl:3. "
         "Its last digits are lost", twin=answer(lambda n, one: f"1.23457E-{2 + n % 2}")),
    Trap("labels as numbers and texts", TICKETS, answer(lambda n, one: n % 2 if n < 30 else str(n % 2)),
         'labels are written in several ways, and 1, 1.0 and "1" are one label: whole number (30 rows, first '
         "rows.jsonl:1), text (12 rows, first rows.jsonl:31)", twin=answer(lambda n, one: n % 2)),
    Trap("0.0 and 0", TICKETS, answer(lambda n, one: n % 2 if n < 30 else float(n % 2)),
         "whole number as 1.0 (12 rows, first rows.jsonl:31)", twin=answer(lambda n, one: (n % 9 / 2) or 0)),
    # what happened to the file
    Trap("a header again", QUESTIONS, lambda n, one: {name: name for name in one},
         "repeat the names of the columns: 2 of 40, such as rows.jsonl:21", at=range(20, 22)),
    Trap("exchanged columns", TICKETS, lambda n, one: {"text": one["label"], "label": one["text"]},
         "have the answer of another row as their prompt: 12 of 42, such as rows.jsonl:31. Columns may be "
         "exchanged in a part of the file", at=range(30, 42)),
    Trap("a row that swallowed others", QUESTIONS, answer(lambda n, one: "and more " * 1000),
         "are more than 100 times as long as the median: 1 of 40, such as rows.jsonl:6. Two rows may have run "
         "together", at=range(5, 6), twin=answer(lambda n, one: "and more " * 400)),
    Trap("byte order marks", QUESTIONS, appended("\ufeff"), INVISIBLE, at=range(3)),
    Trap("zero-width spaces", QUESTIONS, answer(lambda n, one: f"well,\u200b {n}"), INVISIBLE,
         at=range(3), twin=answer(lambda n, one: f"\U0001f469\u200d\U0001f680 flies {n}")),
    Trap("an answer of zero-width spaces", QUESTIONS, answer(lambda n, one: "\u200b "),
         "have an answer that consists only of invisible characters: 1 of 40, such as rows.jsonl:9. Leave such rows "
         "out",
         at=range(8, 9)),
    Trap("UTF-8 read as cp1252", QUESTIONS, appended("the café’s".encode().decode("cp1252")), ENCODING,
         at=range(2, 3), twin=appended("the café’s")),
    Trap("UTF-8 read as Latin-1", QUESTIONS, appended("’s".encode().decode("latin-1")), ENCODING,
         at=range(2, 3), twin=appended("NÃO, Â e â")),
    Trap("HTML entities", QUESTIONS, appended("R&amp;D"),
         "have HTML entities in their text, such as &amp; or &#39;: 40 of 40, such as rows.jsonl:1",
         twin=appended("R&D; <b>&amp;</b>")),
    # white space around answers
    Trap("a space before some answers", QUESTIONS, answer(lambda n, one: f" {one['completion']}"),
         "have an answer that begins with white space, unlike the others: 20 of 40, such as rows.jsonl:1",
         at=range(20)),
    Trap("a space behind answers", QUESTIONS, answer(lambda n, one: f"{one['completion']} " + "\n" * (n % 2)),
         "have an answer that ends with a space, which the model learns to write: 40 of 40, such as rows.jsonl:1",
         twin=answer(lambda n, one: f"{one['completion']}\n")),
    Trap("a line end behind some answers", QUESTIONS, answer(lambda n, one: f"{one['completion']}\n"),
         "have an answer that ends with a line end, unlike the others: 36 of 40, such as rows.jsonl:2",
         at=range(1, 37), twin=answer(lambda n, one: f"{n}\n\nend")),
    # rows beside each other
    Trap("answers moved by one row", QUESTIONS, answer(lambda n, one: QUESTIONS[(n + 1) % 40]["completion"]),
         "have an answer that fits the prompt of the next or previous row better than their own: 40 of 40, such as "
         "rows.jsonl:11, rows.jsonl:21, rows.jsonl:31. Answers may"),
    Trap("answers moved from row 21 on", QUESTIONS, answer(lambda n, one: QUESTIONS[n - 1]["completion"]),
         "next or previous row better than their own: 20 of 40, such as rows.jsonl:26, rows.jsonl:31, rows.jsonl:36",
         at=range(20, 40), twin=answer(lambda n, one: "I do not know.")),
    Trap("labels in any order", TICKETS, answer(lambda n, one: TICKETS[n * 23 % 42 // 14]["label"]),
         "have another label than their words suggest: "),
    Trap("labels exchanged from row 29 on", TICKETS, answer(lambda n, one: TICKETS[n + 1]["label"]),
         "have another label than their words suggest: 13 of 42, such as rows.jsonl:32, rows.jsonl:35, rows.jsonl:38",
         at=range(28, 41)),
    Trap("questions again under other numbers", QUESTIONS,
         lambda n, one: {"prompt": f"[id {n}] {QUESTIONS[n % 10]['prompt']}", "completion": f"Me {n % 10}."},
         "differ from an earlier row only in punctuation, digits or an identifier: 30 of 40, such as rows.jsonl:11, "
         "rows.jsonl:12, rows.jsonl:13. A", twin=lambda n, one: {"prompt": f"{n} + 1 = ?", "completion": f"{n + 1}"}),
    Trap("several labels in one", TICKETS, answer(lambda n, one: ("billing,returns", "returns, billing")[n % 2]),
         "have several labels in one text, which counts as a class of its own: 6 of 42, such as rows.jsonl:1, "
         "rows.jsonl:3, rows.jsonl:5. Write", at=range(6), classifies=True,
         twin=answer(lambda n, one: ("bills, paid", "returns/late")[n % 2])),
    Trap("-1 beside ratings", TICKETS, answer(lambda n, one: n % 5 + 1 if n % 6 else -1),
         "have a number apart from all other ratings as their label, perhaps for a missing one: 7 of 42, such as "
         "rows.jsonl:1, rows.jsonl:7, rows.jsonl:13. Leave", classifies=True,
         twin=answer(lambda n, one: n % 3 - 1)),
    # what programs, services and cuts leave
    *(Trap(f"{what[5:30]}: {text[:20]!r}", QUESTIONS, answer(lambda n, one, text=text: text.format(n=n)),
           f"{what}: 6 of 40, such as rows.jsonl:3, rows.jsonl:4 and rows.jsonl:5. ", at=range(2, 8),
           twin=answer(lambda n, one, like=like: like.format(n=n)))
      for what, text, like in (
          (PRINTED, "{{'a': 1, 'b': None, 'n': {n}}}", '{{"a": 1, "b": null, "n": {n}}}'),
          (PRINTED, "['w{n}', 'x']", '["w{n}", "x"]'), (PRINTED, "b'well {n}'", "plan b's end {n}"),
          (PRINTED, '"{{\\"a\\": {n}}}"', '"a" and {n}'),
          ("have escapes as text, such as a backslash and n for a line end", "a day\\nand {n}", "so \\neq {n}"),
          ("have HTML tags in their text, and are not about markup", "<p>day {n}</p>", "2 < {n} > 1"),
          ("have their prompt or answer in base64", "YmlsbGluZyBvZiB0aGUgbGFtcA==", "BillingOfTheLampAt{n}"),
          ("have an answer that breaks off with … or ...", "It was a day of…", "1, 2, {n}, ..."),
          ("have a placeholder as their answer or in it, such as TODO, TBD or lorem ipsum", "[TODO: {n}]", "Todo "
          "bien {n}"),
          ("have a failure of a program or service as their answer, such as Error: rate limit exceeded", "Error: "
          "rate limit exceeded", "Error {n} means it"),
          ("have an answer that refuses, such as: As an AI language model I cannot", "I'm sorry, but I cannot help "
          "with that.", "I'm sorry, but it broke {n}."),
          ("have an answer that refuses, such as: As an AI language model I cannot", "Als KI-Sprachmodell kann ich "
          "das nicht.", "Als Kind war ich {n}."),
          ("have an answer that goes on with the next turn, such as User:", "Day {n}.\nUser: and then?", "Day "
          "{n}.\nUsers may come."),
          ("have an answer in another language than their prompt, unlike the others", "Er ist nicht auf der Bank mit "
          "dem Hut {n}.", "He is on it {n}."),
      )),
    Trap("answers cut at 24", QUESTIONS, answer(lambda n, one: (f"{chr(97 + n)} " + "of the maker" * 3)[:24]),
         "have an answer that breaks off at the same number of characters: 40 of 40, such as rows.jsonl:1, "
         "rows.jsonl:2 and rows.jsonl:3. ", twin=answer(lambda n, one: f"{chr(97 + n)} " + "of the maker" * 2 + ".")),
    Trap("a transcript as prompt", QUESTIONS, question(lambda n, one: f"User: {one['prompt']}\nAssistant:"),
         "look as if a chat template had already been applied", twin=appended("Users: 7.")),
    Trap("exchanged roles", QUESTIONS, lambda n, one: {"prompt": one["completion"], "completion": one["prompt"]},
         "have a statement as their prompt and a question as their answer: 40 of 40"),
    Trap("an empty system message", QUESTIONS, turns(("system", " "), "user", "assistant"),
         "have an empty system message: 40 of 40", twin=turns(("system", "Be kind."), "user", "assistant")),
    Trap("two turns of one role", QUESTIONS, turns("user", ("user", "Please."), "assistant"),
         "have two turns of one role in a row: 40 of 40", twin=turns("user", "assistant")),
    Trap("the answer in the system message", QUESTIONS, lambda n, one: one | {"system": f"Say {one['completion']}"},
         "have their answer word for word in the system message: 40 of "
         "40", twin=lambda n, one: one | {"system": "Go."}),
    # pairs
    Trap("chosen is longer", PAIRS, lambda n, one: one | {"chosen": "good " * 9 + str(n)},
         "are pairs whose chosen answer is the longer one: 40 of 40, such as rows.jsonl:1, rows.jsonl:2 and "
         "rows.jsonl:3. The model may learn "
         "nothing but to write more"),
    Trap("chosen is shorter", PAIRS, lambda n, one: one | {"rejected": "good " * 9 + str(n)},
         "are pairs whose chosen answer is the shorter one: 40 of 40, such as rows.jsonl:1"),
    Trap("system messages in half", QUESTIONS, lambda n, one: one | {"system": "Be kind."},
         "have a system message, and the others have none: 20 of 40, such as rows.jsonl:1", at=range(20)),
    # what a model should not repeat
    *(Trap(f"a secret: {secret[:9]}", QUESTIONS, appended(secret), f"{what}: 1 of 40, such as rows.jsonl:2. A",
           at=range(1, 2), twin=appended(like))
      for what, secret, like in (
          (KEYS, "api_key=sk-" + "a1B2" * 6, "a risk-averse-and-careful-approach"), (KEYS, "AKIA" + "Q7" * 8, "AKIA"),
          (KEYS, "token: " + "0a1b" * 8, "a token: something-that-is-long"),
          (KEYS, "-----BEGIN RSA PRIVATE KEY-----", "a PRIVATE KEY"),
          (CARD, "4111 1111 1111 1111", "4111 1111 1111 1112"), (CARD, "378282246310005", "x378282246310005"),
          ("have what looks like a password", "password: hunter22", "password = input(2)"),
          ("have e-mail addresses", "write to jo@firm.org", "write to jo@example.com"),
      )),
]  # fmt: skip


def report_of(folder, rows, *, classifies=False, **settings):
    """By a relative name, as the sentences give it."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    settings |= {"format": "preference"} if "chosen" in rows[0] else {}
    spec = DataConfig(path="rows.jsonl", **settings)
    learned = read_targets(spec, ClassificationConfig()) if classifies else ANSWERS
    work = Encoding(spec, None, EncodingFacts(learned))
    return prepared_of(work, work.read(None)).data_report


def with_change(trap, change):
    return [change(n, one) if n in trap.at else one for n, one in enumerate(trap.rows)]


@pytest.mark.parametrize("name", CLEAN)
def test_of_clean_rows_nothing_is_said(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = report_of(tmp_path, CLEAN[name])
    assert not report.doubts and not report.fatal
    assert all("nearly repeat" in one for one in report.warnings), report.warnings


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_a_trap_is_said_and_its_twin_is_not(trap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = dict(trap.settings) | {"classifies": trap.classifies}
    report = report_of(tmp_path, with_change(trap, trap.change), **settings)
    (said,) = [one for one in (*report.warnings, *report.fatal) if trap.says in one]
    assert (said in report.fatal) == trap.stops
    assert all(secret not in said for secret in ("a1B2", "Q7", "4111", "hunter22", "firm.org")), "never printed"
    twin = report_of(tmp_path, with_change(trap, trap.twin or (lambda n, one: one)),
                     **settings | {"prompt": None, "completion": None} if trap.settings else settings)  # fmt: skip
    assert not [one for one in (*twin.warnings, *twin.fatal) if trap.says.partition(": ")[0] in one]


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if trap.stops], ids=lambda trap: trap.name)
def test_what_stops_names_a_way_round_that_works_and_measuring_needs_none(trap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = dict(trap.settings) | {"classifies": trap.classifies}
    report = report_of(tmp_path, with_change(trap, trap.change), **settings)
    with pytest.raises(DataError) as refused:
        refuse_fatal(report)
    refuse_fatal(report, trains=False)
    _, _, name = str(refused.value).removesuffix(".").rpartition("add --set data.accept=")
    accepted = report_of(tmp_path, with_change(trap, trap.change), accept=name, **settings)
    assert not accepted.fatal and any(trap.says in one for one in accepted.warnings)


def test_each_check_has_a_trap_and_each_that_stops_is_a_value_of_the_setting():
    assert set(STOPPING) == set(get_args(StoppingCheck))
    for check in (*CHECKS, *SURVEYS):
        assert any(check.what[:25] in trap.says for trap in TRAPS), check.name
    assert len(TRAPS) >= 40


def test_validation_prompts_that_differ_in_marks_and_numbering_alone_are_training_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = [one | {"prompt": f"({n}) {one['prompt'][:-1].upper()} !"} for n, one in enumerate(QUESTIONS)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own[:12]))
    report = report_of(tmp_path, QUESTIONS, validation={"path": "own.jsonl"})
    said = (
        "validation prompts that are also in the training rows: 12 exactly and 0 nearly, of 12, such as own.jsonl:1, "
    )
    assert [one for one in report.warnings if one.startswith(f"{said}own.jsonl:2, own.jsonl:3")]


def test_rows_of_empty_cells_are_counted_in_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + "".join(f"who {n}?,me {n}\n" for n in range(5)) + ",,\n,\n\nwho?,I\n")
    path.write_text(path.read_text().replace(",,", ","))
    report = count_only(DataConfig(path=str(path)), silent)
    assert f"{path}: rows of empty cells, which are left out: 2, the first in line 7" in report.warnings
    assert report.rows == 6
