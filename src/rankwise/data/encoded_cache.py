"""A cache of encoded rows, so that the same data is tokenized only once.

The key is a hash of every file's content, the settings of reading and rendering, the tokenizer, the template and
rankwise's own code. An entry is a folder that gets its name when it is complete. If two processes create the same
entry, the first one stays. A damaged entry fails its hash check and is created again. Entries that were not used for
thirty days are removed when a new one is stored, and the oldest beyond 20 GB. Rows can be read out of their tokens, so
that an entry is its user's alone, and goes where somebody deletes the file that it was made of.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.licences import find_licence
from rankwise.data.preparation import Prepared
from rankwise.data.sequences import EncodedRows, RowWriter
from rankwise.data.sources import open_source
from rankwise.errors import RankwiseError
from rankwise.runs.data_report import DataReport
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.extras import installed_version
from rankwise.system.files import published, sha256_of, write_json
from rankwise.text.outcome import RowEncoder


def key_of(spec: DataConfig, encoder: RowEncoder, identity: str, model: str) -> str:
    """The key of an entry. `identity` is the hash of tokenizer and template; `model` is named in the data report."""
    settings = spec.model_dump(mode="json", exclude={"packing"})
    parts = [our_own(), settings, content_identity(spec), encoder.limit, identity, model]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def content_identity(spec: DataConfig) -> str:
    """Changes with any byte of any source."""
    digest = sha256()
    for source in filter(None, (*spec.all_sources, spec.measured_source)):
        reading = open_source(spec, source)
        for part in reading.parts:
            licence = find_licence(part.folder) if part.folder is not None else ""
            digest.update(f"{part.name}\0{part.identity()}\0{licence}\0".encode())
        digest.update("\0".join(reading.left_aside).encode())
    return digest.hexdigest()


@cache
def our_own() -> str:
    """A hash of rankwise's code and of the versions of the libraries that render and tokenize."""
    package = Path(__file__).parents[1]
    code = b"".join(file.read_bytes() for file in sorted([*package.rglob("*.py"), *package.rglob("*.yaml")]))
    return " ".join([sha256(code).hexdigest(), *map(installed_version, ("transformers", "tokenizers"))])


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


def keep(key: str, prepared: Prepared, written: RowWriter, callback: Callback) -> None:
    """Store an entry. If the cache cannot be written, the next run encodes the rows again."""
    folder = entries() / key
    try:
        if folder.exists() and recall(key) is None:  # damaged; an entry that another process has just written stays
            shutil.rmtree(folder, ignore_errors=True)
        with published(folder, first_stays=True) as temporary:
            temporary.chmod(0o700)  # and its files with it
            written.write(temporary)
            prepared.trained.tofile(temporary / "trained.bin")
            prepared.measured.tofile(temporary / "measured.bin")
            data_report = prepared.data_report.model_dump(mode="json")
            hashes = _hashes(temporary) | {"data_report": _digest(data_report)}
            write_json(temporary / "facts.json", {"sha256": hashes, "data_report": data_report})
        forget_old(folder.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the encoded rows cannot be cached: {error}"))
