"""Asks a server of OpenAI's protocol that serves the export: vLLM, SGLang, llama-server and others.

Prompts go as text to /v1/completions, greedily. The log-probabilities of its own answer are those of ours where both
answers have as many tokens and the same text. Conversations go to /v1/chat/completions, whose usage counts the tokens
that the server's template made of them. What a server does not offer is null.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from rankwise.exporting.engines.engine import Package

SECONDS = 600
FROM_MODEL = {"temperature": 0, "top_p": 1, "seed": 0}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    address = request["export"].rstrip("/").removesuffix("/v1")
    model = request.get("model") or _only_model(address)
    return {
        "engine": "server",
        "version": f"{address}, model {model}",
        "replies": [_reply(address, model, one) for one in request["questions"]],
        "conversation_sizes": [
            _size(address, model, messages, request.get("thinks", False))
            for messages in request.get("conversations", ())
        ],
    }


def _call(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=SECONDS) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise RuntimeError(
            f"{address}{path} answered {error.code}: {error.read(300).decode(errors='replace')}"
        ) from None
    except OSError as error:  # urllib's, or that of a connection that broke
        raise ConnectionError(f"{address} cannot be reached ({getattr(error, 'reason', error)})") from None


def _only_model(address: str) -> str:
    names = [one["id"] for one in _call(address, "/v1/models").get("data", ())]
    if len(names) != 1:
        raise RuntimeError(f"the server has {len(names)} models ({', '.join(names[:5])}); name one with --server-model")
    return names[0]


def _reply(address: str, model: str, question: dict[str, Any]) -> dict[str, Any]:
    body = {"model": model, "prompt": question["prompt"], "max_tokens": question["max_new_tokens"], "logprobs": 1}
    choice = _call(address, "/v1/completions", {**body, **FROM_MODEL})["choices"][0]
    scores = (choice.get("logprobs") or {}).get("token_logprobs")
    expected = len(question["answer_ids"])
    usable = isinstance(scores, list) and len(scores) in (expected, expected - 1) and None not in scores
    return {"answer": choice["text"], "log_probabilities": scores if usable and _same(choice, question) else None}


def _same(choice: dict[str, Any], question: dict[str, Any]) -> bool:
    return choice["text"].strip() == question["answer"].strip()


def _size(address: str, model: str, messages: list[dict[str, str]], thinks: bool) -> int | None:
    asked = {"chat_template_kwargs": {"enable_thinking": thinks}}
    body = {"model": model, "messages": messages, "max_tokens": 1, **asked}
    try:
        usage = _call(address, "/v1/chat/completions", {**body, **FROM_MODEL}).get("usage") or {}
    except RuntimeError:
        return None
    size = usage.get("prompt_tokens")
    return size if isinstance(size, int) and size > 0 else None


SERVER = Package("server", __name__, ("json",))
"""By its address, whichever engine it is."""
