"""Run queries that a model wrote, in a process of its own with limits, and compare their results. Run as a script.

evaluation/scoring.py starts this file, and ends it where a request takes longer than SECONDS.

    request  {"database": path of a SQLite file, or "tables": statements, "reference": SQL, "answer": SQL}
    reply    whether the results are equal, or as a text why the reference has none

Both are JSON, one line each. A query can read, and call the functions in FUNCTIONS. SQLite asks before it prepares
anything else, such as a write, ATTACH, a PRAGMA or an extension, and is told no. A file is opened as one that never
changes, so that not even a lock or a journal is written. What a query may use is bounded: STEPS of SQLite's machine,
MEMORY, the bytes of a value, and the rows and bytes of a result.

Results are equal if they have as many columns and the same rows, each as often; in the same order if the reference
ends with ORDER BY. NULL equals NULL, and 1 equals 1.0 and is not '1'. Names of columns do not matter. Numbers are
compared to DIGITS digits, since sums of the same numbers in another order differ in the last ones.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

SECONDS = 1.5
STEPS, EACH = 15_000_000, 10_000
MEMORY, HEAP = 512_000_000, 100_000_000
"""Bytes of addresses of the process, and bytes that SQLite allocates."""
LONGEST_SQL, LONGEST_TABLES, LARGEST_VALUE = 100_000, 5_000_000, 1_000_000
MOST_ROWS, MOST_BYTES = 20_000, 10_000_000
DIGITS = 12
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: LARGEST_VALUE, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50, sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100, sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}  # fmt: skip
FUNCTIONS = frozenset(re.findall(r"\S+", """
    -> ->> abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce concat concat_ws cos cosh
    count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp first_value
    floor format glob group_concat hex ifnull iif instr json json_array json_array_length json_extract
    json_group_array json_group_object json_object json_type json_valid julianday lag last_value lead length
    like ln log log10 log2 lower ltrim max min mod nth_value ntile nullif octet_length percent_rank pi pow power
    printf radians rank replace round row_number rtrim sign sin sinh sqrt strftime string_agg substr substring
    sum tan tanh time timediff total trim trunc typeof unicode unixepoch upper zeroblob
"""))  # fmt: skip
READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
BUILDS = {
    *READS, sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW, sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_REINDEX,
}  # fmt: skip
DUMPED = re.compile(r"^\s*PRAGMA foreign_keys=OFF;")
"""What `sqlite3 FILE .dump` begins with."""
PIECE = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|[()]|\border\s+by\b", re.DOTALL | re.I)
Result = tuple[int, list[tuple[Any, ...]]]
"""How many columns, and the rows."""


class QueryError(Exception):
    """Raised for what is no result."""


FAILURES = (sqlite3.Error, sqlite3.Warning, QueryError, ValueError, OverflowError, MemoryError, RecursionError)


def main() -> None:
    """Answer requests until the input ends, which it does with the parent."""
    with suppress(ImportError, ValueError, OSError):  # Windows, and systems that know no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(judged(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


def judged(request: dict[str, str]) -> bool | str:
    """Whether both results are equal, or why the reference has none."""
    try:
        wanted = _result(request, request["reference"])
    except FAILURES as error:
        return str(error) or type(error).__name__
    try:
        given = _result(request, request["answer"])
    except FAILURES:
        return False
    if given[0] != wanted[0] or len(given[1]) != len(wanted[1]):
        return False
    return given[1] == wanted[1] if is_ordered(request["reference"]) else Counter(given[1]) == Counter(wanted[1])


def is_ordered(query: str) -> bool:
    """Whether ORDER BY stands outside of all brackets, texts and comments."""
    depth = 0
    for piece in PIECE.findall(query):
        depth += (piece == "(") - (piece == ")")
        if depth == 0 and piece[0] in "oO":
            return True
    return False


def _result(request: dict[str, str], query: str) -> Result:
    with closing(_opened(request)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_SQL)
        connection.set_authorizer(_authorizer(READS))
        connection.set_progress_handler(_bound(), EACH)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise QueryError("it is no query")
        rows, size = list[tuple[Any, ...]](), 0
        for row in cursor:
            rows.append(tuple(map(_comparable, row)))
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if len(rows) > MOST_ROWS or size > MOST_BYTES:
                raise QueryError(f"its result has more than {MOST_ROWS:,} rows or {MOST_BYTES:,} bytes")
        return len(cursor.description), rows


def _opened(request: dict[str, str]) -> sqlite3.Connection:
    path = request.get("database")
    if path is not None and not Path(path).is_file():
        raise QueryError(f"there is no file {path}")
    with suppress(OSError):
        if path is not None and Path(f"{path}-wal").stat().st_size:
            raise QueryError(f"{path}-wal has changes that are not in the file; close the database first")
    place = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1" if path is not None else ":memory:"
    connection = sqlite3.connect(place, uri=path is not None, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    for name, most in LIMITS.items():
        connection.setlimit(name, most)
    for setting in (f"hard_heap_limit = {HEAP}", "temp_store = memory", "trusted_schema = off", "mmap_size = 0"):
        connection.execute(f"PRAGMA {setting}")
    if path is None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_TABLES)
        connection.set_authorizer(_authorizer(BUILDS))
        connection.set_progress_handler(_bound(), EACH)
        try:
            connection.executescript(DUMPED.sub("", request["tables"]))
        except FAILURES as error:
            raise QueryError(f"its tables cannot be created: {error}") from None
    return connection


def _authorizer(allowed: set[int]) -> Callable[..., int]:
    def decide(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            fits = (second or "").lower() in FUNCTIONS
        else:
            fits = action in allowed and not (first or "").lower().startswith("pragma_")
        return sqlite3.SQLITE_OK if fits else sqlite3.SQLITE_DENY

    return decide


def _bound() -> Callable[[], bool]:
    """Says whether so many steps were taken that a query is to end."""
    taken = count(EACH, EACH)
    return lambda: next(taken) > STEPS


def _comparable(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
