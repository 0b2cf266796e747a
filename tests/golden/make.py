"""Make the golden runs anew. Only on purpose: what later versions must read is what an earlier one wrote.

    PYTHONPATH=src:tests python tests/golden/make.py /tmp/golden

The folder gets two models, their rows, each finished run (`runs/NAME`) and what a kill would have left of it
(`killed/NAME`), with the checkpoint that the finished run no longer has. Reports are left out, which are written anew.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import rankwise
from conftest import chat_tokenizer, tiny_model
from kit.classifiers import encoder_folder, labelled, write_rows
from kit.library import rows
from rankwise.commands.strength import strength
from rankwise.system.processor import processor_name

CHECKPOINT, STEPS = 12, 16
COMMON: dict[str, Any] = {
    "steps": STEPS, "checkpoint_steps": CHECKPOINT, "batch_size": 2, "learning_rate": 0.01, "held_out": 3,
    "backend": "eager", "dtype": "float32", "progress": False,
}  # fmt: skip
OF_TEXTS: dict[str, Any] = {"model": "llama", "data": "rows.jsonl", "targets": "q_proj,v_proj"}
RUNS: dict[str, dict[str, Any]] = {
    "lora": {**OF_TEXTS, "rank": 2, "dropout": 0.2},
    "adalora": {**OF_TEXTS, "method": "adalora", "budget": "2"},
    "classifier": {"model": "bert", "data": "labelled.jsonl", "targets": "query,value", "rank": 2},
}


def main(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    sys.argv = ["make.py"]
    platform.platform = lambda *given, **named: "Linux"  # what a manifest says of the machine
    torch.set_num_threads(1)
    tokenizer = chat_tokenizer()
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained("llama")
    tokenizer.save_pretrained("llama")
    encoder_folder(Path("bert"))
    Path("rows.jsonl").write_text(rows(12))
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    write_rows("labelled.jsonl", labelled(18))
    for name, settings in RUNS.items():
        make(name, settings)
    rankwise.evaluate("lora", text="text.txt", blocks=4)
    strength("lora", text="text.txt", blocks=4)
    Path("machine.txt").write_text(machine())
    for file in Path().glob("runs/*/report.*"):
        file.unlink()


def machine() -> str:
    """What the last bits of a number depend on."""
    return f"torch {torch.__version__}, {processor_name()}, {torch.backends.cpu.get_cpu_capability()}\n"


def make(name: str, settings: dict[str, Any]) -> None:
    run, killed = Path("runs") / name, Path("killed") / name

    def copy_once(event: object) -> None:
        if getattr(event, "step", 0) > CHECKPOINT and not killed.exists():
            shutil.copytree(run, killed)

    rankwise.train(run=name, callback=copy_once, **COMMON, **settings)
    rankwise.evaluate(name, forgetting=False)
    for folder in (run, killed):
        (folder / ".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
