"""Encoded rows, kept by the content they were made from, so that the same data are encoded once.

The key is the content of every file, the settings that say how rows are read and rendered, the tokenizer, the template
and our own version. An entry is a folder that takes its name when it is whole: two processes that make the same one do
the work twice, and the first stays. One that was damaged since does not verify, and is made anew. What nobody has asked
for in thirty days is removed when something new is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from rankwise.config.data import DataConfig
from rankwise.data.preparation import Prepared, content_identity
from rankwise.data.sequences import EncodedRows
from rankwise.errors import RankwiseError
from rankwise.runs.data_report import DataReport
from rankwise.runs.manifest import installed_version
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import cache_folder, forget_old
from rankwise.system.files import published, sha256_of, write_json
from rankwise.text.encode import RowEncoder


def key_of(spec: DataConfig, encoder: RowEncoder, identity: str, model: str) -> str:
    """`identity` is that of the tokenizer and the template; `model` is named in the data report."""
    settings = spec.model_dump(mode="json", exclude={"packing"})
    parts = [our_own(), settings, content_identity(spec), encoder.limit, identity, model]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def our_own() -> str:
    """Changes with every line of ours, and with the libraries that render and encode."""
    package = Path(__file__).parents[1]
    code = b"".join(file.read_bytes() for file in sorted([*package.rglob("*.py"), *package.rglob("*.yaml")]))
    return " ".join([sha256(code).hexdigest(), *map(installed_version, ("transformers", "tokenizers"))])


def _folder(key: str) -> Path:
    return cache_folder() / "encoded" / key


def recall(key: str) -> Prepared | None:
    """What was kept under the key, if it is there and whole."""
    folder = _folder(key)
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        if _hashes(folder) | {"data_report": _digest(facts["data_report"])} != facts["sha256"]:
            return None
        data_report = DataReport.model_validate(facts["data_report"])
        os.utime(folder)  # asked for
        trained, measured = (np.fromfile(folder / f"{name}.bin", np.int64) for name in ("trained", "measured"))
        return Prepared(EncodedRows.read(folder), trained, measured, data_report)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # missing, damaged, or of another version
        return None


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each array."""
    return {file.name: sha256_of(file) for file in folder.glob("*.bin")}


def _digest(data_report: object) -> str:
    return sha256(json.dumps(data_report, sort_keys=True).encode()).hexdigest()


def keep(key: str, prepared: Prepared, callback: Callback) -> None:
    """A cache that cannot be written costs nothing but the time to encode again."""
    folder = _folder(key)
    try:
        if folder.exists() and recall(key) is None:  # damaged; what another process has made meanwhile stays
            shutil.rmtree(folder, ignore_errors=True)
        with published(folder, first_stays=True) as temporary:
            prepared.documents.write(temporary)
            prepared.trained.tofile(temporary / "trained.bin")
            prepared.measured.tofile(temporary / "measured.bin")
            data_report = prepared.data_report.model_dump(mode="json")
            hashes = _hashes(temporary) | {"data_report": _digest(data_report)}
            write_json(temporary / "facts.json", {"sha256": hashes, "data_report": data_report})
        forget_old(folder.parent)
    except (RankwiseError, OSError) as error:
        callback(StatusMessage(f"the encoded rows are not kept for the next time: {error}"))
