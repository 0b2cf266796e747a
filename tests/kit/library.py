"""Finished runs that tests read: each is trained once for a whole session, by whichever worker asks for it first.

The library is a working folder of its own with a base model `tiny-llama`, rows to train on `rows.jsonl`, three more
rows `apart.jsonl` and a run for each name in RUNS; the first of CLASSIFIERS brings their bases and rows. A test gets a
copy of what it names and may change it as it likes.
Copies, and no links: a run of this size is copied in a few milliseconds, and a test that writes into its copy cannot
change what the next one reads. Workers meet in one folder and wait for each other at a lock.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from kit.classifiers import encoder_folder, labelled, scaled, write_rows
from kit.tagged import spanned, tagger_folder
from kit.vision_models import dark_and_light, save_folder
from rankwise.cli.main import app


def rows(count: int, start: int = 0) -> str:
    """JSON Lines of questions about lands that a tiny model can learn by heart."""
    pairs = ({"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(start, start + count))
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


FILES = {"rows.jsonl": rows(12), "apart.jsonl": rows(3, 20)}
COMMON = ("--model", "tiny-llama", "--data", "rows.jsonl", "--steps", "40", "--batch-size", "2",
          "--learning-rate", "0.01", "--set", "model.dtype=float32")  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "lora": ("--rank", "4", "--held-out", "4"),
    "adalora": ("--method", "adalora", "--budget", "3", "--validation-data", "apart.jsonl"),
    "dora": ("--rank", "4", "--set", "adapter.dora=true"),
    "full": ("--method", "full", "--learning-rate", "0.001", "--held-out", "4"),
    "short": ("--rank", "2", "--targets", "q_proj,v_proj", "--steps", "2", "--held-out", "2", "--backend", "eager"),
    "short-full": ("--method", "full", "--steps", "2", "--held-out", "2", "--backend", "eager"),
}

CLASSIFIERS: dict[str, tuple[str, ...]] = {
    "films": ("--model", "bert", "--data", "films.jsonl"),
    "asked": ("--model", "bert", "--data", "columns.jsonl", "--prompt", "a film {body}", "--completion", "{kind}"),
    "both": ("--model", "bert", "--data", "columns.jsonl", "--prompt", "{title} {body}", "--completion", "{kind}"),
    "several": ("--model", "bert", "--data", "several.jsonl"),
    "numbers": ("--model", "bert", "--data", "numbers.jsonl"),
    "tags": ("--model", "tagger", "--data", "tags.jsonl"),
    "pictures": ("--model", "vit", "--data", "pictures"),
}


def lay_classifiers(home: Path) -> None:
    """Encoders, and rows that they can learn by heart."""
    encoder_folder(home / "bert")
    tagger_folder(home / "tagger")
    save_folder("vit", home / "vit")
    dark_and_light(home / "pictures")
    films = labelled(12)
    columns = [{"title": "the plot", "body": row["text"], "kind": row["label"]} for row in films]
    several = [{"text": row["text"], "label": [row["label"], "film"][at % 2 :]} for at, row in enumerate(films)]
    for name, written in (("films", films), ("columns", columns), ("several", several), ("numbers", scaled(12)),
                          ("tags", spanned(12))):  # fmt: skip
        write_rows(home / f"{name}.jsonl", written)


@contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Whether this caller is the one to make a folder; everyone else waits until it has been made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    finished = folder.with_name(folder.name + ".finished")
    with FileLock(folder.with_name(folder.name + ".lock")):
        yield not finished.exists()
        finished.touch()


class Library:
    """The finished runs of one session."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base

    def lay_out(self, folder: Path, *names: str) -> Path:
        """Copy the base, the rows and the named runs into a new working folder; returns that folder."""
        with once(self.folder / "home") as first:
            if first:
                shutil.copytree(self.base, self.folder / "home" / "tiny-llama")
                for name, text in FILES.items():
                    (self.folder / "home" / name).write_text(text)
        if not CLASSIFIERS.keys().isdisjoint(names):
            with once(self.folder / "classifiers") as first:
                if first:
                    lay_classifiers(self.folder / "home")
        for name in names:
            self._train(name)
        home = self.folder / "home"
        shutil.copytree(home, folder, ignore=lambda path, _: ["runs"] if Path(path) == home else [])
        for name in names:
            shutil.copytree(home / "runs" / name, folder / "runs" / name)
        return folder

    def _train(self, name: str) -> None:
        with once(self.folder / f"run-{name}") as first:
            if not first:
                return
            with contextlib.chdir(self.folder / "home"):
                result = CliRunner().invoke(app, ["train", *COMMON, "--run", name, *(RUNS | CLASSIFIERS)[name]])
            if result.exit_code != 0:
                shutil.rmtree(self.folder / "home" / "runs" / name, ignore_errors=True)
                pytest.fail(f"the run {name!r} of the library cannot be trained: {result.output} {result.exception!r}")


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all workers of this session have in common."""
    own = factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own
