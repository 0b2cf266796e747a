"""Signatures of folders in the format of OpenSSF model signing, with a key on an elliptic curve, without the network.

`model.sig` lies in the folder and has the SHA-256 of each file beside it. The library model-signing makes it, and
proves whose it is; what differs in the folder is found by the code of `rankwise runs verify` (runs/integrity.py).
Without a key nobody knows who signed: whoever can write to a folder can also sign it anew.
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rankwise.base.cached import is_here
from rankwise.base.sources import find
from rankwise.commands.provenance.recorded import Recorded, result_of
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, ResultError, RunError, some
from rankwise.rows.text.text_encoding import is_unicode
from rankwise.runs.data_report import DATA_REPORT
from rankwise.runs.directory import SIGNATURE
from rankwise.runs.integrity import COPY, check_result, compare, files_in
from rankwise.runs.manifest import TRAINING
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.system.extras import need_extra
from rankwise.system.files import write_atomic

PASSWORD = "RANKWISE_KEY_PASSWORD"
"""The environment variable with the password of an encrypted key."""
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".npz", ".bin")
LEFT_OUT = (SIGNATURE, ".git", ".github", ".gitattributes", ".gitignore")
"""What every signature of the format leaves out."""
LARGEST = 100_000_000
"""Bytes of a signature."""
KEYS = "A key on an elliptic curve in PEM is expected (docs/signing.md), and its password where it is encrypted."


@dataclass(frozen=True)
class Signed:
    folder: Path
    signature: Path
    files: int


@dataclass(frozen=True)
class Verified:
    folder: Path
    status: Literal["verified", "unchanged, signer unknown", "changed"]
    files: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """What differs in the base and in the rows."""
    not_compared: tuple[str, ...]


def sign(name: str, key: Path, callback: Callback = silent) -> Signed:
    """Sign a run's result, or another folder."""
    _need("rankwise sign")
    from model_signing import hashing, signing

    folder, run = result_of(name)
    if run is not None:
        check_result(run, callback, way_out=COPY)
    password = _password(key, folder, callback)
    if not any(one.endswith(WEIGHTS) for one in files_in(folder)):
        raise RunError(f"{folder} has no weights ({', '.join(WEIGHTS)}). Name the folder of a model or an adapter.")
    paths = [(one, folder / one) for one in files_in(folder)]
    if odd := [one for one, path in paths if path.is_symlink() or not path.is_file() or not is_unicode(one)]:
        raise ResultError(
            f"{folder} cannot be signed, since it has links, things that are no files, or names that are not Unicode: "
            f"{some(map(ascii, odd))}. Put files in their places."
        )
    signer: Any = signing.Config().set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    try:
        signer.use_elliptic_key_signer(private_key=key, password=password)
    except Exception:  # cryptography has many kinds of errors for a key that it cannot read
        raise ConfigError([f"{key} cannot be used. {KEYS}"]) from None
    with TemporaryDirectory() as temporary:
        signer.sign(folder, Path(temporary) / SIGNATURE)
        write_atomic(folder / SIGNATURE, (Path(temporary) / SIGNATURE).read_bytes())
    _, recorded, _ = _signed(folder)
    return Signed(folder, folder / SIGNATURE, len(recorded))


def _need(what: str) -> None:
    for module in ("model_signing", "OpenSSL"):  # version 1.1.1 does not name the second among what it needs
        need_extra(module, what, "sign", RunError)


def _password(key: Path, folder: Path, callback: Callback) -> bytes | None:
    """Refuse a key that is no secret; return the password of one that is encrypted."""
    mode, encrypted = key.stat().st_mode, b"ENCRYPTED" in key.read_bytes()
    if os.name == "nt":
        callback(StatusMessage(f"who may read {key} is not checked on Windows"))
    elif mode & 0o077:
        raise ConfigError([f"{key} may be read or written by others (mode {mode & 0o777:o}), so it is no secret. Make "
                           f"a new key, or if nobody has read it, take that right away: chmod 600 {key}"])  # fmt: skip
    if key.resolve().is_relative_to(folder.resolve()):
        raise ConfigError([f"{key} lies in the folder that is signed to be given to others. Move it away."])
    password = os.environ.get(PASSWORD, "") if encrypted else ""
    if encrypted and not password and sys.stdin.isatty():
        password = getpass(f"Password of {key}: ")
    if encrypted and not password:
        raise ConfigError([f"{key} is encrypted: put its password into the environment variable {PASSWORD}."])
    return password.encode() or None


