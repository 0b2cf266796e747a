"""A GGUF file as it lies: the weights of a model as views of the mapped file, still in its blocks.

    rows of queries and keys     copied in the order of transformers, packed as they are
    weights of GPT-2             (O, I) in the file, and transposed for the model
    norms and biases             in the number format of the run; Gemma's norms less the 1 that GGUF adds

Nothing of the large matrices is read before a product needs it. config.json, tokenizer and generation settings are
written once to a folder in the cache that is named after the file's SHA-256.
"""

from __future__ import annotations

import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rankwise.base.config_check import hub_config
from rankwise.base.gguf.architectures import ARCHITECTURES, Architecture, GgufNames
from rankwise.base.gguf.conversion import check_vocabulary, checked, in_own_folder, name_of_content, refused
from rankwise.base.gguf.files import write_gguf
from rankwise.base.gguf.header import FAMILIES, USABLE, GgufHeader, config_of_gguf, read_gguf_header
from rankwise.base.gguf.tensors import without_weights
from rankwise.base.quiet import hush
from rankwise.config.base import shown
from rankwise.kernels.quantized.gguf import FORMATS
from rankwise.kernels.quantized.tensor import QuantizedTensor
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import SOURCE, cache_folder, mark_used
from rankwise.system.files import need_space, published, write_json

WORD = 4
"""Bytes: rows of blocks are read as words of this size, and a tensor that begins elsewhere is copied."""


def gguf_folder(file: Path, callback: Callback) -> Path | None:
    """The settings and the tokenizer of a GGUF file that is used as it lies.

    ModelError for a file that is damaged or does not fit its own settings. None, with a message that says why, for a
    sound file that can only be used converted.
    """
    checked(file, callback)
    header = read_gguf_header(file)
    if (reason := _reason_against(header)) is not None:
        callback(StatusMessage(f"{file.name} is not used as it lies but converted: {reason}"))
        return None
    with refused(file):
        return settings_folder(file, header)


