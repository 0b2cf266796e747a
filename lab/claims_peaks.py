"""What training takes in memory and on disk: three steps of a method in a process of its own, as `train` tells it.

An adapter is trained as rankwise would here, in its fast form and its number format; the whole model in float32.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims_cells import OutOfTime
from claims_runs import ClaimTask

from rankwise.errors import EvaluationError
from rankwise.runs.manifest import BaseModelFacts
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.extras import installed_version
from rankwise.system.files import sha256_of, write_json
from rankwise.system.processor import processor_name

FULL = "full"


@dataclass(frozen=True)
class Peaks:
    file: Path
    task: ClaimTask
    model: str
    base: BaseModelFacts
    callback: Callback

    def found(self, until: float | None) -> dict[str, dict[str, float]]:
        base = [self.base.fingerprint, self.base.device, self.base.dtype]
        conditions = [*base, sha256_of(self.task.trained), processor_name(), installed_version("rankwise")]
        if (kept := self._kept()) is not None and kept.get("conditions") == conditions:
            return kept["found"]
        if until is not None and time.monotonic() > until:
            raise OutOfTime
        found = {method: self._measured(method) for method in ("lora", FULL)}
        write_json(self.file, {"conditions": conditions, "found": found})
        return found

    def _kept(self) -> dict[str, Any] | None:
        """None where the file is not there or damaged, so that it is measured again."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return kept if isinstance(kept, dict) and isinstance(kept.get("found"), dict) else None

    def _measured(self, method: str) -> dict[str, float]:
        self.callback(StatusMessage(f"measuring the memory of three steps, {method}"))
        run = f"peak-{method}"
        model = str(Path(self.model).absolute()) if Path(self.model).exists() else self.model
        words = [
            sys.executable, "-m", "rankwise", "train", "--model", model, "--data", str(self.task.trained.absolute()),
            "--run", run, "--steps", "3", "--method", method, "--json", "--quiet",
        ]  # fmt: skip
        folder = self.file.parent
        shutil.rmtree(folder / "runs" / run, ignore_errors=True)
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EvaluationError(f"{' '.join(words[2:])} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}.")
        shutil.rmtree(folder / "runs" / run, ignore_errors=True)  # the whole model is in one of them
        told = json.loads(done.stdout)
        return {key: told[key] for key in ("trainable_parameters", "peak_rss_bytes", "adapter_bytes")}
