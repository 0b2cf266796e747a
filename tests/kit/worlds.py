"""Processes that train together, forked from one that has the imports, with the variables that torchrun sets.

`together(job, size, folder)` runs a job in each of them. `Case` is a training over a tiny Llama in float64 that one
process or several do, and `PLANTED` are the mistakes that the laws must notice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from conftest import tiny_model
from kit.processes import WARM
from kit.summed_losses import summed
from kit.trainers import GivenLoss, random_rows
from rankwise.adapters.importance import Importance
from rankwise.base.kind import CAUSAL_LM
from rankwise.base.sharding import load_sharded
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.forward.reference import SupervisedLogits
from rankwise.methods.adalora import TrainableAdaLora
from rankwise.methods.full import FullFineTuning
from rankwise.methods.inject import inject
from rankwise.methods.lora import TrainableLoRA
from rankwise.methods.trainable import Trainable
from rankwise.rows.encoded.batches import Batch, Batches, portion
from rankwise.rows.encoded.dealing import share_of
from rankwise.rows.encoded.packing import pack
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.directory import FollowedRun, RunDirectory
from rankwise.runs.records import OF_LANGUAGE_MODELS, SampleRecord, ScoreRecord
from rankwise.training import step as step_module
from rankwise.training.step import StepTotals
from rankwise.training.trainer import Trainer
from rankwise.training.validation import EarlyStopping, Validation
from rankwise.training.world import World, join

Job = Callable[[Path, Any], None]
CARDS = torch.cuda.device_count() if torch.cuda.is_available() else 0
DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(CARDS < 2, reason="NCCL needs two CUDA GPUs, and there are fewer here"),
])]  # fmt: skip
"""By gloo on processors, and by NCCL on GPUs, of which each process has one (`make gpu`)."""


def skip_without_cards(device: str, count: int) -> None:
    if device == "cuda" and count > CARDS:
        pytest.skip(f"NCCL needs {count} CUDA GPUs for as many processes, and there are {CARDS} here")


@dataclass(frozen=True)
class Case:
    """A training of 8 steps over 11 rows, of which the last batch of a pass is filled up."""

    method: str = "lora"
    arrange: Callable[[Sequence[Tokens], int], list[Batch]] = portion
    batch: int = 5
    tokens: int = 2000
    rate: float = 2e-2
    keep: str = "last"
    dtype: torch.dtype = torch.float64
    steps: int = 8
    device: str = "cpu"
    base: Path | None = None
    """A folder whose model is split over the processes, where there are several."""

    def on(self, device: str, rank: int = 0) -> Case:
        """On processors, or on the card of a process."""
        return replace(self, device=device if device == "cpu" else f"{device}:{rank}")

    def model(self) -> nn.Module:
        if self.base is None:
            return tiny_model("llama").to(self.device, self.dtype)
        if join().is_several:
            return load_sharded(self.base, CAUSAL_LM, self.dtype, torch.device(self.device))[0]
        return LlamaForCausalLM.from_pretrained(self.base, dtype=self.dtype).to(self.device)

    def trainable(self) -> Trainable:
        model = self.model()
        if self.method == "full":
            return FullFineTuning(model, dict)
        adalora = AdaLoraConfig(budget=2, initial=3, interval=1, importance="after")
        adapters = inject(model, LoraConfig(rank=2) if self.method == "lora" else adalora, seed=3)
        for adapter in adapters.adapters().values():
            adapter.to(self.dtype)
        return TrainableLoRA(adapters) if self.method == "lora" else TrainableAdaLora(adapters, adalora, self.steps)


CASES = {
    "lora": Case(), "lora packed": Case(arrange=pack), "adalora": Case("adalora"),
    "adalora packed": Case("adalora", pack), "full": Case("full", rate=2e-3), "accumulated": Case(tokens=40),
    "packed, accumulated": Case(arrange=pack, tokens=40), "fewer rows than processes": Case(batch=1),
    "best": Case("full", rate=0.02, keep="best"), "float32": Case(rate=2e-3, dtype=torch.float32),
    "adalora in float32": Case("adalora", dtype=torch.float32),
}  # fmt: skip


@dataclass(frozen=True)
class NoScores:
    tokens_written: int = 0

    def scores(self, step: int) -> list[ScoreRecord]:
        return []

    def samples(self, step: int) -> list[SampleRecord]:
        return []


@dataclass
class Learned:
    """What a training came to."""

    weights: dict[str, Tensor]
    steps: list[list[float]] = field(default_factory=list)
    """Of each step its loss, gradient norm, and numbers of tokens."""
    validations: list[float] = field(default_factory=list)
    result_step: int = 0


@dataclass(frozen=True)
class Arranged(GivenLoss):
    """The same that also lays out an idle row."""

    arrange: Callable[[Sequence[Tokens], int], list[Batch]] = portion

    def layout(self, rows: Sequence[Tokens], max_tokens: int) -> list[Batch]:
        return self.arrange(rows, max_tokens)


def learn(case: Case, world: World, folder: Path) -> Learned:
    """Train as `case` says, with validation after every second step."""
    trainable = case.trainable()
    forward = summed(SupervisedLogits(trainable.model))
    config = TrainingConfig(steps=case.steps, learning_rate=case.rate, batch_size=case.batch, clip=0.5, warmup=0.0)
    run = (RunDirectory if world.is_first else FollowedRun)(folder)
    checks = ValidationConfig.model_validate({"keep": case.keep})
    held_out = share_of(random_rows(5, seed=7), world.rank, world.size)
    validation = Validation(
        checks, 2, EarlyStopping.of(checks, trainable, 1), case.arrange(held_out, case.tokens) if held_out else [], 5,
        NoScores(), run, backend := Arranged(forward, case.arrange), OF_LANGUAGE_MODELS, world=world,
    )  # fmt: skip
    batches = Batches.of(random_rows(11), replace_tokens(config, case.tokens), case.arrange)
    if world.is_several:
        batches = replace(batches, share=lambda rows: share_of(rows, world.rank, world.size))
    trainer = Trainer(trainable, batches, config, backend, [validation], None, world)
    records = list(trainer.run())
    return Learned(
        {name: value.detach().cpu().clone() for name, value in trainable.named_parameters().items()},
        [[record.loss, record.gradient_norm, record.tokens, record.loss_tokens] for record in records],
        [record.loss for record in validation.records], validation.result_step,
    )  # fmt: skip


def replace_tokens(config: TrainingConfig, tokens: int) -> TrainingConfig:
    return config.model_copy(update={"max_batch_tokens": tokens})


def learn_all(folder: Path, given: Any) -> None:
    """In each process: the named cases, with a mistake if one is named, into files of its rank. Another device than
    processors may be named too."""
    world, (names, mistake, *device) = join(), given
    with PLANTED[mistake](world) if mistake else nothing():
        for name in names:
            learned = learn(CASES[name].on(*device or ["cpu"], world.local_rank), world, folder / name)
            save_file(learned.weights, folder / f"{name}-{world.rank}.safetensors")
            facts = {key: value for key, value in asdict(learned).items() if key != "weights"}
            (folder / f"{name}-{world.rank}.json").write_text(json.dumps(facts))


def due_after_steps(folder: Path, steps: Any) -> None:
    """What each process is told of checkpoints, where only the first one, or only another, says that one is due."""
    world = join()
    told = [StepTotals.of([], world, world.rank == first).checkpoint_due for first in steps]
    (folder / f"due-{world.rank}").write_text(json.dumps(told))


def learned_by(folder: Path, name: str, rank: int) -> Learned:
    facts = json.loads((folder / f"{name}-{rank}.json").read_text())
    return Learned(load_file(folder / f"{name}-{rank}.safetensors"), **facts)


def numbers(learned: Learned) -> list[float]:
    return [number for step in learned.steps for number in step]


def distance(one: Learned, other: Learned) -> float:
    """The largest relative difference of any weight, loss, norm or validation."""
    assert one.weights.keys() == other.weights.keys()
    differences = [0.0]
    for name, value in one.weights.items():
        assert value.shape == other.weights[name].shape, name
        differences.append(float((value - other.weights[name]).abs().max() / value.abs().max()))
    for mine, theirs in ((numbers(one), numbers(other)), (one.validations, other.validations)):
        assert len(mine) == len(theirs)
        differences += [abs(a - b) / abs(a) for a, b in zip(mine, theirs, strict=True)]
    return max(differences)


@dataclass(frozen=True)
class Ended:
    code: int
    """The exit code, or the negative number of a signal."""
    errors: str
    """What it wrote on stderr."""


def together(job: Job, size: int, folder: Path, given: Any = None, timeout: float = 120) -> list[Ended]:
    """How each of `size` processes ended that did `job(folder, given)`, by rank."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*WARM, "worlds"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    files = [folder / f"errors-{rank}" for rank in range(size)]
    notes = folder / f"notes-{port}"
    processes = [
        context.Process(target=_do, args=(job, folder, given, rank, size, port, str(files[rank]), str(notes)))
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [Ended(process.exitcode or 0, file.read_text()) for process, file in zip(processes, files, strict=True)]


def _do(job: Job, folder: Path, given: Any, rank: int, size: int, port: int, errors: str, notes: str) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    own = Path(notes) / str(rank)
    own.mkdir(parents=True)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_ERROR_FILE": str(own / "error.json"), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    os.chdir(folder)
    job(folder, given)


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, make(getattr(owner, name)))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def mean_of_means(world: World) -> Iterator[None]:
    """Each process divides by its own count, and the gradients are averaged."""

    def averaged(sum_gradients: Any) -> Any:
        def sum_them(self: World, parameters: Sequence[Any]) -> None:
            sum_gradients(self, parameters)
            for one in parameters:
                if one.grad is not None:
                    one.grad.div_(self.size)

        return sum_them

    def own_count(of: Any) -> Any:
        def own(batches: Sequence[Batch], world: World, *due: bool) -> StepTotals:
            return replace(of(batches, world, *due), count=max(1.0, sum(batch.count for batch in batches)))

        return staticmethod(own)

    with patched(World, "sum_gradients", averaged), patched(StepTotals, "of", own_count):
        yield


