"""Opens a GGUF export with llama-cpp-python, as a user would: llama.cpp's own settings, and its own tokenizer.

Answers are greedy, from the ids that llama.cpp makes of the prompt as its server does: a text that begins with the
begin token gets no second one. Log-probabilities are those of the request's ids, all of one question in one pass. The
cache of keys and values is float16 by llama.cpp's default, and float32 for float32 weights, so that their errors can be
seen. Quantised weights meet activations of 8 bits, and float16 weights activations of float16.
"""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

FLOATS = {"0": "float32", "1": "float16", "32": "bfloat16"}
"""By general.file_type."""
GELU = ("gpt2", "gemma2", "gemma3")
"""Architectures whose activations llama.cpp reads from a table of float16 numbers (GGML_GELU_FP16)."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    package: Any = importlib.import_module("llama_cpp")
    questions = request["questions"]
    adapter = request["format"] == "gguf-lora"
    file = request["base"] if adapter else request["export"]
    if not isinstance(file, str) or not file.lower().endswith(".gguf") or not os.path.isfile(file):  # noqa: PTH113
        raise ValueError(f"{file!r} is not a GGUF file, and llama.cpp reads no other models")
    longest = max((_room(one) for one in questions), default=0)
    room = max(512, longest + 8)
    options = {
        "model_path": file, "lora_path": request["export"] if adapter else None, "n_ctx": room, "n_batch": room,
        "n_threads": request["threads"], "n_threads_batch": request["threads"], "logits_all": True, "verbose": False,
    }  # fmt: skip
    engine: Any = package.Llama(**options)
    stored = _stored(engine)
    if stored == "float32":
        engine.close()
        engine = package.Llama(**options, type_k=package.GGML_TYPE_F32, type_v=package.GGML_TYPE_F32)
    return {
        "engine": "llama-cpp-python",
        "version": package.__version__,
        "end_id": engine.token_eos(),
        "number_format": "float16" if stored == "float32" and _architecture(engine) in GELU else stored,
        "conversations": [_rendered(package, engine, messages) for messages in request.get("conversations") or ()],
        "replies": [_reply(package, engine, one) for one in questions],
    }


def _architecture(engine: Any) -> str:
    return engine.metadata.get("general.architecture", "")


def _stored(engine: Any) -> str:
    """The number format of the weights."""
    return FLOATS.get(engine.metadata.get("general.file_type", ""), "quantised")


def _room(question: dict[str, Any]) -> int:
    """More than the tokens of a question in any tokenizer that splits no byte."""
    prompt = max(len(question["prompt_ids"]), len(question["prompt"].encode()))
    return prompt + max(len(question["answer_ids"]), question["max_new_tokens"])


def _reply(package: Any, engine: Any, question: dict[str, Any]) -> dict[str, Any]:
    """The given answer is read in one pass. As far as its tokens are the likeliest there, they are the greedy answer
    too, and only what comes after is decoded token by token."""
    prompt, given = question["prompt_ids"], question["answer_ids"]
    own, room = _ids(engine, question["prompt"]), question["max_new_tokens"]
    likeliest, log_probabilities, logits = _read(engine, prompt, given)
    shared = next((at for at, token in enumerate(given) if likeliest[at] != token), len(given)) if own == prompt else 0
    answer_ids = _greedy(package, engine, own, given[: min(shared, room)], room)
    return {
        "prompt_ids": own,
        "answer_ids": answer_ids,
        "answer": engine.detokenize(answer_ids).decode("utf-8", "replace"),
        "log_probabilities": log_probabilities,
        "logits": logits,
    }


def _ids(engine: Any, text: str) -> list[int]:
    """The server takes away a begin token in the text where the tokenizer puts one before every text."""
    bos, adds = engine.token_bos(), engine.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    name = engine._model.token_get_text(bos) if bos != -1 else ""
    return engine.tokenize((text.removeprefix(name) if adds else text).encode(), add_bos=adds, special=True)


def _greedy(package: Any, engine: Any, prompt: list[int], begun: list[int], room: int) -> list[int]:
    """The rest of an answer that begins with these tokens; with the end token, where it ended with one."""
    vocabulary = package.llama_model_get_vocab(engine.model)
    ids = list(begun)
    if ids and package.llama_vocab_is_eog(vocabulary, ids[-1]):
        return ids
    engine.reset()
    if len(ids) < room:
        engine.eval([*prompt, *ids])
    while len(ids) < room:
        token = int(engine.scores[engine.n_tokens - 1].argmax())
        ids.append(token)
        if package.llama_vocab_is_eog(vocabulary, token):
            break
        engine.eval([token])
    return ids


def _read(engine: Any, prompt: list[int], answer_ids: list[int]) -> tuple[list[int], list[float], list[float]]:
    """Of each token of the given answer, after the tokens before it: the token that is likeliest there, and its own
    log-probability, a natural logarithm, and logit."""
    if not answer_ids:
        return [], [], []
    engine.reset()
    engine.eval([*prompt, *answer_ids[:-1]])
    likeliest, values, own = [], [], []
    for at, token in enumerate(answer_ids):
        logits = engine.scores[len(prompt) - 1 + at].astype("float64")
        likeliest.append(int(logits.argmax()))
        own.append(float(logits[token]))
        logits -= logits.max()
        values.append(float(logits[token]) - math.log(float((math.e**logits).sum())))
    return likeliest, values, own


def _rendered(package: Any, engine: Any, messages: list[dict[str, str]]) -> list[int] | None:
    """The ids of a conversation by the template in the file; None where it has none."""
    template = engine.metadata.get("tokenizer.chat_template")
    if template is None:
        return None
    texts = [engine._model.token_get_text(one) if one != -1 else "" for one in (engine.token_eos(), engine.token_bos())]
    formatter = package.llama_chat_format.Jinja2ChatFormatter(template, *texts)
    return _ids(engine, formatter(messages=messages).prompt)


if __name__ == "__main__":
    from driver_loop import run  # pyright: ignore[reportMissingImports]

    run(answer)
