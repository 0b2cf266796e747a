"""`rankwise train` by several processes: one run folder, one sentence at the end, and any number of them goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.run import get_args_parser

import rankwise
from kit.library import rows
from kit.worlds import DEVICES, Disturbed, Ended, command, skip_without_cards, together
from rankwise.base.split import is_sharded
from rankwise.commands.launch import what_now
from rankwise.runs.directory import RunDirectory

pytestmark = pytest.mark.slow
Undisturbed = Callable[[Path, int], dict[str, Tensor]]
STEPS, EVERY = 11, 3
WORDS = (
    "train", "--model", "base", "--data", "rows.jsonl", "--run", "r", "--batch-size", "3", "--rank", "2", "--steps",
    str(STEPS), "--backend", "eager", "--learning-rate", "0.01", "--held-out", "3", "--validate-every", "4", "--keep",
    "best", "--set", f"training.checkpoint_steps={EVERY}", "--set", "model.dtype=float32", "--quiet", "--force-memory",
)  # fmt: skip


@pytest.fixture(params=DEVICES)
def folder(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path) -> Path:
    return laid_out(tmp_path, tiny_folder, request.param)


def laid_out(folder: Path, base: Path, device: str) -> Path:
    shutil.copytree(base, folder / "base")
    (folder / "device").write_text(device)
    (folder / "rows.jsonl").write_text(rows(13))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The weights that so many processes come to on the device of a folder where nothing happens, trained once."""

    @cache
    def weights(device: str, size: int) -> dict[str, Tensor]:
        return finished(laid_out(tmp_path_factory.mktemp("undisturbed"), tiny_folder, device), size)

    return lambda folder, size: weights(device_of(folder), size)


def train(folder: Path, size: int, *words: str, rank: int = 0, step: int = 0, what: str = "") -> list[Ended]:
    """How each process ended; `size` 1 is the ordinary command."""
    skip_without_cards(device_of(folder), size)
    words = (*WORDS, "--set", f"model.device={device_of(folder)}", *words)
    return together(command, size, folder, Disturbed(words, rank, step, what))


def device_of(folder: Path) -> str:
    return (folder / "device").read_text()


def finished(folder: Path, size: int, *words: str) -> dict[str, Tensor]:
    for ended in train(folder, size, *words):
        assert ended.code == 0, ended.errors
    steps = [row["step"] for row in map(json.loads, (folder / "runs/r/metrics.jsonl").open()) if row["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1)), "one process writes"
    return load_file(folder / "runs/r/adapter/adapter_model.safetensors")


def sentences(ended: list[Ended]) -> list[str]:
    """What all processes said of the end; none of them prints a traceback."""
    lines = [line for one in ended for line in one.errors.splitlines()]
    assert not any("Traceback" in line for line in lines), lines
    return [line for line in lines if line.startswith("rankwise: ")]


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "runs/r/manifest.json").read_text())


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max() / value.abs().max()) for name, value in one.items())


@pytest.mark.parametrize(("rank", "step"), [(1, 5), (0, 7)])
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_bit_for_bit(
    folder: Path, undisturbed: Undisturbed, rank: int, step: int
) -> None:
    whole = undisturbed(folder, 2)
    ended = train(folder, 2, rank=rank, step=step, what="kill")
    assert [one.code for one in ended][rank] == -9 and [one.code for one in ended][1 - rank] == 1
    (sentence,) = sentences(ended)
    assert f"process {rank + 1} of the 2 processes of this training" in sentence
    assert f"--resume to continue from step {(step - 1) // EVERY * EVERY}" in sentence
    assert manifest(folder)["status"] == ("failed" if rank == 1 else "running")
    resumed = finished(folder, 2, "--resume")
    if device_of(folder) == "cpu":
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert distance(whole, resumed) <= 1e-4, "attention on a GPU is summed in any order"


def test_a_request_to_one_process_stops_all_before_the_same_step_with_a_checkpoint(folder: Path) -> None:
    ended = train(folder, 2, rank=1, step=5, what="stop")
    assert [one.code for one in ended] == [143, 143]
    (sentence,) = sentences(ended)
    assert "a training is ended by rankwise runs end r" in sentence
    assert "stopped. runs/r has the metrics so far" in sentence and "--resume to continue from step 5" in sentence
    assert manifest(folder)["status"] == "interrupted"


def test_a_run_goes_on_with_another_number_of_processes(folder: Path, undisturbed: Undisturbed) -> None:
    alone = undisturbed(folder, 1)
    for size, step, more in ((1, 4, ()), (2, 7, ("--resume",))):
        train(folder, size, *more, rank=size - 1, step=step, what="kill")
    mixed = finished(folder, 3, "--resume")
    assert distance(alone, mixed) <= 1e-4
    assert [one["step"] for one in manifest(folder)["resumed"]] == [3, 6]


