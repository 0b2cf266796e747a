"""The requests and replies as an OpenAPI document, from the same classes that read the requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from rankwise import __version__
from rankwise.serving.bodies import ChatBody, CompletionBody

REFUSED = {
    "400": "something in the request is wrong; the message says what", "401": "the key is missing or wrong",
    "403": "the host or the origin is not allowed", "404": "no such model", "413": "the body is too large",
    "415": "the body is no JSON", "429": "too many requests are waiting; Retry-After has the seconds",
}  # fmt: skip


def schema() -> dict[str, Any]:
    paths = {
        "/health": {"get": _plain("whether answers are being written")},
        "/metrics": {"get": _plain("counts for Prometheus", "text/plain")},
        "/v1/models": {"get": _plain("the base and each adapter")},
        "/v1/chat/completions": {"post": _asking(ChatBody, "the answer to a conversation")},
        "/v1/completions": {"post": _asking(CompletionBody, "how the model continues a text")},
    }
    bodies = {}
    for kind in (ChatBody, CompletionBody):
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        bodies |= own.pop("$defs", {}) | {kind.__name__: own}
    return {
        "openapi": "3.1.0", "info": {"title": "rankwise serve", "version": __version__}, "paths": paths,
        "components": {"schemas": bodies, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }  # fmt: skip


def _plain(description: str, media: str = "application/json") -> dict[str, Any]:
    answers = {"200": {"description": description, "content": {media: {}}}}
    return {"responses": answers | {code: {"description": REFUSED[code]} for code in ("401", "403")}}


def _asking(kind: type[BaseModel], description: str) -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    answers = {"200": {"description": description, "content": {"application/json": {}, "text/event-stream": {}}}}
    refused = {code: {"description": text} for code, text in REFUSED.items()}
    return {"requestBody": {"required": True, "content": body}, "responses": answers | refused}
