"""`rankwise train --memory` on a model of Llama 2 7B's shape with random weights, which does not fit under the limit.

    python bench/under_limit.py FOLDER [--limit 5GB] [--quantize nf4] [--layers 32] [--steps 2] [--free] [--out TITLE]

FOLDER keeps the model (13 GB in bfloat16), which is written a block at a time, and the run. A step has about 1,090
tokens: four rows, of each the second half learned. LoRA of r 16 lies on all linear layers. The first command stores the
weights in fewer bits too, inside the limit. Where this process may make a memory control group, the command runs inside
one of that size, so the kernel ends what goes beyond it. Its resident memory is read ten times a second too. With
--free the same training runs without a limit before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from seven_billion import DEVIATION, shape_of
from telling import parser_of, tell

from rankwise.config.models import parse_size

ROWS, HALF, SPECIAL = 4, 128, ("<s>", "</s>", "<pad>")
GROUPS = Path("/sys/fs/cgroup/memory/rankwise-bench"), Path("/sys/fs/cgroup/rankwise-bench")
"""Of version 1 and 2, with the names of their limit and their peak."""
FILES = ("memory.limit_in_bytes", "memory.max_usage_in_bytes"), ("memory.max", "memory.peak")


def write_model(folder: Path, layers: int) -> None:
    """One file for each block, one for the embedding, the norm and the head. Each byte of a text is a token."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape_of(layers), dtype="bfloat16", bos_token_id=256, eos_token_id=257, pad_token_id=258)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in LlamaForCausalLM(config).named_parameters()}
    torch.manual_seed(0)
    weight_map = {name: f"model-{name.split('.')[2] if '.layers.' in name else 'ends'}.safetensors" for name in shapes}
    for file in dict.fromkeys(weight_map.values()):
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if name.endswith("norm.weight")
            else torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0.0, DEVIATION)
            for name in shapes
            if weight_map[name] == file
        }
        save_file(tensors, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={one: number for number, one in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    begin, end, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=begin, eos_token=end, pad_token=pad)


def write_rows(file: Path, steps: int) -> None:
    draw = random.Random(0)
    texts = ("".join(draw.choices(string.ascii_lowercase, k=HALF - 1)) for _ in range(2 * ROWS * steps))
    rows = ({"prompt": one, "completion": other} for one, other in zip(texts, texts, strict=True))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command_of(folder: Path, quantize: str, steps: int, limit: str | None) -> list[str]:
    name = "limited" if limit else "free"
    command = [sys.executable, "-m", "rankwise", "train", "--model", str(folder / "model"), "--quantize", quantize]
    command += ["--data", str(folder / "rows.jsonl"), "--run", name, "--steps", str(steps), "--batch-size", str(ROWS)]
    command += ["--restart", "--json"]
    return command + (["--memory", limit] if limit else [])


def measured(folder: Path, command: list[str], group: tuple[Path, str] | None) -> dict[str, Any]:
    """Run the command in the control group, if there is one, and read what it takes."""

    def enter() -> None:
        if group is not None:
            (group[0] / "cgroup.procs").write_text(str(os.getpid()))

    began, most = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, preexec_fn=enter) as process:
        while process.poll() is None:
            most = max(most, sum(resident(process.pid)))
            time.sleep(0.1)
        assert process.stdout is not None, "it is a pipe"
        said = process.stdout.read()
    row: dict[str, Any] = {"status": process.returncode, "seconds": time.perf_counter() - began, "resident": most}
    if group is not None:
        row["control_group_peak"] = int((group[0] / group[1]).read_text())
    return row | ({"results": json.loads(said)} if process.returncode == 0 else {})


def resident(pid: int) -> Iterable[int]:
    """Bytes of a process and its children."""
    try:
        parent = psutil.Process(pid)
        yield from (one.memory_info().rss for one in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return


def control_group(limit: int) -> tuple[Path, str] | None:
    """A group with this limit, and the name of the file that has its peak."""
    for folder, (most, peak) in zip(GROUPS, FILES, strict=True):
        try:
            folder.mkdir(exist_ok=True)
            (folder / most).write_text(str(limit))
            (folder / peak).read_text()
        except OSError:
            continue
        return folder, peak
    return None


def forget_files() -> None:
    """Empty the system's cache of files where this process may: pages that others read before are not charged to a
    group that reads them again."""
    with suppress(OSError):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="utf-8")


def show(rows: dict[str, Any]) -> None:
    for name, row in rows["runs"].items():
        group = row.get("control_group_peak")
        print(
            f"{name}: status {row['status']}, {row['seconds']:.0f} s, resident {row['resident'] / 1e9:.2f} GB"
            + (f", control group {group / 1e9:.2f} GB of {rows['limit']}" if group else "")
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", default="5GB")
    parser.add_argument("--quantize", default="nf4")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--free", action="store_true")
    given: argparse.Namespace = parser.parse_args()
    folder = given.folder.absolute()
    if not (folder / "model" / "config.json").exists():
        shutil.rmtree(folder / "model", ignore_errors=True)
        write_model(folder / "model", given.layers)
    write_rows(folder / "rows.jsonl", given.steps)
    runs = dict[str, Any]()
    if given.free:
        runs["free"] = measured(folder, command_of(folder, given.quantize, given.steps, None), None)
    group = control_group(parse_size(given.limit))
    forget_files()
    runs["limited"] = measured(folder, command_of(folder, given.quantize, given.steps, given.limit), group)
    with suppress(OSError):  # a process that the kernel ended may still be going
        if group is not None:
            group[0].rmdir()
    settings = {"limit": given.limit, "quantize": given.quantize, "layers": given.layers}
    tell(given, settings | {"runs": runs}, show)


if __name__ == "__main__":
    main()
