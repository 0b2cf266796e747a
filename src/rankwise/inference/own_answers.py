"""A base's own answers to general instructions, as rows to train on.

    row = the ids of a prompt, as the run's chat template writes it, and those that the base drew after it

An answer is drawn at temperature 1, so what its row teaches is what the base does: at the base, the expected gradient
of such a row is zero. The loss falls on the drawn tokens alone, and on the end token only where the base wrote one. Of
each instruction there are several answers, each drawn once for a base and a template; they lie in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.config.forgetting import ANSWER_TOKENS
from rankwise.config.generation import GenerationConfig
from rankwise.data.instructions import instructions
from rankwise.errors import DataError
from rankwise.inference.generate import answers_in_turn, asking_ids
from rankwise.inference.written import entry, recalled, store
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.memory import is_limited
from rankwise.text.example import Message
from rankwise.text.tokenize import Tokens

VERSION = 1


def own_answers(model: LoadedModel, draws: int, limit: int, callback: Callback) -> list[Tokens]:
    """So many answers of the model as it is now, which must be the base, to each instruction that fills at most half of
    a row of `limit` tokens. DataError where none does."""
    limit = min(limit, model.context_length or limit)
    prompts = [ids for ids in _prompts(model) if 2 * len(ids) <= limit]
    if not prompts:
        raise DataError(
            f"no general instruction is shorter than half of a row of {limit} tokens (data.max_length), so the base "
            "cannot answer any for replay. Raise --max-length, or name rows of your own (--replay-data)."
        )
    new = min(ANSWER_TOKENS, limit - max(map(len, prompts)))
    file = entry("answers", VERSION, model, model.template.identity, model.template.end_ids, prompts, new)
    tensors = recalled(file)
    drawn = _read(tensors, prompts, model.vocabulary)
    missing = range(len(drawn), draws)
    if missing:
        answers = len(missing) * len(prompts)
        callback(StatusMessage(f"the base writes {answers} answers to general instructions for replay, once"))
        for draw in missing:
            drawn.append(_draw(model, prompts, new, draw, draws, callback))
        store(file, _tensors(drawn), "the base's answers", callback)
    return [_row(prompt, answer) for answers in drawn[:draws] for prompt, answer in zip(prompts, answers, strict=True)]


def _prompts(model: LoadedModel) -> list[tuple[int, ...]]:
    return [tuple(asking_ids(model, [Message("user", text)])) for text in instructions()]


def _draw(
    model: LoadedModel, prompts: Sequence[Sequence[int]], new: int, draw: int, draws: int, callback: Callback
) -> list[tuple[int, ...]]:
    """One answer to each prompt."""
    settings = GenerationConfig(max_new_tokens=new, temperature=1.0, seed=draw)
    whole = draws * len(prompts)

    def report(done: int) -> None:
        callback(ProgressUpdate("Answering for replay", draw * len(prompts) + done, whole, "answers"))

    roomy = not is_limited()
    answers = answers_in_turn(model, prompts, settings, on_progress=report, lay_out=roomy)
    return [answer.ids for answer in answers]


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    ids = (*prompt, *answer)
    return Tokens(ids, tuple(place >= len(prompt) for place in range(len(ids))))


def _tensors(drawn: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for number, answers in enumerate(drawn):
        made[f"{number}.ids"] = torch.tensor([token for answer in answers for token in answer], dtype=torch.int64)
        made[f"{number}.lengths"] = torch.tensor([len(answer) for answer in answers])
    return made


def _read(tensors: dict[str, Tensor], prompts: Sequence[object], vocabulary: int) -> list[list[tuple[int, ...]]]:
    """The answers of each draw; none where what was stored is damaged."""
    drawn: list[list[tuple[int, ...]]] = []
    while (ids := tensors.get(f"{len(drawn)}.ids")) is not None:
        lengths = tensors.get(f"{len(drawn)}.lengths")
        if lengths is None or not _fits(ids, lengths, len(prompts), vocabulary):
            return []
        drawn.append([tuple(part.tolist()) for part in ids.split(lengths.tolist())])
    return drawn if 2 * len(drawn) == len(tensors) else []


def _fits(ids: Tensor, lengths: Tensor, answers: int, vocabulary: int) -> bool:
    whole = ids.dtype == lengths.dtype == torch.int64 and ids.dim() == 1 and lengths.shape == (answers,)
    if not whole or int(lengths.min()) < 0 or int(lengths.sum()) != len(ids):
        return False
    return not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < vocabulary
