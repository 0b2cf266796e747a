from __future__ import annotations

from contextlib import chdir
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from kit.serving_names import NAMES
from rankwise.runs.records import silent
from rankwise.serving.app import Server
from rankwise.serving.engine import Limits, ServingEngine
from rankwise.serving.served import load_serving


@pytest.fixture(scope="session")
def home(library, tmp_path_factory):
    """A working folder with three runs over one base."""
    return library.lay_out(tmp_path_factory.mktemp("serving") / "home", *NAMES)


@pytest.fixture(scope="session")
def serving(home):
    with chdir(home):
        loaded = load_serving(NAMES, silent, force_base=False, trust_code=None)
    loaded.model.module.eval()
    return loaded


@pytest.fixture
def started(serving):
    """Servers with limits of their own: `started(limits, key=…)` has a client and the engine."""
    engines = []

    def start(limits=None, *, most=24, **guard):
        engine = ServingEngine(serving.model.module, serving.rows, limits or Limits())
        engine.start()
        engines.append(engine)
        app = Server(serving, engine, most).app(**{"key": None, "host": "127.0.0.1"} | guard)
        return SimpleNamespace(client=TestClient(app, base_url="http://127.0.0.1:8000"), engine=engine, app=app)

    yield start
    for engine in engines:
        engine.stop()


@pytest.fixture
def server(started):
    return started()
