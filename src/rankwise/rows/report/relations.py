"""What rows mean beside each other: answers that fit another prompt, and labels that other rows contradict.

At most 4,000 rows are looked at, in stretches of a thousand. Their words decide, each cut to six letters:

    shifted      more answers of a stretch share rare words with the prompt beside theirs than with their own
    labels       p(class) = the product over a row's words of (rows of the class with the word + share of all rows with
                 it) / (rows of the class + 1), the row itself left out; right more often than by chance, or not
    a part       the sums of residuals from row to row go further than those of rows in any order would (Kuiper's test)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rankwise.rows.forms.labels import Labels
from rankwise.rows.report.meaning import CHECKS, LONGER, CutRow, Meaning
from rankwise.rows.report.text_checks import FEW, Check, listed
from rankwise.runs.row_facts import Learned

MANY = 20
"""Rows that a file must have for its parts to be compared."""
LIKELY = 2.0
"""Kuiper's statistic; of rows in any order it is larger one time in a hundred."""
NEIGHBOURS = 400
"""Rows among which those that resemble each other are looked for."""
_WORD = re.compile(r"[\u0e00-\uffff]|[^\W\u0e00-\uffff]+")
Survey = tuple[int, int, str]
"""How many rows, of how many, and three of them."""


def _three(rows: Sequence[CutRow], numbers: np.ndarray) -> str:
    """From the middle of what was found, since its ends are uncertain."""
    apart = max(1, len(numbers) // 4)
    return ", ".join(rows[number].where for number in numbers[len(numbers) // 4 :: apart][:3].tolist())


def shifted(meaning: Meaning, *_: object) -> Survey:
    """Answers of a stretch that fit the prompt before or behind their own better, while other answers do not."""
    rows, best = [row for part in meaning.sample for row in part], (4.0, np.empty(0, np.int64))
    asked, answers = ([{word[:6] for word in _WORD.findall(row[side].lower())} for row in rows] for side in (1, 2))
    found = Counter(word for words in (*asked, *answers) for word in words)
    for beside in (asked[1:] + asked[:1], asked[-1:] + asked[:-1]):
        evidence = [
            sum(np.log(2 * len(rows) / found[word]) * (1 if word in other else -1) for word in answer & (own ^ other))
            for own, other, answer in zip(asked, beside, answers, strict=True)
        ]
        wins = np.sign(np.round(evidence, 9))
        sums = np.concatenate([[0], np.cumsum(np.where(wins < 0, -2, wins))])
        gains = sums - np.minimum.accumulate(sums)
        end = int(gains.argmax())
        begin = int(sums[: end + 1].argmin())
        outside = np.delete(wins, slice(begin, end))
        alone = 3 * (outside > 0).sum() <= (outside < 0).sum() + 1 or (wins > 0).sum() > 3 * (wins < 0).sum()
        if alone and gains[end] > max(best[0], len(rows) / 40):
            best = gains[end], begin + np.flatnonzero(wins[begin:end] > 0)
    return len(best[1]), len(rows), _three(rows, best[1]) if len(best[1]) else ""


def _part(values: np.ndarray) -> tuple[float, np.ndarray]:
    """How far the values of a part are from those of the others, by Kuiper's test, and which rows are the part."""
    apart, inside = values - values.mean(), np.zeros(len(values), bool)
    sums = np.concatenate([[0], np.cumsum(apart)])
    begin, end = sorted((int(sums.argmin()), int(sums.argmax())))
    inside[begin:end] = True
    return float(np.ptp(sums) / max(1e-9, np.sqrt((apart**2).sum()))), inside


def _scores(words: np.ndarray, rows: np.ndarray, classes: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """(C, N) log p of each class by the words of the `learned` rows without the row itself. `words` and `rows` are
    pairs."""
    own = learned[rows]
    found = np.bincount(words[own], minlength=words.max() + 1)
    known = found[words] > 1
    words, rows, own = words[known], rows[known], own[known]
    places, share = classes[rows] * len(found) + words, ((found - 1) / max(1, learned.sum() - 1)).clip(0)
    size = np.bincount(classes[learned], minlength=classes.max() + 1)
    count = np.bincount(places[own], minlength=len(size) * len(found))
    with np.errstate(divide="ignore"):
        each = np.log(count.reshape(-1, len(found)) + share) - np.log(size + 1.0)[:, None]
    scores = np.array([np.bincount(rows, one[words], len(classes)) for one in each])
    without = np.log(count[places] - own + share[words]) - np.log(size[classes] + 1.0 - learned)[rows]
    scores[classes, np.arange(len(classes))] = np.bincount(rows, without, len(classes))
    return np.where(size[:, None] > 0, scores, -np.inf)


def contradicted(meaning: Meaning, _: Labels, learned: Learned) -> Survey:
    """Rows whose words speak for another label: those of a part of the file, or of all of it where the words of rows
    that resemble each other speak for none."""
    rows = [row for part in meaning.sample for row in part]
    texts = [{word[:6] for word in _WORD.findall(row.first.lower()) if not word[0].isdigit()} for row in rows]
    names = {label: number for number, label in enumerate(dict.fromkeys(row.other.strip() for row in rows))}
    if (
        len(rows) < 2 * MANY
        or len(names) < 2
        or 5 * len(names) > len(rows)
        or not any(texts)
        or not learned.are_named(labels=True)
    ):
        return 0, len(rows), ""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(word for words in texts for word in words))}
    words = np.array([numbers[word] for text in texts for word in text])
    of, classes = np.repeat(np.arange(len(rows)), [*map(len, texts)]), np.array([names[r.other.strip()] for r in rows])
    for learns in (np.arange(len(rows)) < len(rows) / 2, np.ones(len(rows), bool)):
        scores = _scores(words, of, classes, learns)
        right = scores.argmax(0) == classes
        far, part = _part(right - (np.bincount(classes, right) / np.bincount(classes).clip(1))[classes])
        if far <= LIKELY:
            continue
        part = part if right[part].mean() < right[~part].mean() else ~part
        if part.sum() >= MANY / 2 and right[part].mean() / 0.65 < right[~part].mean() > 0.6:
            wrong = np.flatnonzero(part & ~right)
            return len(wrong), len(rows), _three(rows, wrong)
    ranks, share = scores.argsort(0).argsort(0), np.bincount(classes, minlength=len(names)) / len(rows)
    above = ranks[classes, np.arange(len(rows))].mean() - share @ ranks.mean(1)
    if above < 2.5 * ranks.std() / np.sqrt(len(rows)) and _alike(texts, numbers) > 0.3:
        wrong = np.flatnonzero(~right)
        return len(wrong), len(rows), _three(rows, wrong)
    return 0, len(rows), ""


def _alike(texts: Sequence[set[str]], numbers: dict[str, int]) -> float:
    """The share of texts that have a third of their words in common with another."""
    some = texts[:: -(-len(texts) // NEIGHBOURS)]
    has = np.zeros((len(some), len(numbers)), np.float32)
    for place, text in enumerate(some):
        has[place, [numbers[word] for word in text]] = 1
    both, size = has @ has.T, has.sum(1)
    shared = both / (size[:, None] + size - both).clip(1)
    return float((np.where(shared < 0.99, shared, 0).max(1) > 1 / 3).mean())


def repeated(meaning: Meaning, *_: object) -> Survey:
    """Rows with the answer of an earlier one, and its question but for punctuation, and an identifier or digits."""
    table = meaning.exchanges.view()
    first = np.sort(np.unique(table[:, [0, 1, 4]], axis=0, return_index=True)[1])
    earliest = np.unique(table[first][:, [1, 4]], axis=0, return_index=True)[1]
    later = np.delete(first, earliest)
    count = len(later) if len(table) >= FEW else 0
    return count, len(table), ", ".join(map(meaning.where, later[:3].tolist()))


def several_in_one(_: Meaning, labels: Labels, learned: Learned) -> Survey:
    """Labels that consist of other labels, or of parts of which each is in another label too."""
    split = {one: [part.strip(" [](){}'\"") for part in re.split(r"[,;|/+&]|\sand\s", one)] for one in labels.counts}
    parts = Counter(part for every in split.values() for part in dict.fromkeys(every))
    joint = [one for one, every in split.items() if len(every) > 1 and all(part and parts[part] > 1 for part in every)]
    count = sum(labels.counts[one] for one in joint) if learned.are_named(labels=True) else 0
    return count, labels.counts.total(), ", ".join([place for one in joint for place in labels.places[one]][:3])


def beside_ratings(_: Meaning, labels: Labels, learned: Learned) -> Survey:
    """A label such as -1 or 99, where all others are numbers that follow one another."""
    numbers = {int(one): one for one in labels.counts if re.fullmatch(r"-?\d{1,4}", one)}
    for odd in (*range(-1, -10, -8), 9, 99, -99, 999, -999):
        rest = [one for one in numbers if one != odd]
        if (odd in numbers and len(numbers) == len(labels.counts) and len(rest) > 2 and min(rest) >= (len(rest) < 4)
                and max(rest) - min(rest) < len(rest) + 2 and not min(rest) <= odd <= max(rest) + 2):  # fmt: skip
            return labels.counts[numbers[odd]], labels.counts.total(), ", ".join(labels.places[numbers[odd]])
    return 0, 0, ""


def _conflicts(meaning: Meaning, *_: object) -> Survey:
    """Rows with the question of another row and not its answer; the example are the first three of them."""
    questions, answers = meaning.exchanges.view()[:, 0], meaning.exchanges.view()[:, 1]
    order = np.lexsort((answers, questions))
    same = questions[order][1:] == questions[order][:-1]
    group = np.concatenate([[0], np.cumsum(~same)]) if len(order) else order
    differs = np.flatnonzero(same & (answers[order][1:] != answers[order][:-1]))
    rows = np.sort(order[np.isin(group, group[differs])])
    firsts = np.sort(np.unique(questions[rows], return_index=True)[1])[:3]
    others = [rows[(questions[rows] == questions[row]) & (answers[rows] != answers[row])][0] for row in rows[firsts]]
    pairs = zip(map(meaning.where, rows[firsts]), map(meaning.where, others), strict=True)
    return len(rows), len(order), ", ".join(map(" and ".join, pairs))


def _one_answer(meaning: Meaning, *_: object) -> Survey:
    rows, of = meaning.exchanges.view(), meaning.rows["all"]
    same = FEW <= len(rows) == of and len(np.unique(rows[:, 1])) == 1
    return (of, of, meaning.where(0)) if same else (0, of, "")


def _label_of_each(_: Meaning, labels: Labels, learned: Learned) -> Survey:
    counts, named = labels.counts, learned.are_named(labels=labels.named)
    if not labels or not named or counts.total() < FEW or max(map(len, counts)) > 60:
        return 0, 0, ""
    rare = [label for label, count in counts.items() if count == 1]
    return len(rare), counts.total(), labels.first[rare[0]] if rare else ""


def _exchanged(meaning: Meaning, *_: object) -> Survey:
    questions, answers = meaning.exchanges.view()[:, 0], meaning.exchanges.view()[:, 1]
    numbers = np.flatnonzero(np.isin(questions, answers) & (questions != answers))
    return len(numbers), len(questions), meaning.where(numbers[0]) if len(numbers) else ""


def _cut(meaning: Meaning, *_: object) -> Survey:
    """Answers of one length that all end within a sentence: many, and many more than of a length near it."""
    lengths, of = meaning.exchanges.view()[:, 5].astype(int), len(meaning.exchanges)
    counts = np.bincount(lengths[lengths >= 8], minlength=3)
    length, most = int(counts.argmax()), int(counts.max())
    near = np.r_[counts[length - 2 : length], counts[length + 1 : length + 3], 1].max()
    rows = np.flatnonzero(lengths == length)
    cut = 10 * most >= of and most >= 5 * near and 2 * len(np.unique(meaning.exchanges.view()[rows, 1])) > most
    return (most, of, listed([meaning.where(row) for row in rows[:3]])) if cut else (0, of, "")


def _too_long(meaning: Meaning, *_: object) -> Survey:
    lengths, (longest, example) = meaning.lengths.view(), meaning.longest
    alone = len(lengths) >= 2 * FEW and longest > LONGER * np.median(lengths)
    return int((lengths > LONGER * np.median(lengths)).sum()) if alone else 0, len(lengths), example


SURVEYS = (
    Check("contradicting-labels", "have the text of another row and another label", "At most one of them can be "
          "right. Correct the labels, or leave such rows out", rows=2, finds=_conflicts, among="labels"),
    Check("several-answers", "have the prompt of another row and another answer", "Correct those that are wrong. "
          "If all are right, write them as a list in one row, so that evaluation accepts each", rows=2, least=0.01,
          most=0.5, finds=_conflicts, among="texts"),
    Check("answers-to-each-prompt", "have the prompt of another row and another answer", "If several answers are "
          "right, write them as a list in one row: evaluation then accepts each, and data.alternatives=each trains on "
          "each. If only one is right, correct the others", least=0.5, finds=_conflicts,
          among="texts"),
    Check("one-answer", "all have the same answer", "The model learns to give it whatever is asked. Take the answer "
          "from another column", stops=1.0, finds=_one_answer),
    Check("label-of-each-row", "have a label that no other row has", "Numbers on a scale need "
          "classification.targets=numbers, and identifiers are no labels: name another column", least=0.5, stops=0.9,
          finds=_label_of_each),
    Check("label-of-one-row", "are the only one with their label", "A single row is trained on or measured, never "
          "both. Add rows of that label, or give the row a wider one", most=0.5, finds=_label_of_each),
    Check("exchanged-columns", "have the answer of another row as their prompt", "Columns may be exchanged in a part "
          "of the file. Look at the first such row and those around it", rows=3, least=0.02, finds=_exchanged),
    Check("repeated-question", "differ from an earlier row only in punctuation, digits or an identifier", "A model "
          "learns them as often, and they may stand in training and validation. Leave them out, or keep copies "
          "together with --group", rows=3, least=0.05, finds=repeated),
    Check("shifted-answers", "have an answer that fits the prompt of the next or previous row better than their own",
          "Answers may have moved by one row. Join them with their prompts again", rows=3, among="texts",
          finds=shifted),
    Check("unlikely-labels", "have another label than their words suggest", "Labels may be shuffled, exchanged or "
          "moved by a row, in the whole file or a part of it. Take them from their source again", rows=3,
          among="labels", finds=contradicted),
    Check("several-labels", "have several labels in one text, which counts as a class of its own", "Write a list, such "
          'as ["a", "b"], and add --objective sequence-classification', rows=2, among="labels",
          finds=several_in_one),
    Check("no-rating", "have a number apart from all other ratings as their label, perhaps for a missing one",
          "Leave them out. With classification.targets=numbers ratings are learned as numbers", among="labels",
          finds=beside_ratings),
    Check("cut-at-one-length", "have an answer that breaks off at the same number of characters", "A program or a "
          "column may have cut them. Take the whole answers", rows=4, finds=_cut, among="texts"),
    Check("much-longer-row", f"are more than {LONGER} times as long as the median", "Two rows may have run together, "
          "for example after a quote that is never closed", most=0.1, finds=_too_long),
)  # fmt: skip
STOPPING = tuple(check.name for check in (*CHECKS, *SURVEYS) if check.stops is not None)
