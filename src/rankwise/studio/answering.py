"""Answers for the Ask screen, with the engine of the server where a run allows it, and else with the model alone."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import singledispatch
from typing import Any

from rankwise.config.generation import GenerationConfig
from rankwise.errors import RankwiseError, RunError, typed
from rankwise.inference.decoding import STAGE, TextCallback, repeats
from rankwise.inference.generate import asking_ids
from rankwise.inference.growing_batch import ByRow
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.objective import Classifier, Objective
from rankwise.objectives.sequence_to_sequence import text_objective
from rankwise.rows.text.example import Message
from rankwise.runs.records import Callback
from rankwise.serving.bodies import BadRequest, ChatBody
from rankwise.serving.engine import Engine, Limits
from rankwise.serving.pending import Pending, Piece
from rankwise.serving.questions import chat_question, served_by
from rankwise.serving.served import Serving, load_serving
from rankwise.studio.asking import BASE, MOST_SIDES, USUAL, Answering, AskBody, Cancel, Send, Side

FAILED = "The answer failed. The terminal that runs the studio shows why."
ROLES = ("user", "assistant")


def load(names: Sequence[str], callback: Callback) -> Answering:
    artifacts = [open_artifact(name, callback) for name in names]
    alone = [why for one in artifacts if (why := one.why_not("asked beside others")) is not None]
    if alone and len(artifacts) > 1:
        raise RunError(alone[0])
    if alone:
        return Alone(load_tuned(artifacts[0], callback))
    try:
        return Together(load_serving(names, callback))
    except RunError:
        if len(artifacts) > 1:
            raise
        return Alone(load_tuned(artifacts[0], callback))


class Together:
    """Several adapters over one base, all sides at once."""

    def __init__(self, serving: Serving) -> None:
        serving.model.module.eval()
        self._base, *_ = serving.models
        self._systems = {name: one.system for name, one in serving.models.items()}
        silent_models = {name: replace(one, system=None) for name, one in serving.models.items()}
        self._serving = replace(serving, models=silent_models)
        limits = Limits(together=MOST_SIDES, waiting=MOST_SIDES)
        self._engine = Engine(serving.model.module, by_strength(serving), False, limits)
        self._engine.start()

    def begin(self, body: AskBody, send: Send) -> Cancel:
        every: list[Pending] = []
        left = [len(body.sides)]
        for number, side in enumerate(body.sides):
            try:
                every.append(self._pending(body, number, side, _counted(send, left)))
            except Exception as error:
                own = typed(error) or error
                if not isinstance(own, RankwiseError | BadRequest):
                    raise
                _counted(send, left)({"side": number, "problem": str(own)})
        if every:
            self._engine.submit(every)
        return lambda: self._engine.cancel(every)

    def _pending(self, body: AskBody, number: int, side: Side, send: Send) -> Pending:
        trained = self._systems[side.run if side.run in self._systems and side.run else body.runs[0]]
        said = trained if body.system is None else body.system
        system = [{"role": "system", "content": said}] if said and said.strip() else []
        chat = ChatBody(
            model=side.run or self._base, messages=[*system, *side.messages], temperature=body.temperature,
            top_p=body.top_p, seed=body.seed, max_tokens=body.max_new_tokens,
        )  # fmt: skip
        question = chat_question(self._serving, served_by(self._serving, chat.model), chat, USUAL)
        served = replace(question.served, adapter=keyed(question.served.adapter, side.strength))
        began, written, looping = time.monotonic(), [0], [False]

        def tell(_: int, piece: Piece) -> None:
            written[0] += len(piece.chosen)
            if piece.problem is not None:
                send({"side": number, "problem": piece.problem})
                return
            if piece.text:
                send({"side": number, "text": piece.text})
            if piece.finish is not None:
                why = "repetition" if looping[0] else "end" if piece.finish == "stop" else "length"
                seconds = round(time.monotonic() - began, 2)
                send({"side": number, "finish": why, "tokens": written[0], "seconds": seconds})

        (pending,) = replace(question, served=served).pending(chat, tell)
        ends = pending.has_ended

        def has_ended(ids: Sequence[int]) -> bool:
            looping[0] = len(ids) % STAGE == 0 and repeats(ids)
            return looping[0] or ends(ids)

        pending.has_ended = has_ended
        return pending

    def close(self) -> None:
        self._engine.stop()


def _counted(send: Send, left: list[int]) -> Send:
    """Tells the end after the last side."""

    def tell(event: dict[str, Any]) -> None:
        send(event)
        if "finish" in event or "problem" in event:
            left[0] -= 1
            if not left[0]:
                send({"end": True})

    return tell


def keyed(adapter: str | None, strength: float) -> str | None:
    """The name of an adapter with its strength, by which the engine keeps answers apart; None for the base."""
    return None if adapter is None or strength == 0 else f"{strength!r} {adapter}"


def by_strength(serving: Serving) -> ByRow:
    """Lays the adapter of a key over a batch, whose rows all have this key."""

    @contextmanager
    def of(keys: Sequence[str | None]) -> Iterator[None]:
        strength, _, name = (keys[0] or "1 ").partition(" ")
        with serving.by_row([name or None] * len(keys)):
            if serving.adapters is None or strength == "1.0" or not name:
                yield
                return
            with serving.adapters.scaled(float(strength)):
                yield

    return of


class Alone:
    """A model that answers one side after the other, in a thread of its own."""

    def __init__(self, tuned: TunedModel) -> None:
        self._tuned = tuned
        self._turn = threading.Lock()

    def begin(self, body: AskBody, send: Send) -> Cancel:
        cancelled = threading.Event()

        def work() -> None:
            with self._turn:
                for number, side in enumerate(body.sides):
                    if cancelled.is_set():
                        break
                    try:
                        self._answer(body, number, side, send, cancelled)
                    except _Cancelled:
                        break
                    except Exception as error:
                        own = typed(error) or error
                        send({"side": number, "problem": str(own) if isinstance(own, RankwiseError) else FAILED})
                        if not isinstance(own, RankwiseError):
                            raise
            send({"end": True})

        threading.Thread(target=work, name="rankwise-ask", daemon=True).start()
        return cancelled.set

    def _answer(self, body: AskBody, number: int, side: Side, send: Send, cancelled: threading.Event) -> None:
        def on_text(part: str) -> None:
            if cancelled.is_set():
                raise _Cancelled
            send({"side": number, "text": part})

        send({"side": number} | reply(self._tuned.objective, self._tuned, body, side, on_text))

    def close(self) -> None:
        with self._turn:
            pass


class _Cancelled(Exception):
    pass


@singledispatch
def reply(
    objective: Objective, tuned: TunedModel, body: AskBody, side: Side, on_text: TextCallback
) -> dict[str, Any]:  # fmt: skip
    """How an answer ended, of which `on_text` got the text."""
    turns = [Message(one["role"], str(one["content"])) for one in side.messages if one.get("role") in ROLES]
    messages = [*tuned.opening(body.system), *text_objective(tuned.model).heard(turns)]
    most = body.max_new_tokens or tuned.model.room(len(asking_ids(tuned.model, messages)), USUAL)
    spec = GenerationConfig(max_new_tokens=most, temperature=body.temperature, top_p=body.top_p, seed=body.seed)
    with tuned.base(side.run == BASE), tuned.trainable.scaled(1.0 if side.run == BASE else side.strength):
        answer = tuned.answer(messages, spec, on_text=on_text)
    return {"finish": answer.stopped, "tokens": answer.tokens, "seconds": round(answer.seconds, 2)}


@reply.register(Classifier)
def classified(
    objective: Classifier, tuned: TunedModel, body: AskBody, side: Side, on_text: TextCallback
) -> dict[str, Any]:  # fmt: skip
    """What a classifier says of a text, or of an image of this name: probabilities, a number, or tagged spans."""
    example = objective.example_of(str(side.messages[-1].get("content", "")), _decoded(body.image))
    predicted, problems = tuned.predict([example])
    if problems:
        raise RunError(problems[0])
    return {"finish": "end"} | predicted[0].as_shown()


def _decoded(image: str | None) -> bytes | None:
    try:
        return None if image is None else base64.b64decode(image, validate=True)
    except ValueError:
        raise RunError("the image is not base64.") from None
