"""Conversion of GGUF files to a folder of safetensors, done once. Weights are dequantised to float32, which keeps their
quantisation noise and adds none. After that, loading takes about 1 s instead of 15 s.

The folder is named after the file's SHA-256, so a changed file is converted again. Tensors are checked at each load,
even if the file was converted before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankwise.base.gguf.tensors import check_tensors
from rankwise.base.quiet import hush
from rankwise.errors import ModelError, RankwiseError, first_line, is_out_of_memory, some
from rankwise.planning.tokens import checked_vocabulary
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.cache import GGUF_FOLDER, SOURCE, cache_folder
from rankwise.system.contents import hash_of
from rankwise.system.files import need_space, published, write_json

MAGIC = b"GGUF"


def converted(file: Path, callback: Callback) -> Path:
    """Return the safetensors folder of a GGUF file, converting it if necessary."""
    checked(file, callback)
    folder = cache_folder() / "models" / f"{GGUF_FOLDER}{name_of_content(file)}"
    if not folder.is_dir():
        need_space(folder, 7 * file.stat().st_size)
        callback(StatusMessage(f"Converting {file.name} to safetensors, once (about 20 s for 100 MB)"))
        with published(folder, first_stays=True) as temporary:
            _convert(file, temporary)
            write_json(temporary / SOURCE, {"file": file.name})
    return folder


def name_of_content(file: Path) -> str:
    """The beginning of a file's SHA-256."""
    return hash_of(file)[:16]


def checked(file: Path, callback: Callback) -> None:
    """Refuse a file whose tensors do not fit its settings, before memory is taken; report tensors that are ignored."""
    with file.open("rb") as opened:
        if opened.read(4) != MAGIC:
            raise ModelError(f"{file} is not a GGUF file (it does not begin with GGUF).")
    hush()
    checked_vocabulary(file)
    with refused(file):
        unused = check_tensors(file)
    if unused:
        callback(WarningMessage(
            f"{some(unused)} of {file.name} {'is' if len(unused) == 1 else 'are'} ignored: long texts use the "
            "architecture's own positions instead of those in the file"
        ))  # fmt: skip


@contextmanager
def refused(file: Path) -> Iterator[None]:
    """Turn any error of the GGUF readers into one that names the file."""
    try:
        yield
    except RankwiseError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{file} cannot be used: {first_line(error)}") from None


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # in a folder of its own, so that no other file is read; stderr is redirected to hide the converter's progress bar
    with refused(file), TemporaryDirectory() as alone, redirect_stderr(StringIO()):
        Path(alone, file.name).symlink_to(file.absolute())
        only = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(alone, **only)
        loaded: Any = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, output_loading_info=True, **only)
    model, report = loaded
    _check_all_was_read(file, report)
    # the weights are not quantised any more; with these settings transformers would refuse to save and load them
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_all_was_read(file: Path, report: Any) -> None:
    """Refuse a conversion with missing weights, which would be random. Tied weights do not count as missing."""
    missing, other = sorted(report["missing_keys"]), sorted(str(one) for one in report["mismatched_keys"])
    problems = [f"{len(missing)} of the model's weights are missing: {some(missing, 4)}."] if missing else []
    problems += [f"{len(other)} have a different shape than in the model: {some(other, 4)}."] if other else []
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be used; download or make the file again:", *problems]))