def test_an_error_of_one_process_is_the_one_sentence_of_all(folder: Path) -> None:
    ended = train(folder, 2, rank=1, what="writes too")
    assert all(one.code for one in ended)
    (sentence,) = sentences(ended)
    assert 'run "r" is being written by process' in sentence, "a second writer is kept out"


def test_a_training_that_diverges_ends_all_with_one_sentence(folder: Path) -> None:
    ended = train(folder, 2, what="diverge")
    assert [one.code for one in ended] == [1, 1]
    (sentence,) = sentences(ended)
    assert "training has diverged" in sentence
    assert manifest(folder)["status"] == "failed"


def test_a_process_that_is_killed_after_the_end_is_no_reason_to_train_again(folder: Path) -> None:
    run = RunDirectory(folder / "runs" / "r")
    assert what_now(run) == "Use --restart to start it again from the first step."
    finished(folder, 1)
    assert "had finished before" in what_now(run) and "--restart" not in what_now(run)


def test_what_needs_one_process_is_refused_by_name(folder: Path) -> None:
    ended = together(command, 2, folder, Disturbed((*WORDS, "--set", "model.device=mps")))
    assert [one.code for one in ended] == [2, 2]
    (sentence,) = sentences(ended)
    assert "several processes cannot train with model.device=mps yet" in sentence
    assert not (folder / "runs").exists()


def test_torchrun_understands_the_commands_of_the_docs() -> None:
    """It takes abbreviations of its options anywhere before `--`, and `--run` is one of them."""
    text = (Path(__file__).parents[2] / "docs" / "several-processes.md").read_text().replace("\\\n", " ")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("torchrun ")]
    assert len(commands) == 2
    for words in commands:
        given = get_args_parser().parse_args(words)
        assert given.training_script == "rankwise" and "train" in given.training_script_args[:2]
        assert given.training_script_args[-2:] == ["--run", "support"]


def test_a_split_base_is_resumed_by_others_and_in_one_process(
    folder: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = undisturbed(folder, 1)
    ended = train(folder, 2, "--shard", rank=1, step=5, what="kill")
    assert [one.code for one in ended] == [1, -9]
    (sentence,) = sentences(ended)
    assert "process 2 of the 2 processes of this training" in sentence and "--resume" in sentence
    train(folder, 1, "--resume", step=7, what="kill")
    assert distance(alone, finished(folder, 3, "--shard", "--resume")) <= 1e-4
    assert [one["step"] for one in manifest(folder)["resumed"]] == [3, 6]
    monkeypatch.chdir(folder)
    opened = rankwise.load_run("r").model.module
    assert not is_sharded(opened) and any("adapters" in name for name, _ in opened.named_parameters())


def test_a_run_of_the_fused_backend_goes_on_over_a_split_base(folder: Path) -> None:
    """The kernels read whole weights, so it goes on with the eager backend, and says so."""
    words = [word for word in WORDS if word not in ("--backend", "eager")]

    def part(size: int, *more: str, step: int = 0) -> Ended:
        return together(command, size, folder, Disturbed((*words, *more), 0, step, "kill" if step else ""))[0]

    assert part(1, step=5).code == -9 and manifest(folder)["backend"] == "fused"
    ended = part(2, "--shard", "--resume")
    assert ended.code == 0, ended.errors
    assert "goes on with the eager one" in str(manifest(folder)["warnings"])


def test_all_weights_that_are_split_go_on_in_other_numbers_of_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has its rows of the weights and of the optimizer's averages; a checkpoint has them whole."""
    words = [word for word in WORDS if word not in ("--rank", "2")]
    words[words.index("0.01")] = "0.001"

    def full(size: int, *more: str, step: int = 0) -> None:
        disturbed = Disturbed((*words, "--method", "full", *more), 0, step, "kill" if step else "")
        ended = together(command, size, folder, disturbed)
        assert ended[0].code == (-9 if step else 0), [one.errors[-2000:] for one in ended]

    full(1)
    monkeypatch.chdir(folder)
    alone = load_file("runs/r/model/model.safetensors")
    shutil.rmtree("runs")
    full(2, "--shard", step=5)
    full(3, "--shard", "--resume", step=8)
    full(2, "--shard", "--resume")
    assert [one["step"] for one in manifest(folder)["resumed"]] == [3, 6]
    assert distance(alone, load_file("runs/r/model/model.safetensors")) <= 1e-4
    assert not is_sharded(rankwise.load_run("r").model.module)
