"""Random pairs of answers, as the data layer gives them to an objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.objectives.preference.encode import pair_of
from rankwise.rows.text.tokenize import Tokens

VOCABULARY = 96


def conversation(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    return Tokens([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


def random_pairs(count: int, seed: int = 0, *, longest: int = 17, referenced: bool = True) -> list[Tokens]:
    """Of prompts and answers of different lengths; the log-probabilities before training are made up."""
    random, pairs = np.random.default_rng(seed), []
    for number in range(count):
        prompt, chosen, rejected = (random.integers(1, VOCABULARY, random.integers(1, longest)) for _ in range(3))
        pair = pair_of(conversation(prompt, chosen), conversation(prompt, rejected), f"pairs.jsonl:{number + 1}")
        reference = -5.0 * np.array([len(chosen), len(rejected)]) + random.normal(size=2)
        pairs.append(Tokens(
            pair.ids, pair.loss_mask, token_type_ids=pair.token_type_ids, name=pair.name,
            reference=reference if referenced else None,
        ))  # fmt: skip
    return pairs
