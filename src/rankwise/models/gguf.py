"""A GGUF file into a folder of safetensors, once. Weights are dequantised to float32, so the noise of their
quantisation stays and nothing is added; the next load takes a second instead of a quarter of a minute.

The folder is named for the file's SHA-256: another file, or the same one changed, is converted anew.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankwise.errors import ModelError
from rankwise.models.quiet import hush
from rankwise.run.cache import cache_folder
from rankwise.run.records import Announce, Said
from rankwise.run.writing import need_space, published, sha256_of

MAGIC = b"GGUF"


def converted(file: Path, announce: Announce) -> Path:
    """The safetensors folder of a GGUF file, made if it is not there."""
    with file.open("rb") as opened:
        if opened.read(4) != MAGIC:
            raise ModelError(f"{file} is not a GGUF file (it does not begin with GGUF).")
    folder = cache_folder() / "models" / f"gguf-{sha256_of(file)[:16]}"
    if not folder.is_dir():
        need_space(folder, 7 * file.stat().st_size)
        announce(Said(f"Converting {file.name} to safetensors, once (about 20 s for 100 MB)"))
        with published(folder, first_stays=True) as temporary:
            _convert(file, temporary)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hush()
    try:
        # In a folder of its own, so that nothing else beside the file is read. The converter's bar has no switch.
        with TemporaryDirectory() as alone, redirect_stderr(StringIO()):
            Path(alone, file.name).symlink_to(file.absolute())
            only = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(alone, **only)
            model: Any = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **only)
    except (ValueError, KeyError, IndexError, OSError, NotImplementedError) as error:
        raise ModelError(
            f"{file} cannot be converted: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    # Its weights are plain now; what says otherwise would make transformers refuse to save and later to load them.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
