"""The requests and replies as an OpenAPI document, from the same classes that read the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from rankwise import __version__
from rankwise.serving.bodies import ChatBody, CompletionBody
from rankwise.serving.loading import LoadBody, UnloadBody
from rankwise.serving.tuning.bodies import JobBody

STREAMED = ("application/json", "text/event-stream")
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
REFUSED = {
    "400": "something in the request is wrong; the message says what", "401": "the key is missing or wrong",
    "403": "the host or the origin is not allowed", "404": "no such model, file or job",
    "408": "the body came too slowly", "409": "it is in use", "413": "the body is too large",
    "415": "the body is of another type", "429": "too many requests are waiting; Retry-After has the seconds",
}  # fmt: skip


def schema(*, loading: bool = False, tuning: bool = False) -> dict[str, Any]:
    """Of the routes that a server has."""
    paths: dict[str, Any] = {
        "/health": {"get": _plain("whether answers are being written")},
        "/metrics": {"get": _plain("counts for Prometheus", "text/plain")},
        "/v1/models": {"get": _plain("the base and each adapter")},
        "/v1/chat/completions": {"post": _asking(ChatBody, "the answer to a conversation", STREAMED)},
        "/v1/completions": {"post": _asking(CompletionBody, "how the model continues a text", STREAMED)},
    }
    kinds: list[type[BaseModel]] = [ChatBody, CompletionBody]
    if loading:
        paths["/v1/load_lora_adapter"] = {"post": _asking(LoadBody, "the adapter is served", ("text/plain",))}
        paths["/v1/unload_lora_adapter"] = {"post": _asking(UnloadBody, "the adapter is gone", ("text/plain",))}
        kinds += [LoadBody, UnloadBody]
    if tuning:
        paths |= _tuning()
        kinds.append(JobBody)
    bodies = {}
    for kind in kinds:
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        bodies |= own.pop("$defs", {}) | {kind.__name__: own}
    return {
        "openapi": "3.1.0", "info": {"title": "rankwise serve", "version": __version__}, "paths": paths,
        "components": {"schemas": bodies, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }  # fmt: skip


def _tuning() -> dict[str, Any]:
    """Files and fine-tuning jobs."""
    upload = {"type": "object", "required": ["file", "purpose"], "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "enum": ["fine-tune"]},
    }}  # fmt: skip
    file, job = "/v1/files/{id}", "/v1/fine_tuning/jobs/{id}"
    post = {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": upload}}},
        "responses": {"200": {"description": "the file", "content": {"application/json": {}}}} | _refused(),
    }
    paths: dict[str, Any] = {
        "/v1/files": {"get": _listing("the files", "after", "limit", "order", "purpose"), "post": post},
        file: {"get": _of_id("the file"), "delete": _of_id("that it is gone")},
        f"{file}/content": {"get": _of_id("what was uploaded", "application/octet-stream")},
        "/v1/fine_tuning/jobs": {
            "get": _listing("the jobs, the newest first", "after", "limit"), "post": _asking(JobBody, "the job"),
        },
        job: {"get": _of_id("the job")},
    }  # fmt: skip
    for name in ("events", "checkpoints"):
        listed = _listing(f"the {name} of a job", "after", "limit")
        paths[f"{job}/{name}"] = {"get": listed | {"parameters": [*listed["parameters"], ID]}}
    return paths | {f"{job}/{how}": {"post": _of_id("the job")} for how in ("cancel", "pause", "resume")}


def _refused() -> dict[str, Any]:
    return {code: {"description": text} for code, text in REFUSED.items()}


def _of_id(description: str, media: str = "application/json") -> dict[str, Any]:
    answers = {"200": {"description": description, "content": {media: {}}}}
    return {"parameters": [ID], "responses": answers | _refused()}


def _listing(description: str, *names: str) -> dict[str, Any]:
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    answers = {"200": {"description": description, "content": {"application/json": {}}}}
    return {"parameters": parameters, "responses": answers | _refused()}


def _plain(description: str, media: str = "application/json") -> dict[str, Any]:
    answers = {"200": {"description": description, "content": {media: {}}}}
    return {"responses": answers | {code: {"description": REFUSED[code]} for code in ("401", "403")}}


def _asking(kind: type[BaseModel], description: str, media: Sequence[str] = ("application/json",)) -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    answers = {"200": {"description": description, "content": {one: {} for one in media}}}
    return {"requestBody": {"required": True, "content": body}, "responses": answers | _refused()}
