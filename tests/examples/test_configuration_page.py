"""docs/configuration.md is what its script prints, so that the page cannot describe other settings than there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rankwise.config.base import Config

SCRIPT = Path(__file__).parents[2] / "docs" / "make_configuration.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_configuration", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_prints(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page(), "run: python docs/make_configuration.py"


def test_the_page_has_every_setting_with_its_bounds_and_default(script):
    page = script.page()
    for line in (
        "- **`training.batch_size`** (integer ≥ 1, default `16`): ",
        "- **`training.epochs`** (number > 0 and ≤ 1,000): ",
        "- **`adapter.rank`** (integer ≥ 1 and ≤ 4,096, default `16`): ",
        "- **`data.sources[].weight`** (number > 0 and ≤ 100, default `1.0`): ",
        "- **`model.name`** (text, required): ",
    ):
        assert line in page


def test_a_setting_without_a_description_is_refused(script):
    class Bare(Config):
        described: int = 1
        """A number."""
        bare: int = 2

    with pytest.raises(KeyError, match="bare"):
        script.section("Bare", "", Bare)
