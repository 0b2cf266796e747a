"""Answers behind the questions of other rows: does a model use the question at all?

    content = loss of a row's answer behind another row's question - its loss behind its own

A model that has only learned which answers occur, and how they are written, loses nothing when questions are swapped.
Where the answers of the rows were never related to their questions, own and other questions are exchangeable, so the
content is 0 on average whatever the model has learned. The answer's tokens are the same on both sides, so that each row
is compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.rows.text.tokenize import Tokens


def with_other_questions(rows: Sequence[Tokens], seed: int, longest: int | None = None) -> list[Tokens] | None:
    """Each row's answers behind the first question of another row, which no two rows share. None where a row has no
    question, or there are no two different ones. An answer that would not fit into `longest` keeps its own question."""
    begins = [first_answer(row) for row in rows]
    questions = [tuple(map(int, row.ids[:begin])) for row, begin in zip(rows, begins, strict=True)]
    if min(begins, default=0) < 2 or len(set(questions)) < 2:
        return None
    order = np.random.default_rng([seed, 7]).permutation(len(rows))
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    swapped: list[Tokens] = []
    for at, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        question = questions[partner[at]]
        answer, learned = tuple(map(int, row.ids[begin:])), tuple(map(bool, row.loss_mask[begin:]))
        fits = longest is None or len(question) + len(answer) <= longest
        swapped.append(Tokens((*question, *answer), (*[False] * len(question), *learned)) if fits else row)
    return swapped


def first_answer(row: Tokens) -> int:
    """Where the first token in the loss stands."""
    return int(np.argmax(np.asarray(row.loss_mask, bool)))
