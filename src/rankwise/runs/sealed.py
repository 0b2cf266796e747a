"""A sealed folder: `state.json`, written last, has the size and SHA-256 of each other file, and a hash of itself.

    {"format": 2, "step": 40, …, "files": {"state.safetensors": {"bytes": 1024, "sha256": "…"}, …}, "sha256": "…"}

So a missing file, half a file, a flipped bit and a file of another step are all seen before anything is read. Format 1,
of earlier versions, has the tensors alone (`"tensors": {"bytes": …, "sha256": …}`).
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Any

from rankwise.errors import RunError
from rankwise.system.files import sha256_of, write_json

FACTS, TENSORS = "state.json", "state.safetensors"
FORMAT, EARLIER = 2, 1
LARGEST_FACTS = 10_000_000


class DamagedStep(RunError):
    """A file of a checkpoint or snapshot that is not what was written, and why."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} is damaged ({why}), so the run cannot be resumed. Use --restart to start it again.")
        self.file, self.why = file, why


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts, with what each file of the folder has to be."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    facts = {"format": FORMAT, **facts, "files": files}
    write_json(folder / FACTS, facts | {"sha256": hash_of(facts)})


def read_facts(folder: Path) -> dict[str, Any]:
    """What `seal` wrote; DamagedStep where it did not write this."""
    file = folder / FACTS
    try:
        there = os.lstat(file)
        if not S_ISREG(there.st_mode):  # reading a pipe would block
            raise DamagedStep(file, "it is not a regular file")
        if there.st_size > LARGEST_FACTS:
            raise DamagedStep(file, "it is far too large")
        facts = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DamagedStep(file, "it is missing") from None
    except OSError as error:
        raise DamagedStep(file, error.strerror or type(error).__name__) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, RunError):
            raise
        raise DamagedStep(file, "it is not JSON") from None
    if not isinstance(facts, dict) or facts.pop("sha256", None) != hash_of(facts):
        raise DamagedStep(file, "its content does not match its hash")
    if facts["format"] == EARLIER:
        return facts | {"files": {TENSORS: facts["tensors"]}}
    if facts["format"] != FORMAT:
        raise RunError(f"{file} has format {facts['format']}, but this version of rankwise reads format {FORMAT}.")
    return facts


def check_file(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """DamagedStep where a file is not what the facts say."""
    file, recorded = folder / name, facts["files"][name]
    try:
        there = os.lstat(file)
        if not S_ISREG(there.st_mode):
            raise DamagedStep(file, "it is not a regular file")
        if there.st_size != recorded["bytes"]:
            raise DamagedStep(file, f"it has {there.st_size:,} of {recorded['bytes']:,} bytes")
        if sha256_of(file) != recorded["sha256"]:
            raise DamagedStep(file, "its content does not match the recorded hash")
    except FileNotFoundError:
        raise DamagedStep(file, "it is missing") from None
    except OSError as error:
        raise DamagedStep(file, error.strerror or type(error).__name__) from None


def with_hash(value: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash of itself, as `state.json` has one."""
    facts = {name: one for name, one in value.items() if name != "sha256"}
    return facts | {"sha256": hash_of(facts)}


def hash_of(facts: dict[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
