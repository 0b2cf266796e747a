"""Seconds from the command to a held-out loss, everything included: imports, data, the model, compiling, steps.

    python bench/time_to_loss.py FOLDER [--sets e2e,dolly,sql] [--stacks rankwise,trl,…] [--rates 5e-4,1e-3,2e-3]
    python bench/time_to_loss.py FOLDER --table

A LoRA adapter of rank 16 and alpha 32 on all linear layers of SmolLM2-135M-Instruct learns a set's rows, in one pass by
all but rankwise:

    rankwise      `rankwise train` with its own defaults: two passes, 16 rows a step, and its own learning rate
    trl           the script of TRL's documentation, with TRL's defaults, 8 rows a step
    peft-packed   the fastest loop with peft that we could write (stacks.py), 8 rows a step
    unsloth-cpu   Unsloth on the CPU, without checkpointing, 8 rows a step. Both of its flags are on; the one for frozen
                  weights has no effect where Unsloth takes bfloat16, as on this processor

The others run at three rates each. Each run compiles its code anew; for that, what rankwise's cache has compiled is
removed. While the others train, their adapters are saved eight times, with the clock stopped, and one process measures
the held-out loss of each. rankwise validates before the first step, which counts, and after every step, with the clock
stopped. The loss to reach is the highest of the lowest losses, each stack's at its own best rate, so that all reach it;
times to half of the fall to it stand beside. Between two measured losses time is a straight line. Finished cells, a set
with a stack and a rate, lie in FOLDER/cells.jsonl. TRL needs the extra `bench`, and Unsloth an environment of its own
(make .venv-engines-unsloth/.ready).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
OURS, OTHERS = "rankwise", ("trl", "peft-packed", "unsloth-cpu")
OTHER_PYTHON = Path(__file__).parent.parent / ".venv-engines-unsloth" / "bin" / "python"
ROWS, MEASURED, LOOKS = {"e2e": 240, "dolly": 96, "sql": 180}, 64, 8
MODEL, RANK, ALPHA, BATCH = "smollm2-135m", 16, 32, 8
Cell = tuple[Any, ...]
Row = dict[str, Any]
Points = list[tuple[float, float]]
"""Seconds since the command, without those in which the clock stood still, and the held-out loss then."""


class Saved:
    """Adapters of a training in another stack. The clock, which began with the command, stands still meanwhile."""

    def __init__(self, folder: Path, began: float, steps: int) -> None:
        self._folder, self._began, self._steps = folder, began, steps
        self._stood = 0.0

    def after_step(self, step: int, module: Any) -> None:
        if step not in {round(self._steps * look / LOOKS) for look in range(1, LOOKS + 1)}:
            return
        now = time.time()
        module.save_pretrained(self._folder / f"{step:04d}")
        (self._folder / f"{step:04d}" / "seconds").write_text(str(now - self._began - self._stood))
        self._stood += time.time() - now


def learn_by_trainer(name: str, model: str, rows: Path, rate: float, saved: Callable[[int], Saved]) -> None:
    """TRL by its documentation; Unsloth makes the model itself."""
    unsloth = import_module("unsloth").FastLanguageModel if name == "unsloth-cpu" else None  # before transformers
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    data = load_dataset("json", data_files=str(rows), split="train")
    given: dict[str, Any] = {
        "model": model,
        "peft_config": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    if unsloth is not None:
        module, tokenizer = unsloth.from_pretrained(
            model, max_seq_length=1024, dtype=None, load_in_4bit=False, use_gradient_checkpointing=False
        )
        layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        module = unsloth.get_peft_model(
            module, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=layers, use_gradient_checkpointing=False
        )
        given = {"model": module, "processing_class": tokenizer}
    steps = -(-len(data) // BATCH)
    watching = saved(steps)

    class Saving(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **named: Any) -> None:
            watching.after_step(state.global_step, model)

    SFTTrainer(
        train_dataset=data, callbacks=[Saving()],
        args=SFTConfig(
            output_dir=str(rows.parent / "trainer"), learning_rate=rate, num_train_epochs=1, report_to="none",
            per_device_train_batch_size=BATCH, save_strategy="no", use_cpu=True,
            **({"gradient_checkpointing": False} if unsloth is not None else {}),
        ),
        **given,
    ).train()  # fmt: skip


def learn_packed(rows: Path, rate: float, saved: Callable[[int], Saved]) -> None:
    from stacks import Case, peft_loop

    count = len(rows.read_text().splitlines())
    steps = -(-count // BATCH)
    module, step = peft_loop("peft-packed", count, Case(BATCH, RANK, rows=str(rows)), rate, steps)
    watching = saved(steps)
    for number in range(steps):
        step(number)
        watching.after_step(number + 1, module)


def others(cell: Cell, folder: Path) -> Points:
    task, name, rate = cell
    rows, made = folder / f"{task}-learned.jsonl", folder / "adapters" / "-".join(map(str, cell))
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    own = {"TORCHINDUCTOR_CACHE_DIR": str(made / "compiled"), "HF_DATASETS_CACHE": str(made / "data")}
    if name == "unsloth-cpu":
        own |= {"UNSLOTH_CPU_COMPILE": "1", "UNSLOTH_CPU_FROZEN_BF16": "1"}
    python = OTHER_PYTHON if name == "unsloth-cpu" else sys.executable
    words = [str(python), __file__, "--learn", name, model_folder(), str(rows), str(rate), str(made), str(time.time())]
    with (folder / "log.txt").open("a") as log:
        subprocess.run(words, check=True, env=os.environ | own, stdout=log, stderr=log, cwd=made)
    words = [sys.executable, __file__, "--judge", str(made), str(folder / f"{task}-measured.jsonl")]
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told.splitlines()[-1])


def model_folder() -> str:
    from rankwise.base.sources import find
    from rankwise.config.models import ModelConfig
    from rankwise.runs.records import silent

    return str(find(ModelConfig(name=MODEL), silent).folder)


def ours(cell: Cell, folder: Path) -> Points:
    """Each validation, at the time of its step."""
    from rankwise.system.cache import cache_folder

    task, run = cell[0], folder / "runs" / cell[0]
    shutil.rmtree(cache_folder() / "compiled", ignore_errors=True)
    words = [sys.executable, "-m", "rankwise", "train", "--model", MODEL, "--data", f"{task}-learned.jsonl", "--quiet"]
    words += ["--run", task, "--validation-data", f"{task}-measured.jsonl", "--validate-every", "1"]
    began, ended, read, found = time.time(), time.time(), 0, list[tuple[float, float]]()
    shutil.rmtree(run, ignore_errors=True)
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.05)
            log = run / "metrics.jsonl"
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            for row in (json.loads(line) for line in lines[read:] if line.endswith("\n")):
                read += 1
                if row["kind"] == "step":
                    ended = time.time()
                elif row["kind"] == "validation":
                    stood = time.time() - ended if row["step"] else 0.0
                    found.append((time.time() - stood - began, row["loss"]))
                    began += stood
    assert process.returncode == 0, "rankwise train"
    return found


def judge(made: Path, rows: Path) -> Points:
    """The loss of an answer token of held-out rows, end token included, in bfloat16."""
    from stacks import Case, sequences

    import rankwise
    from rankwise.evaluation.likelihood import likelihoods

    model = rankwise.load(rankwise.ModelConfig(name=MODEL, dtype="bfloat16"))
    held_out, points = sequences(model, MEASURED, Case(rows=str(rows))), []
    for folder in sorted(one.parent for one in made.glob("*/seconds")):
        adapter = rankwise.read_peft(model.module, folder)
        found = likelihoods(model.module, held_out)
        adapter.remove()
        loss = sum(one.nats for one in found) / sum(one.tokens for one in found)
        points.append((float((folder / "seconds").read_text()), loss))
    return points


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def files(folder: Path, task: str) -> None:
    """FOLDER/TASK-learned.jsonl and -measured.jsonl: a prompt and a completion, each a list of messages."""
    from claims import SETS
    from sql_rows import sql_rows

    if task == "sql":
        both = (sql_rows(measured, ROWS[task], 0) for measured in (False, True))
        sets = [[(row["prompt"], row["completion"]) for row in rows] for rows in both]
    else:
        sets = list(SETS[task]())
    for name, rows in zip(("learned", "measured"), (sets[0][: ROWS[task]], sets[1][:MEASURED]), strict=True):
        lines = [
            json.dumps({"prompt": [said("user", asked)], "completion": [said("assistant", told)]})
            for asked, told in rows
        ]
        (folder / f"{task}-{name}.jsonl").write_text("\n".join(lines) + "\n")


def cells(done: object, sets: list[str], stacks: list[str], rates: list[str]) -> Iterator[Cell]:
    del done
    for task in sets:
        files(Path(), task)
        yield from ((task, stack, float(rate)) for stack in stacks if stack != OURS for rate in rates)
        if OURS in stacks:
            yield task, OURS, 0.0


def run(folder: Path, cell: Cell) -> Row:
    points = ours(cell, folder) if cell[1] == OURS else others(cell, folder)
    return {"kind": "cell", "cell": list(cell), "points": points, "seconds": points[-1][0]}


def reached(points: Points, loss: float) -> float | None:
    """Seconds until the lowest loss so far is at most this."""
    before: tuple[float, float] | None = None
    for seconds, now in points:
        if now <= loss:
            if before is None:
                return seconds
            share = (before[1] - loss) / (before[1] - now)
            return before[0] + share * (seconds - before[0])
        before = (seconds, now)
    return None


def table(folder: Path, done: dict[Any, Row]) -> Iterator[str]:
    """Of sets that all stacks have learned at all their rates."""
    del folder
    yield "| set | stack | best rate | lowest loss | loss to reach | seconds | times ours | to half | times ours |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for task in dict.fromkeys(cell[0] for cell in done):
        stacks: dict[str, dict[float, Points]] = {}
        for (name, rate), row in ((cell[1:], row) for cell, row in done.items() if cell[0] == task):
            stacks.setdefault(name, {})[rate] = [(seconds, loss) for seconds, loss in row["points"]]
        if set(stacks) != {OURS, *OTHERS}:
            continue
        lowest = {name: min(min(loss for _, loss in one) for one in every.values()) for name, every in stacks.items()}
        wanted = max(lowest.values())
        half = (stacks[OURS][0.0][0][1] + wanted) / 2
        times = {name: [soonest(every, loss) for loss in (wanted, half)] for name, every in stacks.items()}
        for name, ((seconds, rate), (sooner, _)) in times.items():
            yield (
                f"| {task} | {name} | {rate or 'its own'} | {lowest[name]:.4f} | {wanted:.4f} | {seconds:.0f} | "
                f"{seconds / times[OURS][0][0]:.2f} | {sooner:.0f} | {sooner / times[OURS][1][0]:.2f} |"
            )


def soonest(rates: dict[float, Points], loss: float) -> tuple[float, float]:
    """Seconds, and the rate."""
    return min((seconds, rate) for rate, one in rates.items() if (seconds := reached(one, loss)) is not None)


def main() -> None:
    if sys.argv[1] == "--judge":
        print(json.dumps(judge(Path(sys.argv[2]), Path(sys.argv[3]))))
    elif sys.argv[1] == "--learn":
        _, _, name, model, rows, rate, made, began = sys.argv
        learn = learn_packed if name == "peft-packed" else partial(learn_by_trainer, name, model)
        learn(Path(rows), float(rate), partial(Saved, Path(made), float(began)))
    else:
        sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))
        from stored_cells import command

        options = {"sets": ",".join(ROWS), "stacks": ",".join((OURS, *OTHERS)), "rates": "5e-4,1e-3,2e-3"}
        command(
            __doc__, "cells.jsonl", options, cells, run,
            lambda row: f"{row['points'][-1][1]:.4f} {row['seconds']:.0f} s", table,
        )  # fmt: skip


if __name__ == "__main__":
    main()
