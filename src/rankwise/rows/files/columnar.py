"""Rows of Parquet and Arrow files. A cell that cannot be read makes its row a bad row; damage is found first."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError, first_line
from rankwise.rows.forms.formats import Row
from rankwise.system.extras import need_extra

Record = tuple[str, Row | DataError]
BATCH = 250
"""Rows at a time: a text that a file stores once may be that of every row."""
MOST_BYTES, MOST_TIMES = 1_000_000_000, 100
"""What the rows of a file may take, and as a multiple of the file."""
MOST_ROWS = 1_000_000
"""Rows of a file that has fewer bytes than rows."""
BATCH_BYTES = 250_000_000
"""What rows of long repeated texts may take at a time."""
DICTIONARY_PAGE = b"\x15\x04\x15"
"""Begins the header of a dictionary in a Parquet file."""
LARGE_ROWS = 64
"""Rows at a time of files with a column of bytes, such as images, of which each may have megabytes."""
Seen = Callable[[float], None]
"""A callback that receives the share of the file that has been read."""


def find_damage(items: Iterator[Any]) -> None:
    """Read everything once, so that a damaged file is refused before its first row is used."""
    deque(items, maxlen=0)


def column_names(row: list[str], where: str) -> list[str]:
    if len(set(row)) != len(row) or not all(name.strip() for name in row):
        raise DataError(f"{where}: the first line must name the columns, each once; it names {shown(row[:8])}.")
    return row


def parquet(path: Path, seen: Seen) -> Iterator[Record]:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            column_names(file.schema_arrow.names, str(path))
            _refuse_larger(path, *_stored(file.metadata))
            batch = _rows_at_a_time(path, file)
            find_damage(_bounded(path, file.iter_batches(batch)))
            yield from _rows_of(path, file.iter_batches(batch))
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors, and Python's for a value that it cannot represent
        raise DataError(f"{path}: is damaged, or is not a readable Parquet file: {first_line(error)}") from None


def _stored(metadata: Any) -> tuple[int, int]:
    """Rows of a Parquet file, and their bytes before compression."""
    return metadata.num_rows, sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))


def _rows_at_a_time(path: Path, file: Any) -> int:
    """Fewer than usual where a text that is stored once is so long that those of many rows would fill the memory."""
    longest = 1
    with path.open("rb") as raw:
        for number in range(file.metadata.num_row_groups):
            # pyarrow raises here for damage that would crash it below
            next(file.iter_batches(1, row_groups=[number]), None)
            group = file.metadata.row_group(number)
            longest = max([longest, *(_bytes_stored_once(raw, group.column(at)) for at in range(group.num_columns))])
    return max(1, min(BATCH, BATCH_BYTES // longest))


def _bytes_stored_once(file: Any, column: Any) -> int:
    """The unpacked size of a column's dictionary: the second number in the header of its page, in Thrift's form."""
    file.seek(column.dictionary_page_offset or column.data_page_offset)
    header = file.read(16)
    if not header.startswith(DICTIONARY_PAGE):
        return 0
    value = 0
    for shift, byte in enumerate(header.removeprefix(DICTIONARY_PAGE)):
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            break
    return value >> 1


def _bounded(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """Refuse a small file whose rows would fill the memory."""
    rows = total = 0
    for batch in batches:
        rows += batch.num_rows
        total += sum(map(_bytes_of, batch.columns))
        _refuse_larger(path, rows, total)
        yield batch


def _refuse_larger(path: Path, rows: int, total: int) -> None:
    size = path.stat().st_size
    if total > (most := max(MOST_BYTES, MOST_TIMES * size)):
        raise DataError(
            f"{path}: has {size:,} bytes, and its rows take more than {most:,}. Divide the file, or store its rows "
            "without so much repetition."
        )
    if rows > max(MOST_ROWS, size):
        raise DataError(f"{path}: has {size:,} bytes and {rows:,} rows, so almost all of them are alike or empty.")


def _bytes_of(column: Any) -> int:
    """What the values of a column take, a text that is stored once as often as rows have it."""
    from pyarrow import compute, types

    texts = getattr(column, "dictionary", None)
    if texts is None or not (types.is_string(texts.type) or types.is_large_string(texts.type)):
        return column.nbytes
    lengths = compute.call_function("binary_length", [texts])
    return compute.call_function("sum", [lengths.take(column.indices)]).as_py() or 0


def arrow(path: Path, seen: Seen) -> Iterator[Record]:
    """Read both Arrow layouts: the file with an index, and the stream that `datasets` saves."""
    from pyarrow import memory_map

    try:
        with memory_map(os.fspath(path)) as source:
            find_damage(_bounded(path, map(_merged_batch, _arrow_batches(path, source))))
            yield from _rows_of(path, _arrow_batches(path, source))
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{path}: is damaged, or is not a readable Arrow file: {first_line(error)}") from None


def _merged_batch(batch: Any) -> Any:
    """Return the batch if all its offsets are valid; reading invalid ones would crash the process."""
    for column in batch.columns:
        kind = _in_bytes(column.type)
        (column if kind == column.type else column.view(kind)).validate(full=True)
    return batch


def _in_bytes(kind: Any) -> Any:
    """The type with bytes in place of text: text that is not UTF-8 is a bad row, not a damaged file."""
    import pyarrow
    from pyarrow import types

    inside = [kind.field(at).with_type(_in_bytes(kind.field(at).type)) for at in range(kind.num_fields)]
    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.binary() if types.is_string(kind) else pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct(inside)
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.list_(inside[0]) if types.is_list(kind) else pyarrow.large_list(inside[0])
    return kind


def schema_of(path: Path) -> Any:
    """The schema of a Parquet or Arrow file; None for any other file, and for one that cannot be read."""
    if path.suffix.lower() not in (".parquet", ".arrow") or find_spec("pyarrow") is None:
        return None
    from pyarrow import ArrowException, ipc, memory_map
    from pyarrow.parquet import read_schema

    try:
        if path.suffix.lower() == ".parquet":
            return read_schema(path)
        with memory_map(os.fspath(path)) as source:
            try:
                return ipc.open_file(source).schema
            except ArrowException:
                source.seek(0)
                return ipc.open_stream(source).schema
    except (ArrowException, OSError, UnicodeDecodeError):
        return None


def class_names(schema: Any) -> dict[str, list[str]]:
    """The names of the numbers in columns of classes, as `datasets` stores them beside images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        kinds = {name: kind["_type"] for name, kind in features.items()}
        classes = [name for name, kind in kinds.items() if kind == "ClassLabel" and name in schema.names]
        named = {name: [*map(str, features[name]["names"])] for name in classes}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # other data, or another version's
        return {}
    return named if "Image" in kinds.values() else {}


