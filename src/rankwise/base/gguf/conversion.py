"""Conversion of GGUF files to a folder of safetensors, done once. Weights are dequantised to float32, which keeps their
quantisation noise and adds none. After that, loading takes about 1 s instead of 15 s.

The folder is named after the file's SHA-256, so a changed file is converted again. Tensors are checked at each load,
even if the file was converted before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankwise.base.gguf.header import FAMILY, is_gguf, read_gguf_header
from rankwise.base.gguf.tensors import check_tensors, refuse
from rankwise.base.gguf.vocabulary import PREFIX
from rankwise.base.quiet import hush
from rankwise.config.base import shown
from rankwise.errors import ModelError, RankwiseError, first_line, is_out_of_memory, some
from rankwise.runs.records import Callback, StatusMessage, WarningMessage
from rankwise.system.cache import GGUF_FOLDER, SOURCE, cache_folder
from rankwise.system.contents import hash_of
from rankwise.system.files import need_space, published, write_json

TEMPLATE = "tokenizer.chat_template"
MODEL, TOKENS, MERGES, SCORES = (f"{PREFIX}{name}" for name in ("model", "tokens", "merges", "scores"))
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
"""What MODEL may be."""
SPECIAL = "bos", "eos", "unknown", "padding"


def _are(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kinds) for one in value)


EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **{key: ("a text", lambda value: isinstance(value, str)) for key in (FAMILY, MODEL, f"{PREFIX}pre", TEMPLATE)},
    TOKENS: ("a list of texts", _are(str)), f"{PREFIX}token_type": ("a list of numbers", _are(int)),
    SCORES: ("a list of numbers", _are(int, float)),
    MERGES: ("a list of pairs", lambda value: _are(str)(value) and all(one.count(" ") == 1 for one in value)),
}  # fmt: skip
"""What each setting of a tokenizer is, where it is there."""


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
    if not is_gguf(file):
        raise ModelError(f"{file} is not a GGUF file (it does not begin with GGUF).")
    hush()
    check_vocabulary(file)
    with refused(file):
        unused = check_tensors(file)
    if unused:
        callback(WarningMessage(
            f"{some(unused)} of {file.name} {'is' if len(unused) == 1 else 'are'} ignored: long texts use the "
            "architecture's own positions instead of those in the file"
        ))  # fmt: skip


def check_vocabulary(file: Path) -> None:
    """ModelError where the settings of its tokenizer are of kinds that no reader can use."""
    settings: dict[str, Any] = {**read_gguf_header(file, full=True).settings}
    order = MERGES if settings.get(MODEL) == BYTE_LEVEL else SCORES if settings.get(MODEL) == SENTENCEPIECE else MODEL
    needed = (MODEL, TOKENS, *([] if MERGES in settings else [order]))
    problems = [f'setting "{key}" is missing.' for key in dict.fromkeys(needed) if key not in settings]
    problems += [
        f'setting "{key}" is {shown(settings[key])}: {wanted} is expected.'
        for key, (wanted, fits) in EXPECTED.items() if key in settings and not fits(settings[key])
    ]  # fmt: skip
    for key in (f"{PREFIX}{name}_token_id" for name in SPECIAL if not problems):
        if (number := settings.get(key, 0)) not in range(len(settings[TOKENS])):
            problems.append(f'setting "{key}" is {shown(number)}: the number of a token is expected.')
    if problems:
        raise ModelError("\n  ".join([f"{file} cannot be used; download or make the file again:", *problems]))


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


@contextmanager
def in_own_folder(file: Path) -> Iterator[dict[str, Any]]:
    """What `from_pretrained` is given to read this file and no other: it lies in a folder of its own there, as a link,
    under a second name, or as a copy, whichever the system allows first."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        there = Path(folder, file.name)
        try:
            there.symlink_to(file.absolute())
        except OSError:  # Windows lets few users make links
            try:
                there.hardlink_to(file)
            except OSError:  # on another disk
                shutil.copyfile(file, there)
        yield {"pretrained_model_name_or_path": folder, "gguf_file": file.name, "local_files_only": True,
               "trust_remote_code": False}  # fmt: skip


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # stderr is redirected to hide the converter's progress bar
    with refused(file), in_own_folder(file) as only, redirect_stderr(StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(**only)
        loaded: Any = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, output_loading_info=True, **only)
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
    refuse(file, problems)