@contextmanager
def _with_own_gradients(world: World, owner: Any, name: str, use: Callable[[Any, list[Tensor]], Any]) -> Iterator[None]:
    """`use` gets a function, and the gradients of this process before they were added up."""
    own: list[Tensor] = []

    def remembering(sum_gradients: Any) -> Any:
        def sum_them(self: World, parameters: Sequence[Any]) -> None:
            own[:] = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
            sum_gradients(self, parameters)

        return sum_them

    with patched(World, "sum_gradients", remembering), patched(owner, name, lambda real: use(real, own)):
        yield


def own_norm(world: World) -> Any:
    """Clipping sees the gradients of this process alone."""

    def use(real: Any, own: list[Tensor]) -> Any:
        return lambda gradients: real(own)

    return _with_own_gradients(world, step_module.torch.nn.utils, "get_total_norm", use)


def own_importance(world: World) -> Any:
    """The importance of a triplet comes from the rows of this process alone."""

    def use(real: Any, own: list[Tensor]) -> Any:
        def observe(self: Importance, triplets: Any, apart: Any = None) -> None:
            flat = (triplets.vectors, triplets.strengths)
            summed_up = [one.grad.clone() for one in flat]
            for one, gradient in zip(flat, own, strict=False):
                one.grad.copy_(gradient)
            real(self, triplets, apart)
            for one, gradient in zip(flat, summed_up, strict=True):
                one.grad.copy_(gradient)

        return observe

    return _with_own_gradients(world, Importance, "observe", use)