def _arrow_batches(path: Path, source: Any) -> Iterator[Any]:
    from pyarrow import ArrowException, ipc

    source.seek(0)
    try:
        opened = ipc.open_file(source)
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    except ArrowException:
        source.seek(0)
        opened = ipc.open_stream(source)
        batches = iter(opened)
    column_names(opened.schema.names, str(path))
    yield from batches


def _rows_of(path: Path, batches: Iterator[Any]) -> Iterator[Record]:
    pieces = (piece for batch in batches for piece in _pieces(batch))
    named = ((batch.schema.names, map(_values, batch.columns)) for batch in pieces)
    rows = ((names, cells) for names, columns in named for cells in zip(*columns, strict=True))
    for number, (names, cells) in enumerate(rows, start=1):
        yield f"{path}:{number}", _row_of_values(names, cells, f"{path}:{number}")


def _pieces(batch: Any) -> Iterator[Any]:
    kinds, rows = batch.schema.types, BATCH
    if any(_holds(kind, _is_bytes) for kind in kinds):
        rows = LARGE_ROWS
    if any(_holds(kind, _is_shared) for kind in kinds):
        rows = max(1, min(rows, BATCH_BYTES // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _holds(kind: Any, is_such: Callable[[Any], bool]) -> bool:
    """Whether a type is such a type, or has one inside."""
    return is_such(kind) or any(_holds(kind.field(number).type, is_such) for number in range(kind.num_fields))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_shared(kind: Any) -> bool:
    """Whether several rows of a column may have the same stored value."""
    from pyarrow import types

    return (
        types.is_dictionary(kind) or types.is_run_end_encoded(kind) or types.is_string_view(kind)
        or types.is_binary_view(kind) or types.is_list_view(kind) or types.is_large_list_view(kind)
    )  # fmt: skip


def _values(column: Any) -> list[Any]:
    """The values of a column; for a cell that Python cannot represent, the error that it raised."""
    try:
        return column.to_pylist()
    except (OverflowError, ValueError):
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    """The value of a cell. A time that Python cannot represent is None, because no row format uses times."""
    from pyarrow.types import is_temporal

    try:
        return cell.as_py()
    except (OverflowError, ValueError) as error:
        return None if is_temporal(cell.type) else error


def _row_of_values(names: list[str], cells: tuple[Any, ...], where: str) -> Row | DataError:
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, UnicodeDecodeError):
            damage = f"{shown(cell.object)}, byte {cell.start}"
            return DataError(f"{where}: the column {name!r} is not UTF-8 text ({damage}).")
        if isinstance(cell, Exception):
            return DataError(f"{where}: the column {name!r} cannot be read: {first_line(cell)}.")
    return dict(zip(names, cells, strict=True))


def need(module: str, what: str, extra: str = "data") -> None:
    """Refuse to go on without an optional library, and say how to install it."""
    need_extra(module, what, extra, DataError)


def digest_of(tables: Iterable[Any]) -> str:
    """The SHA-256 of columns and rows, as Arrow writes them."""
    import pyarrow

    digest = sha256()
    for table in tables:
        written = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(written, table.schema) as stream:
            stream.write_table(table)
        digest.update(written.getvalue())
    return digest.hexdigest()
