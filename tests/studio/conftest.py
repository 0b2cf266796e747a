"""A studio over an empty folder."""

from __future__ import annotations

import pytest

from kit.studio_client import studio_client


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def client():
    return studio_client()
