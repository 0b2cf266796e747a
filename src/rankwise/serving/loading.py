"""Adapters that are loaded and removed over the API, by the routes and fields that vLLM has for it.

POST /v1/load_lora_adapter      {"lora_name", "lora_path", "load_inplace"}
POST /v1/unload_lora_adapter    {"lora_name"}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rankwise.config.base import Config
from rankwise.serving.bodies import Switch
from rankwise.serving.changes import NAME, Changes
from rankwise.serving.reading import read_json_body

Name = Annotated[str, Field(pattern=NAME)]


class LoadBody(Config):
    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096)
    """A folder or file below the one that adapters may be loaded from."""
    load_inplace: Switch = False
    """Whether it takes the name of an adapter that is served."""


class UnloadBody(Config):
    lora_name: Name


def loading_routes(changes: Changes) -> list[Route]:
    async def load(request: Request) -> Response:
        body = await read_json_body(request, LoadBody)
        await run_in_threadpool(changes.load_below, body.lora_name, body.lora_path, replace=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(request: Request) -> Response:
        body = await read_json_body(request, UnloadBody)
        await run_in_threadpool(changes.unload, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    if changes.folder is None:
        return []
    return [
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    ]
