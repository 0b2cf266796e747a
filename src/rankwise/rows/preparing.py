"""Turn the rows of files into token sequences, with the model's chat template or a recipe's, and report on them.

The same data is tokenized only once. The key of what was encoded is a hash of every file's content, the settings of
reading and rendering, the tokenizer, the template and rankwise's own code. An entry is a folder that gets its name when
it is complete; a process that is killed before leaves nothing, and the next begins again. If two processes create the
same entry, the first one stays. A damaged entry fails its hash check and is created again. Entries that were not used
for thirty days are removed when a new one is stored, and the oldest beyond 20 GB. Rows can be read out of their tokens,
so that an entry is its user's alone, and goes where somebody deletes the file that it was made of.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from rankwise.config.data import INFER, DataConfig
from rankwise.errors import DataError, RankwiseError
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter
from rankwise.rows.files.licences import find_licence
from rankwise.rows.preparation import Prepared, prepared_of
from rankwise.rows.reading import Encoding, ReadRows, goes_on
from rankwise.rows.sources import open_source
from rankwise.rows.text.outcome import RowEncoder, RowEncoding
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.system.cache import cache_folder, forget_old, our_own
from rankwise.system.files import published, sha256_of, write_json


def prepare(
    config: DataConfig, row_encoding: RowEncoding, callback: Callback, check_stop: Callable[[], None] = goes_on
) -> Prepared:
    """Encoded rows, from the cache if these were encoded before. What is wrong with them stands in the data report."""
    row_encoding = row_encoding.by(config)
    work = _work(config, row_encoding, callback, check_stop)
    assert work.encoder is not None, "rows are encoded with one"
    identity = f"{type(work.encoder).__name__} {row_encoding.identity}"
    key = key_of(config, work.encoder, identity, row_encoding.name)
    prepared = recall(key)
    if prepared is None:
        every, prepared = _encoded(work, entries())
        if (
            key_of(config, work.encoder, identity, row_encoding.name) == key
        ):  # else somebody wrote into a file meanwhile
            keep(key, prepared, every.writer, callback)
            prepared = recall(key) or prepared  # so that they lie on the disk once
    new, report = row_encoding.new_tokens(prepared.trained_rows), prepared.data_report
    if new is None:
        return prepared
    changes = {"new_tokens": new, "warnings": (*report.warnings, *new.warnings)}
    return replace(prepared, data_report=report.model_copy(update=changes))


def _work(
    config: DataConfig, row_encoding: RowEncoding, callback: Callback, check_stop: Callable[[], None] = goes_on
) -> Encoding:
    encoder, facts = row_encoding.encoder(config), row_encoding.facts
    return Encoding(config, encoder, facts, callback=callback, model=row_encoding.name, check_stop=check_stop)


def _encoded(work: Encoding, folder: Path | None) -> tuple[ReadRows, Prepared]:
    try:
        every = work.read(folder)
        return every, prepared_of(work, every)
    except OSError:
        if folder is None:
            raise
    return _encoded(work, None)  # the disk is full


def checked(config: DataConfig, row_encoding: RowEncoding, folder: Path) -> DataReport:
    """The data report alone, which leaves nothing in the cache. What takes room lies in the folder without a name."""
    _, prepared = _encoded(_work(config, row_encoding.by(config), silent), folder)
    return prepared.data_report


def refuse_fatal(data_report: DataReport, *, trains: bool = True) -> None:
    """Rows that are only measured may mean what they like."""
    doubts = [doubt.refusal for doubt in data_report.doubts if not trains]
    if fatal := [problem for problem in data_report.fatal if problem not in doubts]:
        raise DataError("\n".join([*fatal, *data_report.advice]))


def key_of(config: DataConfig, encoder: RowEncoder, identity: str, model: str) -> str:
    """The key of encoded rows in the cache. `identity` is the hash of tokenizer and template; `model` counts because
    the stored data report names it."""
    settings = config.model_dump(mode="json", exclude={"packing"})
    parts = [our_own(), settings, content_identity(config), encoder.limit, identity, model]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def content_identity(config: DataConfig) -> str:
    """Changes with any byte of any source, and of a file that says what answers may be."""
    digest = sha256()
    for file in (config.answer_schema, config.answer_grammar):
        if file is not None and file != INFER:
            digest.update(sha256_of(Path(file)).encode())
    for source in filter(None, (*config.all_sources, config.measured_source)):
        reading = open_source(config, source)
        for part in reading.parts:
            licence = find_licence(part.folder) if part.folder is not None else ""
            digest.update(f"{part.name}\0{part.identity()}\0{licence}\0".encode())
        digest.update("\0".join(reading.left_aside).encode())
    return digest.hexdigest()


def entries() -> Path:
    return cache_folder() / "encoded"


def recall(key: str) -> Prepared | None:
    """The entry of this key, or None if it is missing or damaged."""
    folder = entries() / key
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if _hashes(folder) | {"data_report": _digest(facts["data_report"])} != facts["sha256"]:
            return None
        data_report = DataReport.model_validate(facts["data_report"])
        os.utime(folder)  # marks it as used
        trained, measured = (np.fromfile(folder / f"{name}.bin", np.int64) for name in ("trained", "measured"))
        return Prepared(EncodedRows.read(folder), trained, measured, data_report)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # missing, damaged, or of another version
        return None


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each array."""
    return {file.name: sha256_of(file) for file in folder.glob("*.bin")}


def _digest(data_report: object) -> str:
    return sha256(json.dumps(data_report, sort_keys=True).encode()).hexdigest()


def forget(name: str) -> None:
    """Remove what was encoded of files whose path contains this name."""
    for file in entries().glob("*/facts.json"):
        with suppress(FileNotFoundError):  # another process may be removing it too
            if name in file.read_text(encoding="utf-8", errors="replace"):
                shutil.rmtree(file.parent)


def keep(key: str, prepared: Prepared, writer: RowWriter, callback: Callback) -> None:
    """Store an entry. If the cache cannot be written, the next run encodes the rows again."""
    folder = entries() / key
    try:
        if folder.exists() and recall(key) is None:  # damaged; an entry that another process has just written stays
            shutil.rmtree(folder, ignore_errors=True)
        with published(folder, first_stays=True) as temporary:
            temporary.chmod(0o700)  # and its files with it
            writer.write(temporary)
            prepared.trained.tofile(temporary / "trained.bin")
            prepared.validation.tofile(temporary / "measured.bin")
            data_report = prepared.data_report.model_dump(mode="json")
            hashes = _hashes(temporary) | {"data_report": _digest(data_report)}
            write_json(temporary / "facts.json", {"sha256": hashes, "data_report": data_report})
        forget_old(folder.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the encoded rows cannot be cached: {error}"))
