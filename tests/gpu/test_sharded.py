"""A base that is split over GPUs (NCCL): run with `make gpu` on a machine that has two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kit.library import rows
from kit.worlds import Disturbed, command, together

CARDS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(CARDS < 2, reason="fewer than two CUDA GPUs here")]
WORDS = (
    "train", "--model", "base", "--data", "rows.jsonl", "--run", "r", "--batch-size", "3", "--steps", "8", "--backend",
    "eager", "--learning-rate", "0.001", "--held-out", "3", "--set", "model.dtype=float32", "--quiet",
)  # fmt: skip


@pytest.mark.parametrize(("method", "file"), [("lora", "adapter/adapter_model"), ("full", "model/model")])
def test_a_base_that_is_split_over_gpus_learns_what_a_whole_one_does(
    method: str, file: str, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text(rows(13))
    learned = []
    for more in ((), ("--shard",)):
        for ended in together(command, 2, tmp_path, Disturbed((*WORDS, "--method", method, *more))):
            assert ended.code == 0, ended.errors
        learned.append(load_file(tmp_path / f"runs/r/{file}.safetensors"))
        shutil.rmtree(tmp_path / "runs")
    whole, split = learned
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        assert (value - split[name]).abs().max() <= 1e-3 * value.abs().max(), name
