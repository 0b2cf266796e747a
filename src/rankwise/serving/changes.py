"""Adapters that come and go while answers are written.

What takes long, reading and checking files, is done beside the engine; the layers change in its thread, between two
tokens. Each adapter that is loaded has a name of its own in the set, which is never used again. So an answer is written
to its end with the adapter that it began with, whatever its public name means by then; an adapter whose name was
removed or replaced goes with its last answer.

POST /v1/load_lora_adapter, /v1/unload_lora_adapter     where it is allowed, as in vLLM
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rankwise.adapters.formats.peft import lay
from rankwise.adapters.set import AdapterSet, discard
from rankwise.adapters.targets import host_view
from rankwise.adapters.weights import AdapterWeights
from rankwise.config.base import Config
from rankwise.errors import AdapterError, RankwiseError, RunError, typed
from rankwise.methods.artifact import Artifact, open_artifact
from rankwise.methods.loading import read_beside
from rankwise.runs.records import Callback, silent
from rankwise.serving.bodies import BadRequest, Switch
from rankwise.serving.engine import ServingEngine
from rankwise.serving.questions import served_by
from rankwise.serving.reading import read_json_body
from rankwise.serving.served import Served, Serving, served_as
from rankwise.system.processor import let_workers_go

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,255}$"
Name = Annotated[str, Field(pattern=NAME)]
MOST = 64
"""Adapters in memory at once, with those whose last answers are still written."""


class Changes:
    """`folder` is where requests may load adapters from; None where they may not."""

    def __init__(
        self, serving: Serving, engine: ServingEngine, *, folder: Path | None = None, force_base: bool = False,
        callback: Callback = silent,
    ) -> None:  # fmt: skip
        self.folder = folder
        self._serving, self._engine, self._force_base, self._callback = serving, engine, force_base, callback
        self._modules = host_view(serving.model.module)  # once: to walk the model while the engine changes it can fail
        self._changing = threading.Lock()
        self._count = 0

    def load_below(self, name: str, path: str, *, replace: bool = False) -> Served:
        """Serve an adapter of the folder that is meant for it. BadRequest with what is wrong."""
        assert self.folder is not None, "there is no route otherwise"
        folder = self.folder.resolve()
        try:
            target = (folder / path).resolve()
        except (OSError, ValueError):  # a loop of links, or a zero byte
            target = folder
        if folder not in target.parents:
            raise BadRequest(
                "lora_path is not below the folder that adapters may be loaded from.", parameter="lora_path"
            )
        try:
            return self.load(name, target, replace=replace)
        except (RankwiseError, OSError) as error:
            raise BadRequest(str(typed(error)), parameter="lora_path") from None

    def load(self, name: str, path: Path, *, replace: bool = False) -> Served:
        """Serve a run or an adapter under this name. A RankwiseError where it cannot be served over the base; nothing
        has changed then."""
        with self._changing:
            adapters, before = self._serving.adapters, self._serving.models.get(name)
            if not re.fullmatch(NAME, name):
                raise RunError(f"{name[:80]!r} is not a possible name of a model.")
            if before is not None and not replace:
                raise RunError(f'"{name}" is served already. With "load_inplace" the new one takes its name.')
            if before is not None and before.adapter is None:
                raise RunError(f'"{name}" is the base model, which cannot be replaced.')
            artifact = open_artifact(str(path), self._callback, force_base=self._force_base)
            self._count += 1
            own, parent = f"loaded-{self._count}", next(iter(self._serving.models))
            weights, served = self._read(artifact, own, name, parent)
            self._engine.between(lambda: self._lay(adapters, weights, own))
            self._serving.models = {**self._serving.models, name: served}
            if before is not None and before.adapter is not None:
                self._retire(adapters, before.adapter)
            return served

    def unload(self, name: str) -> None:
        """BadRequest where no adapter has this name."""
        with self._changing:
            served = served_by(self._serving.models, name)
            if served.adapter is None:
                raise BadRequest(f'"{name}" is the base model, which cannot be unloaded.', parameter="lora_name")
            self._serving.models = {one: other for one, other in self._serving.models.items() if one != name}
            self._retire(self._serving.adapters, served.adapter)

    def _read(self, artifact: Artifact, internal_name: str, name: str, parent: str) -> tuple[AdapterWeights, Served]:
        """The hash is that of what was read."""
        serving = self._serving
        artifact.refuse("served")

        def described() -> Served:
            return served_as(name, artifact, internal_name, serving.model, parent, self._callback)

        served = described()
        weights = read_beside(artifact, serving.model.source, self._modules, serving.base_names, self._callback)
        let_workers_go()
        if described().sha256 != served.sha256:
            raise AdapterError(f"{artifact.described} was changed while it was read. Load it again.")
        return weights, served

    def _lay(self, adapters: AdapterSet, weights: AdapterWeights, internal_name: str) -> None:
        """In the engine's thread; all of it or nothing."""
        if len(adapters.names) >= MOST:
            raise RunError(f"{MOST} adapters are in memory already. Unload one.")
        rows = self._serving.rows
        lay(adapters.model, weights, name=internal_name, into=adapters)
        adapters.model.eval()
        try:
            rows.update()
            if rows.mixes and rows.separates():
                raise RunError("this adapter is of experts or new tokens, and cannot be in one batch with others.")
        except BaseException:
            discard(adapters, internal_name)
            rows.update()
            raise

    def _retire(self, adapters: AdapterSet, internal_name: str) -> None:
        rows = self._serving.rows

        def leave() -> None:
            discard(adapters, internal_name)
            rows.update()

        self._engine.retire(internal_name, leave)


class LoadBody(Config):
    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096)
    """A folder or file below the one that adapters may be loaded from."""
    load_inplace: Switch = False
    """Whether it takes the name of an adapter that is served."""


class UnloadBody(Config):
    lora_name: Name


def loading_routes(changes: Changes) -> list[Route]:
    """None where requests may load nothing."""

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