def gguf_tensors(file: Path, folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a file whose settings `gguf_folder` gave, by transformers' names, without those that are tied to
    another; `dtype` is the number format of products, norms and biases."""
    with refused(file):
        return _Mapped(file, read_gguf_header(file), dtype).state(folder)


def _reason_against(header: GgufHeader) -> str | None:
    if _architecture(header) is None:
        return f"models of the architecture {shown(header.settings.get('general.architecture'))} cannot be used so yet"
    other = [name for name in header.tensors if header.type(name) not in USABLE]
    if other:
        return f"{other[0]} is stored as {header.type(other[0])}, which cannot be used so yet"
    return None


def _architecture(header: GgufHeader) -> Architecture | None:
    return ARCHITECTURES.get(FAMILIES.get(str(header.settings.get("general.architecture")), ""))


def quantization_of(header: GgufHeader) -> str:
    """The types of a file's matrices, the commonest first, such as `Q4_1, some Q6_K`."""
    counts = Counter(header.type(name) for name, sizes in header.tensors.items() if len(sizes) > 1)
    first, *others = [name for name, _ in counts.most_common()] or ["F32"]
    return f"{first}, some {', '.join(others)}" if others else first


def settings_folder(file: Path, header: GgufHeader) -> Path:
    """The folder with the settings and the tokenizer of a file whose header was checked, written if it is not there."""
    folder = cache_folder() / "gguf" / name_of_content(file)
    if not folder.is_dir():
        need_space(folder, 50_000_000)
        with published(folder, first_stays=True) as temporary:
            _write_settings(file, header, temporary)
    mark_used(folder)
    return folder


def tokenizer_folder(file: Path) -> Path:
    """The tokenizer and the chat template of a GGUF file, written once to a folder in the cache that is named after the
    SHA-256 of the file's header, so that a large file is not read. ModelError for a file that is damaged."""
    check_vocabulary(file)
    header = read_gguf_header(file)
    with file.open("rb") as opened:
        folder = cache_folder() / "gguf" / f"tokenizer-{sha256(opened.read(header.begin)).hexdigest()[:16]}"
    if not folder.is_dir():
        need_space(folder, 50_000_000)
        with refused(file), published(folder, first_stays=True) as temporary:
            _tokenizer(file, header).save_pretrained(temporary)
            write_json(temporary / SOURCE, {"file": file.name})
    mark_used(folder)
    return folder


def _tokenizer(file: Path, header: GgufHeader) -> Any:
    """AutoTokenizer, which is not told the family, first reads all texts of the file for the settings of the model, by
    a reader that takes 10 s for 150,000 pieces."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    hush()
    family = FAMILIES.get(str(header.settings.get("general.architecture")), "")
    with in_own_folder(file) as only:
        if TOKENIZER_MAPPING_NAMES.get(family) is None:
            return transformers.PreTrainedTokenizerFast.from_pretrained(**only)
        return transformers.AutoTokenizer.from_pretrained(**only, tokenizer_type=family)


def _config(header: GgufHeader) -> Any:
    """The settings of the model as transformers reads them, from a file that has them alone."""
    from transformers import AutoConfig

    settings = {key: value for key, value in header.settings.items() if key != "general.architecture" and value != []}
    with TemporaryDirectory() as folder:
        file = Path(folder, "settings.gguf")
        write_gguf(file, str(header.settings["general.architecture"]), settings, [])
        with in_own_folder(file) as only:
            return AutoConfig.from_pretrained(**only)


def _write_settings(file: Path, header: GgufHeader, folder: Path) -> None:
    """As transformers reads them. It takes some that decide of shapes for the default of the family, such as the width
    of a head of Qwen 3 and the positions of GPT-2; those are the file's."""
    import transformers

    shutil.copytree(tokenizer_folder(file), folder, dirs_exist_ok=True)  # a plan may have made it
    config = _config(header)
    for name, value in config_of_gguf(header, file).items():
        if name not in ("model_type", "pad_token_id"):
            setattr(config, name, value)
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        config.pad_token_id = None
    config.architectures = [type(without_weights(config)).__name__]
    config.save_pretrained(folder)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(folder)


class _Mapped:
    def __init__(self, file: Path, header: GgufHeader, dtype: torch.dtype) -> None:
        architecture = _architecture(header)
        assert architecture is not None, "the reasons against were asked for before"
        self._file, self._header, self._dtype, self._architecture = file, header, dtype, architecture
        self._bytes = torch.from_file(str(file), shared=False, size=header.size, dtype=torch.uint8)

    def state(self, folder: Path) -> dict[str, Tensor]:
        config = hub_config(folder)
        names = GgufNames(self._architecture, config.to_dict())
        return {
            parameter: self._value(str(names.of(parameter)), parameter, names)
            for parameter, _ in without_weights(config).named_parameters()
        }

    def _value(self, name: str, parameter: str, names: GgufNames) -> Tensor:
        path, _, kind = parameter.rpartition(".")
        rows, shape = self._rows(name)
        rows = names.without_rows(path, rows)
        form = FORMATS.get(self._header.type(name))
        if form is not None and len(self._header.tensors[name]) > 1:
            turned = kind == "weight" and path.rpartition(".")[2] in self._architecture.conv1d
            return QuantizedTensor(form, [rows], shape, self._dtype, turned)
        numbers = rows.view(torch.float32) if form is None else form.unpack([rows], shape, torch.float32)[0]
        numbers = names.from_stored(parameter, numbers.view(self._header.shape(name)))
        return numbers.to(self._dtype, copy=True)

    def _rows(self, name: str) -> tuple[Tensor, tuple[int, int]]:
        """The bytes of a tensor by rows, and how many rows of how many numbers they are. A vector has rows of one."""
        *sizes, columns = self._header.shape(name)
        form = FORMATS.get(self._header.type(name))
        if not sizes and (form is None or form.numbers == 1):
            sizes, columns = [columns], 1
        count = sizes[0] if sizes else 1
        begin, end = self._header.span(name)
        rows = self._bytes[begin:end].view(count, -1)
        return rows.clone() if begin % WORD else rows, (count, columns)
