"""What PEFT makes of adapter folders, each loaded in a forked process with a time limit.

    python bench/damaged_with_peft.py BASE FOLDER FOLDER … < nothing > results.json

One JSON object, by folder: `refused` with the type of the error, `loaded` with its warnings, or `stopped` after LIMIT
seconds; and whether the base model's own weights changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

LIMIT = 20.0


def weights_hash(model: Any) -> str:
    """Over the names and bytes of the base model's own weights, without adapters."""
    digest = hashlib.sha256()
    named = {name.replace(".base_layer", "").removeprefix("base_model.model."): value
             for name, value in model.named_parameters() if "lora_" not in name}  # fmt: skip
    for name in sorted(named):
        digest.update(name.encode())
        digest.update(named[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tried(base: str, folder: str) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    before, began = weights_hash(model), time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, folder)
        except BaseException as error:
            return {"outcome": "refused", "error": type(error).__name__, "seconds": time.perf_counter() - began}
    texts = [str(one.message) for one in heard if issubclass(one.category, UserWarning)]
    return {
        "outcome": "loaded", "warnings": [text[:200] for text in texts], "seconds": time.perf_counter() - began,
        "base_changed": weights_hash(adapted) != before,
    }  # fmt: skip


def in_a_child(base: str, folder: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        child = os.fork()
        if child == 0:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
            Path(file.name).write_text(json.dumps(tried(base, folder)), encoding="utf-8")
            os._exit(0)
        began = time.monotonic()
        while time.monotonic() - began < LIMIT:
            if os.waitpid(child, os.WNOHANG)[0]:
                text = Path(file.name).read_text(encoding="utf-8")
                return json.loads(text) if text else {"outcome": "crashed"}
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"outcome": "stopped", "seconds": LIMIT}


def main() -> None:
    import peft  # noqa: F401  before the forks, which then need not import it again
    import transformers  # noqa: F401

    base, *folders = sys.argv[1:]
    print(json.dumps({folder: in_a_child(base, folder) for folder in folders}))


if __name__ == "__main__":
    main()
