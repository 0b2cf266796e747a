"""Answers for the Ask screen: of several adapters over one base side by side, and else of one model alone."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rankwise.config.validation import GenerationConfig
from rankwise.errors import RankwiseError, RunError, typed
from rankwise.inference.batch import ByRow, GrowingBatch
from rankwise.inference.decoding import Draft, TextCallback
from rankwise.inference.generate import asking_ids
from rankwise.inference.prefixes import Prefixes
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.registry import text_objective
from rankwise.rows.text.example import Message
from rankwise.runs.records import Callback
from rankwise.serving.bodies import BadRequest, ChatBody
from rankwise.serving.questions import chat_question, served_by
from rankwise.serving.served import Serving, load_serving
from rankwise.studio.asking import BASE, USUAL, Answering, AskBody, Send, Side

ROLES = ("user", "assistant")


def load(names: Sequence[str], callback: Callback) -> Answering:
    artifacts = [open_artifact(name, callback) for name in names]
    alone = [why for one in artifacts if (why := one.why_not("asked beside others")) is not None]
    if alone and len(artifacts) > 1:
        raise RunError(alone[0])
    if alone:
        return SeparateAnswers(load_tuned(artifacts[0], callback))
    try:
        return SharedAnswers(load_serving(names, callback))
    except RunError:
        if len(artifacts) > 1:
            raise
        return SeparateAnswers(load_tuned(artifacts[0], callback))


class SharedAnswers:
    """Several adapters over one base: each side has a batch of its own, and gets a token in its turn."""

    def __init__(self, serving: Serving) -> None:
        serving.model.module.eval()
        self._base, *_ = serving.models
        self._trained = serving.models
        silent_models = {name: replace(one, system=None) for name, one in serving.models.items()}
        self._serving = replace(serving, models=silent_models)
        self._prefixes = Prefixes()

    def answer(self, body: AskBody, send: Send, left: threading.Event) -> None:
        going = {number: self._events(body, side) for number, side in enumerate(body.sides)}
        while going and not left.is_set():
            for number, events in list(going.items()):
                try:
                    event = next(events)
                except Exception as error:
                    event = {"problem": problem_of(error)}
                send({"side": number} | event)
                if "text" not in event:
                    del going[number]

    def _events(self, body: AskBody, side: Side) -> Iterator[dict[str, Any]]:
        """Pieces of the text of a side, and how it ended."""
        began, draft = time.monotonic(), self._draft(body, side)
        batch = GrowingBatch(self._serving.model.module, by_strength(self._serving), self._prefixes)
        piece = draft.take(batch.join(draft.row))
        while piece.stopped is None:
            if piece.text:
                yield {"text": piece.text}
            (chosen,) = batch.step()
            draft.row.check()
            piece = draft.take(chosen or ())
        batch.leave([draft.row])
        if piece.text:
            yield {"text": piece.text}
        seconds = round(time.monotonic() - began, 2)
        yield {"finish": piece.stopped, "tokens": len(draft.row.ids), "seconds": seconds}

    def _draft(self, body: AskBody, side: Side) -> Draft:
        trained = self._trained[side.run if side.run in self._trained and side.run else body.runs[0]]
        said = trained.system if body.system is None else body.system
        system = [{"role": "system", "content": said}] if said and said.strip() else []
        chat = ChatBody(
            model=side.run or self._base, messages=[*system, *side.messages], temperature=body.temperature,
            top_p=body.top_p, seed=body.seed, max_tokens=body.max_new_tokens,
        )  # fmt: skip
        served = replace(served_by(self._serving.models, chat.model), constraint=trained.constraint)
        question = chat_question(self._serving, served, chat, USUAL)
        (draft,) = question.pending(chat, lambda number, piece: None, loops=True)
        draft.row.adapter = keyed(question.served.adapter, side.strength)
        return draft


def problem_of(error: Exception) -> str:
    """What is wrong with a side; our own mistakes are raised."""
    own = typed(error) or error
    if not isinstance(own, RankwiseError | BadRequest):
        raise error
    return str(own)


def keyed(adapter: str | None, strength: float) -> str | None:
    """The name of an adapter with its strength, by which what was read is kept apart; None for the base."""
    return None if adapter is None or strength == 0 else f"{strength!r} {adapter}"


def by_strength(serving: Serving) -> ByRow:
    """Lays the adapter of a key over a batch, whose rows all have this key."""

    @contextmanager
    def of(keys: Sequence[str | None]) -> Iterator[None]:
        strength, _, name = (keys[0] or "1 ").partition(" ")
        with serving.rows.of([name or None] * len(keys)):
            if strength == "1.0" or not name:
                yield
                return
            with serving.adapters.scaled(float(strength)):
                yield

    return of


class SeparateAnswers:
    """A model that answers one side after the other."""

    def __init__(self, tuned: TunedModel) -> None:
        self._tuned = tuned

    def answer(self, body: AskBody, send: Send, left: threading.Event) -> None:
        for number, side in enumerate(body.sides):

            def on_text(part: str, number: int = number) -> None:
                if left.is_set():
                    raise _Left
                send({"side": number, "text": part})

            try:
                send({"side": number} | self._tuned.objective.among(REPLIES)(self._tuned, body, side, on_text))
            except _Left:
                return
            except Exception as error:
                send({"side": number, "problem": problem_of(error)})


class _Left(Exception):
    pass


def reply(tuned: TunedModel, body: AskBody, side: Side, on_text: TextCallback) -> dict[str, Any]:
    """How an answer ended, of which `on_text` got the text."""
    turns = [Message(one["role"], str(one["content"])) for one in side.messages if one.get("role") in ROLES]
    messages = [*tuned.opening(body.system), *text_objective(tuned.model).text_writer.heard(turns)]
    most = body.max_new_tokens or tuned.model.room(len(asking_ids(tuned.model, messages)), USUAL)
    spec = GenerationConfig(max_new_tokens=most, temperature=body.temperature, top_p=body.top_p, seed=body.seed)
    with tuned.base(side.run == BASE), tuned.trainable.scaled(1.0 if side.run == BASE else side.strength):
        answer = tuned.answer(messages, spec, on_text=on_text)
    return {"finish": answer.stopped, "tokens": answer.tokens, "seconds": round(answer.seconds, 2)}


def classified(tuned: TunedModel, body: AskBody, side: Side, on_text: TextCallback) -> dict[str, Any]:
    """What a classifier says of a text, or of an image of this name: probabilities, a number, or tagged spans."""
    text, image = str(side.messages[-1].get("content", "")), _decoded(body.image)
    example = tuned.classifier.inputs.example_of(*((text, "the text") if image is None else (image, text[:200])))
    predicted, problems = tuned.predict([example])
    if problems:
        raise RunError(problems[0])
    return {"finish": "end"} | predicted[0].as_shown()


REPLIES = {"answers": reply, "pairs": reply, "classes": classified}
"""By the family of what was trained."""


def _decoded(image: str | None) -> bytes | None:
    try:
        return None if image is None else base64.b64decode(image, validate=True)
    except ValueError:
        raise RunError("the image is not base64.") from None