def verify(
    name: str, key: Path | None = None, data: Sequence[str] = (), base_model: str | None = None,
    callback: Callback = silent,
) -> Verified:  # fmt: skip
    """Compare a folder with its signature, and the base and the rows with what is signed of them. ResultError where
    there is no signature, or one by another key, or of something else."""
    folder, _ = result_of(name)
    content, recorded, left_out = _signed(folder)
    if key is not None:
        _check_signer(folder, content, key)
    there = [one for one in files_in(folder) if not any(map(PurePath(one).is_relative_to, (SIGNATURE, *left_out)))]
    changed, missing, added = compare(folder, recorded, there)
    differing = {*changed, *missing}
    weights = {one for one in recorded if one.endswith(WEIGHTS)}
    if TRAINING in differing and weights and weights <= differing:
        raise ResultError(
            f"{folder / SIGNATURE} belongs to another folder, or to this one as it was before: {TRAINING} and all "
            f"weights that it names ({some(sorted(weights), 3)}) are not these. Ask for the signature of this folder."
        )
    elsewhere, not_compared = list[str](), list[str]()
    hidden = [f"{one}, which the signature leaves out" for one in left_out if one not in LEFT_OUT]
    if {TRAINING, DATA_REPORT} <= recorded.keys() - differing:
        elsewhere, not_compared = _elsewhere(Recorded.of(name), data, base_model, callback)
    status = "unchanged, signer unknown" if key is None else "verified"
    if changed or missing or added or elsewhere:
        status = "changed"
    found = map(tuple, (changed, missing, added, elsewhere, [*hidden, *not_compared]))
    return Verified(folder, status, len(recorded), *found)


def _elsewhere(
    recorded: Recorded, data: Sequence[str], base_model: str | None, callback: Callback
) -> tuple[list[str], list[str]]:
    """What differs in the base and in the rows, and what there is nothing to compare with."""
    own = recorded.facts.base_model.name if recorded.run is None else recorded.run.experiment.base.name
    of_folder = recorded.run is None and os.path.exists(own)  # noqa: PTH110  somebody's folder names none of ours
    if base_model is None and not of_folder and is_here(ModelConfig(name=own)):
        base_model = own
    config = DataConfig(**recorded.settings(data)["data"]) if data else None
    found = [] if base_model is None else recorded.base_change(find(ModelConfig(name=base_model), callback))
    found += [] if config is None else recorded.row_changes(config)
    unknown = [f"the base model {own} (--base-model)"] * (base_model is None) + ["the rows (--data)"] * (config is None)
    return found, unknown


def _signed(folder: Path) -> tuple[bytes, dict[str, str], list[str]]:
    """The signature of a folder, the hash that it has of each file, and the names that it leaves out."""
    file = folder / SIGNATURE
    if not file.is_file():
        raise ResultError(f"{folder} has no signature ({SIGNATURE}). rankwise sign makes one.")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        content = file.read_bytes() if file.stat().st_size <= LARGEST else b""
        predicate = json.loads(b64decode(json.loads(content)["dsseEnvelope"]["payload"], validate=True))["predicate"]
        how, hashes = predicate["serialization"], {str(one["name"]): one["digest"] for one in predicate["resources"]}
        if (how["method"], how["hash_type"]) == ("files", "sha256"):
            return content, hashes, list(map(str, how.get("ignore_paths", ())))
    raise ResultError(f"{file} is damaged, or is no signature of OpenSSF model signing by SHA-256 of whole files.")


class _ProvedError(Exception):
    """The signature is by the key: only then does the library hash the folder, which rankwise does itself."""


def _check_signer(folder: Path, signature: bytes, key: Path) -> None:
    _need("rankwise verify --key")
    from model_signing import hashing, verifying

    class Compared(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> Any:
            raise _ProvedError

    key.stat()  # OSError where it is not there
    with TemporaryDirectory() as temporary, redirect_stdout(sys.stderr):
        copied = Path(temporary) / SIGNATURE  # what was read, whatever is written there meanwhile
        copied.write_bytes(signature)
        verifier = verifying.Config().set_hashing_config(Compared())
        try:
            verifier.use_elliptic_key_verifier(public_key=key)
        except Exception:  # as of private keys
            raise ConfigError([f"{key} cannot be used. {KEYS} A public key is needed here."]) from None
        try:
            verifier.verify(folder, copied)
        except _ProvedError:
            return
        except Exception:  # the library's own, cryptography's, and those of a damaged file
            raise ResultError(
                f"{folder / SIGNATURE} was not made with the private key that belongs to {key}."
            ) from None
