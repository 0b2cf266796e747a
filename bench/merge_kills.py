"""Merges that are killed (SIGKILL) at random moments, and what they leave behind.

    python bench/merge_kills.py FOLDER --base BASE --adapter ADAPTER [--kills 40] [--seed 0] [--json] [--out TITLE]

Each merge runs in a process of its own, forked from one that has the imports, and is killed after a random part of the
time that a whole merge takes. Afterwards no folder may hold a config.json beside weights, hidden ones included, but one
whose files have the hashes in its merge.json. The last merge is left alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from telling import parser_of, tell

from rankwise.commands.merge import merge
from rankwise.exporting.merging.write import RECORD
from rankwise.system.files import sha256_of


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    tell(chosen, results(chosen.folder, chosen.base, chosen.adapter, chosen.kills, chosen.seed), show)


def results(folder: Path, base: str, adapter: str, kills: int, seed: int) -> dict[str, Any]:
    import torch
    import transformers

    _ = transformers.AutoConfig, transformers.LlamaForCausalLM
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    whole = timed(lambda: started(base, adapter, folder / "whole"), None)
    points, finished, writing, loadable, whole_ones = random.Random(seed), 0, 0, list[str](), {"whole"}
    for number in range(kills):
        to = folder / f"killed-{number}"
        timed(lambda to=to: started(base, adapter, to), points.uniform(0.02, 1.05) * whole)
        complete = to.exists()
        finished += complete
        writing += any(folder.glob(f".{to.name}.*.tmp/*"))
        if complete and is_whole(to):
            whole_ones.add(to.name)
        loadable += [str(one) for one in looks_loadable(folder) if one.name not in whole_ones]
    again = folder / "killed-0-again"
    timed(lambda: started(base, adapter, again), None)
    return {
        "kills": kills, "seconds_of_a_merge": whole, "killed_while_writing": writing, "finished_before": finished,
        "loadable_remains": sorted(set(loadable)), "merged_afterwards": is_whole(again),
    }  # fmt: skip


def timed(start: Any, kill_after: float | None) -> float:
    began = time.perf_counter()
    child = start()
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.perf_counter() - began


def started(base: str, adapter: str, to: Path) -> int:
    """The number of a process that merges."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        merge(adapter, to, base_model=base)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def is_whole(folder: Path) -> bool:
    """Whether its files are those that were written."""
    files = json.loads((folder / RECORD).read_text())["files"]
    return all((folder / name).is_file() and sha256_of(folder / name) == one for name, one in files.items())


def looks_loadable(folder: Path) -> list[Path]:
    return [config.parent for config in folder.rglob("config.json") if any(config.parent.glob("*.safetensors"))]


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['kills']} merges killed within {found['seconds_of_a_merge']:.2f} s: "
        f"{found['killed_while_writing']} while they wrote, {found['finished_before']} were done before"
    )
    print(
        f"folders that look loadable: {found['loadable_remains'] or 'none'}; "
        f"merged afterwards: {'whole' if found['merged_afterwards'] else 'NOT WHOLE'}"
    )


if __name__ == "__main__":
    main()
