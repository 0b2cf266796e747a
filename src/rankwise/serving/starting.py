"""From what is to be served to what answers: language models over one base, or classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from starlette.routing import Route

from rankwise.errors import ConfigError, RunError
from rankwise.inference.batch import has_decode_step
from rankwise.methods.artifact import Artifact, Opening, open_artifact
from rankwise.runs.queue import Queue
from rankwise.runs.records import Callback
from rankwise.serving.address import Offer
from rankwise.serving.app import Api, Server
from rankwise.serving.changes import Changes, loading_routes
from rankwise.serving.classify import ClassifyingEngine, ClassifyServer, load_classifiers
from rankwise.serving.engine import Limits, ServingEngine
from rankwise.serving.served import Serving, load_serving
from rankwise.serving.tuning.files import Files
from rankwise.serving.tuning.jobs import JobFiles, Jobs
from rankwise.serving.tuning.routes import Offered, tuning_routes

CHAT = "/v1/chat/completions"


@contextmanager
def started(offer: Offer, callback: Callback, batch_size: int, waiting: int) -> Iterator[Api]:
    """What answers at the route of these models. RunError where they have several."""
    opening = Opening(force_base=offer.force_base, trust_code=offer.trust_code)
    artifacts = [open_artifact(name, callback, **opening) for name in offer.names]
    routes = {one.objective.words.route: one.described for one in artifacts}
    if len(routes) > 1:
        each = " and ".join(f"{described} at POST {route}" for route, described in routes.items())
        raise RunError(f"a server answers at one route, and {each}. Serve them apart, with another --port.")
    limits = Limits(batch_size, waiting, prefix_bytes=offer.prefix_bytes)
    with APIS[next(iter(routes), CHAT)](offer, artifacts, limits, callback) as api:
        yield api


@contextmanager
def _classifiers(offer: Offer, artifacts: Sequence[Artifact], limits: Limits, callback: Callback) -> Iterator[Api]:
    if offer != Offer(offer.names, dtype=offer.dtype, force_base=offer.force_base, trust_code=offer.trust_code):
        raise ConfigError([
            "classifiers are served without --max-new-tokens, --load-from, --fine-tuning, --alias, --prefix-cache "
            "and --unconstrained, which are for language models. Leave them out."
        ])  # fmt: skip
    classifiers = load_classifiers(artifacts, callback, offer.number_format)
    with ClassifyingEngine(limits) as engine:
        yield ClassifyServer(classifiers, engine)


@contextmanager
def _language_models(offer: Offer, artifacts: Sequence[Artifact], limits: Limits, callback: Callback) -> Iterator[Api]:
    serving = load_serving(
        artifacts, callback, base=offer.base, aliases=offer.aliases, dtype=offer.number_format,
        unconstrained=offer.unconstrained, trust_code=offer.trust_code,
    )  # fmt: skip
    serving.model.module.eval()
    has_decode_step(serving.model.module)  # so that no request waits for a compiler
    with ServingEngine(serving.model.module, serving.rows, limits) as engine:
        changes = Changes(serving, engine, folder=offer.load_from, force_base=offer.force_base, callback=callback)
        with _tuning(serving, changes) if offer.fine_tuning else nullcontext(()) as tuning:
            yield Server(serving, engine, offer.most, (*loading_routes(changes), *tuning))


APIS = {CHAT: _language_models, "/v1/classify": _classifiers}


@contextmanager
def _tuning(serving: Serving, changes: Changes) -> Iterator[Sequence[Route]]:
    """What lies in this folder's runs from earlier servers is taken up again."""
    queue = Queue()
    folder = queue.runs_folder / ".fine-tuning"
    files = Files(folder / "files")
    offered = Offered(serving, changes, Jobs(JobFiles(folder / "jobs"), files, queue))
    offered.start()
    try:
        yield tuning_routes(offered)
    finally:
        offered.stop()
