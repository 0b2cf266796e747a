"""Which tests are slow: measured, not guessed, and kept as one list of function names in slow.txt.

`make test-fast` leaves out what is marked slow. A test function is marked if its cases took more than MEAN seconds on
average or TOTAL seconds together when the list was last written, which `pytest --write-slow` does after a whole run.
`@pytest.mark.slow` in a file marks a test as well. A test that is on no list is fast until somebody measures it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

LIST = Path(__file__).with_suffix(".txt")
MEAN, TOTAL = 0.7, 4.0
SECONDS: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
"""Of each test function: its cases, and what each of them took."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-slow", action="store_true", help=f"write {LIST.name} from the durations of this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = set(LIST.read_text(encoding="utf-8").split())
    for item in items:
        if getattr(item, "originalname", item.name) in names:
            item.add_marker("slow")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        SECONDS[report.location[2].partition("[")[0]][report.nodeid] += report.duration


def slow_functions(seconds: dict[str, dict[str, float]]) -> list[str]:
    """The names of the functions whose cases took long, in order."""
    return sorted(
        name
        for name, cases in seconds.items()
        if sum(cases.values()) > min(TOTAL, MEAN * len(cases)) and sum(cases.values()) > MEAN
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-slow") and not hasattr(session.config, "workerinput"):
        LIST.write_text("".join(name + "\n" for name in slow_functions(SECONDS)), encoding="utf-8")
