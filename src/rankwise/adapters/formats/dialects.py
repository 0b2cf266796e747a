"""Every format that an adapter is read from, known by what is in the files.

    PEFT        a folder whose adapter_config.json has peft_type
    mlx-lm      a folder whose adapter_config.json has lora_parameters or fine_tune_type
    GGUF        a file that begins with GGUF and says that it is an adapter, or a folder with one such file

docs/importing.md says how the files of other tools become PEFT's. Pickled files are programs and are never read: the
message has the command that rewrites one as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from rankwise.adapters.formats import gguf_lora, mlx, peft_reader, vera
from rankwise.adapters.formats.imported import ImportedSource, Modules
from rankwise.adapters.formats.peft_reader import CONFIG, PREFIX, peft_base, read_weights
from rankwise.adapters.formats.tensors import SUFFIXES, open_tensors, refuse_pickle
from rankwise.adapters.weights import AdapterWeights
from rankwise.base.gguf.header import is_gguf
from rankwise.errors import AdapterError, some

_LIKE_MLX = regex.compile(r".+\.lora_[ab]")


Reader = Callable[[ImportedSource, Modules | None], AdapterWeights]


@dataclass(frozen=True)
class Dialect:
    """A format, and where one adapter in it lies."""

    name: str
    label: str
    """For messages: whose format it is."""
    reader: Reader
    base_of: Callable[[ImportedSource], str | None]
    source: ImportedSource

    @property
    def is_peft(self) -> bool:
        return self.name == "peft"

    @property
    def base(self) -> str | None:
        """The base model that the files name, as PEFT would load it."""
        return self.base_of(self.source)

    def read(self, modules: Modules | None = None) -> AdapterWeights:
        return self.reader(self.source, modules)


FORMATS: dict[str, tuple[str, Reader, Callable[[ImportedSource], str | None]]] = {
    "peft": (
        "PEFT", lambda source, modules: read_weights(source.folder, modules), lambda source: peft_base(source.folder)[0]
    ),
    "mlx": ("mlx-lm", mlx.read, mlx.base_of),
    "vera": ("PEFT", vera.read, vera.base_of),
    "gguf": ("llama.cpp", gguf_lora.read, gguf_lora.base_of),
}  # fmt: skip
"""Whose each format is, and the functions that read an adapter and the name of its base."""
OF_PEFT = {"VERA": "vera"}
"""Formats of PEFT's other methods, by the peft_type of their settings."""


def read_adapter(path: Path, modules: Modules | None = None) -> AdapterWeights:
    """An adapter in any format; for a model where its `modules` are given, and otherwise under the file's own names.
    AdapterError with all that is wrong, whoever wrote it."""
    return detect(path).read(modules)


def detect(path: Path) -> Dialect:
    """The format of a folder or file; AdapterError where it is none or could be several."""
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise AdapterError(f"{path} is neither a folder nor a file, so there is no adapter.")
    refuse_pickle(path)
    if is_gguf(path):
        return _dialect("gguf", path)
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path} is not an adapter: safetensors and GGUF files are read, and folders with them.")
    if (path.parent / CONFIG).is_file() and path.name in (peft_reader.WEIGHTS, mlx.WEIGHTS):
        return _of_folder(path.parent)
    raise AdapterError(f"{path} has {_without_settings(path)}")


def _of_folder(folder: Path) -> Dialect:
    settings = folder / CONFIG
    if settings.is_file():
        return _by_settings(folder, settings)
    files = [file for pattern in ("*.safetensors", "*.gguf") for file in sorted(folder.glob(pattern))]
    if len(files) == 1:
        return detect(files[0])
    if files:
        raise AdapterError(f"{folder} has {len(files)} files that may be adapters; name one: {some(map(str, files))}.")
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix.lower() in SUFFIXES:
            refuse_pickle(file)
    raise AdapterError(f"{folder} has no adapter: it has neither {CONFIG} nor a safetensors or GGUF file.")


def _by_settings(folder: Path, settings: Path) -> Dialect:
    given = _settings_in(settings)
    if "peft_type" in given or not given.keys() & {"fine_tune_type", "lora_parameters"}:
        return _dialect(OF_PEFT.get(str(given.get("peft_type")), "peft"), folder / peft_reader.WEIGHTS, settings)
    return _dialect("mlx", folder / mlx.WEIGHTS, settings)


def _settings_in(settings: Path) -> dict[str, Any]:
    """Empty for what is no JSON object, which the reader of PEFT's settings refuses."""
    try:
        value: Any = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _without_settings(file: Path) -> str:
    """What a safetensors file has that is no adapter by itself."""
    with open_tensors(file) as opened:
        names = list(opened.keys())
    whose = "PEFT" if any(name.startswith(PREFIX) for name in names) else "mlx-lm"
    if whose == "PEFT" or any(map(_LIKE_MLX.fullmatch, names)):
        usual = peft_reader.WEIGHTS if whose == "PEFT" else mlx.WEIGHTS
        return (
            f"the names of {whose}, but there is no {CONFIG} beside it, which says the scale, or the file "
            f"is not called {usual}."
        )
    return (
        f"no names of PEFT or mlx-lm; its tensors are {some(names, 4)}. If it is another tool's adapter, "
        "docs/importing.md says how to give it PEFT's names."
    )


def _dialect(name: str, tensors: Path, settings: Path | None = None) -> Dialect:
    return Dialect(name, *FORMATS[name], ImportedSource(tensors, settings))
