"""What may be installed: the bounds of pyproject.toml are versions that were tried, and no import asks a network."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_TESTS = (
    "data", "excel", "vision", "scores", "plot", "sklearn", "onnx", "sign", "quantized", "sweep", "serve", "studio",
    "tensorboard", "docs", "dev",
)  # fmt: skip
REQUIREMENTS = [
    Requirement(text)
    for text in (
        *PROJECT["dependencies"],
        *(one for extra in OF_TESTS for one in PROJECT["optional-dependencies"][extra]),
    )
    if not text.startswith("rankwise")
]


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version.removesuffix(".*") for package, _, version in pins}


def test_the_lowest_version_of_each_dependency_is_one_that_was_tried() -> None:
    tried = pinned("lowest.txt")
    for requirement in REQUIREMENTS:
        bounds = [
            Version(one.version) for other in REQUIREMENTS if other.name == requirement.name
            for one in other.specifier if one.operator == ">="
        ]  # fmt: skip
        assert any(one.operator == ">=" for one in requirement.specifier), f"{requirement} names no lowest version"
        version = tried[canonicalize_name(requirement.name)]
        assert Version(version) == max(bounds), (
            f"{requirement}: {version} was tried. Raise the bound, or run make lock."
        )


def test_a_tested_version_is_one_that_is_admitted() -> None:
    tested = pinned("tested.txt")
    refused = [str(one) for one in REQUIREMENTS if not one.specifier.contains(tested[canonicalize_name(one.name)])]
    assert refused == [], "other versions are in requirements/tested.txt. Run make lock."


IMPORTS = """
import importlib, json, pkgutil, sys
asked = []
sys.addaudithook(lambda event, values: event in ("socket.connect", "socket.getaddrinfo") and asked.append(str(values)))
import rankwise
modules = [one.name for one in pkgutil.walk_packages(rankwise.__path__, "rankwise.") if "driver" not in one.name]
for name in modules:
    importlib.import_module(name)
print(json.dumps([len(modules), asked]))
"""


def test_no_import_asks_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=300)
    modules, asked = json.loads(done.stdout.splitlines()[-1])
    assert modules > 300 and asked == []
