"""Which tests are slow: measured, not guessed, and kept as one list of function names in slow.txt.

`make test-fast` leaves out what is marked slow. A test function is marked if its cases took more than MEAN seconds of
processor time on average or TOTAL seconds together, child processes included, when the list was last written, which
`pytest --write-slow` does after a whole run. Processor time, unlike time by the clock, is the same on a busy machine.
`@pytest.mark.slow` in a file marks a test as well. A test that is on no list is fast until somebody measures it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

LIST = Path(__file__).with_suffix(".txt")
MEAN, TOTAL, PROPERTY = 0.3, 2.0, "processor seconds"
SECONDS: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
"""Of each test function: its cases, and what each of them took."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-slow", action="store_true", help=f"write {LIST.name} from the processor time of this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow ones. Files with slow tests come first, so that at the end no worker waits for a long file."""
    names = set(LIST.read_text(encoding="utf-8").split())
    slow: Counter[Path] = Counter()
    for item in items:
        if getattr(item, "originalname", item.name) in names:
            item.add_marker("slow")
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    began = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.user_properties.append((PROPERTY, sum(os.times()[:4]) - began))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With several workers, the process that starts them hears of all tests."""
    if report.when == "call":
        seconds = dict(report.user_properties).get(PROPERTY, 0.0)
        SECONDS[report.location[2].partition("[")[0]][report.nodeid] += float(str(seconds))


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