PLANTED: dict[str, Callable[[World], Any]] = {
    "mean of means": mean_of_means, "norm of its own": own_norm, "importance of its own": own_importance,
}  # fmt: skip


@dataclass(frozen=True)
class Disturbed:
    """`rankwise WORDS`, in which process `rank` does `what` after step `step`; "diverge" is of all."""

    words: tuple[str, ...]
    rank: int = 0
    step: int = 0
    what: str = ""


def command(folder: Path, given: Disturbed) -> None:
    """In each process."""
    from rankwise.cli.main import app
    from rankwise.commands import train
    from rankwise.training import hooks

    train.write_page = lambda *given: Path()  # its charts take a third of the time
    if given.what == "diverge":
        hooks.ABOVE = -100.0  # so that every loss is far above
    elif given.what and int(os.environ["RANK"]) == given.rank:
        disturb = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}.get(given.what)
        if disturb is None:
            train.FollowedRun = RunDirectory  # pyright: ignore[reportAttributeAccessIssue]
        else:
            Trainer._timed_step = after_step(given.step, disturb)  # pyright: ignore[reportPrivateUsage]
    sys.argv = ["rankwise", *given.words]
    app([*given.words])


def after_step(step: int, number: int) -> Any:
    timed_step = Trainer._timed_step  # pyright: ignore[reportPrivateUsage]

    def timed(self: Trainer) -> Any:
        record = timed_step(self)
        if self.state.step == step:
            os.kill(os.getpid(), number)
        return record

    return timed
