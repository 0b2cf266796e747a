"""Check this machine and the installation: one fact and one verdict per line."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from rankwise.base.cached import cached_conversions, cached_hub_models
from rankwise.base.precision import choose_precision, instructions
from rankwise.config.models import ModelConfig
from rankwise.errors import RankwiseError
from rankwise.runs.manifest import versions
from rankwise.system.cache import cache_folder
from rankwise.system.files import write_atomic
from rankwise.system.hub import hub_answers
from rankwise.system.processor import processor_name, usable_cores

Verdict = Literal["good", "note", "problem"]
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "bf16", "sve")
GIGABYTE = 1e9


@dataclass(frozen=True)
class MachineCheck:
    name: str
    value: str
    verdict: Verdict
    remark: str


@dataclass(frozen=True)
class Diagnosis:
    checks: list[MachineCheck]

    @property
    def able(self) -> bool:
        return all(check.verdict != "problem" for check in self.checks)

    def summary(self) -> dict[str, Any]:
        """What `rankwise doctor --json` prints."""
        return {"able": self.able, "checks": self.checks}


def doctor() -> Diagnosis:
    return Diagnosis([check for part in PARTS for check in part()])


def _versions() -> Iterator[MachineCheck]:
    for package, found in versions().items():
        missing = found == "not installed"
        yield MachineCheck(package, found, "problem" if missing else "good", "reinstall rankwise" if missing else "")


def _processor() -> Iterator[MachineCheck]:
    flags = instructions()
    have = [name for name in FEATURES if flags & {name, name.replace("512_f", "512f")}]
    precision = choose_precision(ModelConfig(name="any", device="cpu"))
    fast = precision.dtype == torch.bfloat16
    yield MachineCheck("processor", f"{processor_name()}, {usable_cores()} cores", "good", "")
    yield MachineCheck(
        "arithmetic", " ".join(have) or "nothing special", "good" if fast else "note",
        f"models are loaded in {str(precision.dtype).removeprefix('torch.')}: {precision.why}",
    )  # fmt: skip


def _accelerators() -> Iterator[MachineCheck]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
    yield MachineCheck(
        "CUDA", names or "none", "good" if count else "note", "" if count else "training runs on the CPU"
    )
    if torch.backends.mps.is_available():
        yield MachineCheck("MPS", "available", "good", "")


def _memory() -> Iterator[MachineCheck]:
    memory = psutil.virtual_memory()
    free = memory.available / GIGABYTE
    value = f"{free:.1f} GB free of {memory.total / GIGABYTE:.1f}"
    enough = free >= 4
    yield MachineCheck("memory", value, "good" if enough else "note", "" if enough else "the demo needs about 3 GB")


def _disk() -> Iterator[MachineCheck]:
    for name, folder in (("cache folder", cache_folder()), ("this folder", Path.cwd())):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / GIGABYTE
        verdict, remark = _writable(existing)
        if verdict == "good" and free < 2:
            verdict, remark = "note", "a starter model needs about 1 GB"
        yield MachineCheck(name, f"{folder}, {free:.1f} GB free", verdict, remark)


def _writable(folder: Path) -> tuple[Verdict, str]:
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            write_atomic(Path(temporary) / "probe", b"x")
    except (OSError, RankwiseError) as error:
        return "problem", f"cannot be written: {error}"
    return "good", ""


def _models() -> Iterator[MachineCheck]:
    cached = [*cached_hub_models(), *(folder.name for folder in cached_conversions())]
    yield MachineCheck(
        "cached models",
        ", ".join(cached) or "none",
        "good" if cached else "note",
        "" if cached else "models are downloaded at first use",
    )
    answers = hub_answers()
    yield MachineCheck(
        "model hub", "reachable" if answers else "not reachable", "good" if answers else "note",
        "" if answers else "cached models, folders, GGUF files and starters work without it",
    )  # fmt: skip


PARTS: tuple[Callable[[], Iterator[MachineCheck]], ...] = (
    _versions,
    _processor,
    _accelerators,
    _memory,
    _disk,
    _models,
)
