"""The processes that train together: their number, their sums, and how they wait for each other.

torchrun starts them, and torch's process groups connect them: gloo on processors, NCCL on GPUs. One process is the
ordinary case, `ALONE`: every sum is its own, nobody is waited for, and no process group exists.

    totals of a step     gathered in float64; each process adds them up in the same order
    gradients            one flat sum for each dtype, in parts where there are many
    facts                decided by the first process and given to all as JSON

A process that is gone ends all others: whoever waits for it gets a LostProcessError.

Rows and other items are dealt over the processes by what they cost (rows/encoded/dealing.py):

    rows of a step           each process learns from its share, and what is summed is that of all
    items to be measured     each process computes its share, and all have every result in the order of the items

Results are sent as JSON, which gives numbers back bit for bit. A base that is split over the processes is gathered in
each pass, so all of them make as many passes: a process with fewer micro-batches adds batches of one row in which
nothing is predicted, whose loss and gradients are zero.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, distributed, nn

from rankwise.base.split import is_split, local_part
from rankwise.errors import DataError, Interrupted, TrainingError, first_line, is_out_of_memory
from rankwise.rows.encoded.batches import Arrange, Batch, chosen_targets, with_chosen_tokens
from rankwise.rows.encoded.dealing import deal, share_of, undealt
from rankwise.rows.text.tokenize import Tokens
from rankwise.system.launched import launched
from rankwise.system.signals import check_when_asked, requested

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""As wide as the numbers of a tensor."""


def bit_sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sum the bits of each tensor that is not empty, read as integers, to tell whether tensors are equal. Of a tensor
    that is split over processes, the part of this one counts."""
    parts = {name: local_part(value.detach()) for name, value in tensors.items()}
    return {
        name: int(value.contiguous().view(INTEGERS[value.element_size()]).sum(dtype=torch.int64))
        for name, value in parts.items()
        if value.numel()
    }


_Value = TypeVar("_Value")
AT_ONCE = 1 << 24
"""Numbers of a flat sum at most, so that it needs little memory beside the gradients; a larger tensor is alone."""
PATIENCE = timedelta(days=1)
"""How long processes wait while the first one downloads, encodes or validates. One that is gone is noticed at once."""
SECONDS_TO_DIE = 2.0
"""After a connection broke, until a killed process of this machine is seen to be gone."""

_LOST = re.compile(r"gloo/transport|[Cc]onnection (closed|reset|refused)|NCCL|Broken pipe")
"""In torch's messages where another process is gone."""


class LostProcessError(TrainingError):
    """Another process of the training is gone."""


class StoppedTogether(Interrupted):
    """All processes agreed to stop before this step."""


@dataclass(frozen=True)
class World:
    """`control` is a process group on processors; `pids` are the processes of this machine by their rank, and `parent`
    is the one that started this."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None
    pids: tuple[tuple[int, int], ...] = ()
    parent: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes, and speaks."""
        return self.rank == 0

    @property
    def is_several(self) -> bool:
        return self.size > 1

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of each process, which all give as many, by rank."""
        if not self.is_several:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.size)]
        with self._connected():
            distributed.all_gather(every, own, group=self.control)
        return [one.tolist() for one in every]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Added up over all processes."""
        return list(map(sum, zip(*self.gather(values), strict=True)))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes. A parameter that has none anywhere is left so; the
        optimizer passes over it."""
        if not self.is_several:
            return
        parameters = [one for one in parameters if not is_split(one)]  # FSDP has summed these
        kinds = dict.fromkeys((one.dtype, one.device) for one in parameters)
        for kind in kinds:
            for part in _parts([one for one in parameters if (one.dtype, one.device) == kind]):
                self._sum_part(part)

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        for one in tensors if self.is_several else ():
            with self._connected():
                distributed.all_reduce(one)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather([0.0])

    def share(self, make: Callable[[], _Value]) -> _Value:
        """What the first process makes, for all: anything that JSON can hold."""
        return self._sent(make() if self.is_first else None, 0)  # pyright: ignore[reportReturnType]

    def exchange(self, value: _Value) -> list[_Value]:
        """The values of all processes by rank: anything that JSON can hold."""
        return [self._sent(value, rank) for rank in range(self.size)]

    def _sent(self, value: _Value, rank: int) -> _Value:
        """That of one process, for all."""
        if not self.is_several:
            return value
        text = json.dumps(value).encode() if self.rank == rank else b""
        length = int(self.gather([float(len(text))])[rank][0])
        sent = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(length, dtype=torch.uint8)
        with self._connected():
            distributed.broadcast(sent, rank, group=self.control)
        return value if self.rank == rank else json.loads(sent.numpy().tobytes())

    def wait_for_turn(self) -> None:
        """The first process of each machine goes on at once, so that what it downloads, converts and encodes is there
        for the others, which wait for its `end_turn`."""
        if self.local_rank > 0:
            self.barrier()

    def end_turn(self) -> None:
        if self.is_several and self.local_rank == 0:
            self.barrier()

    def check_stop(self) -> None:
        """StoppedTogether where any process was asked to stop."""
        if self.is_several:
            self.stop_on([row[0] for row in self.gather([self.stop_code])])

    def check_own_stop(self) -> None:
        """StoppedTogether where this process was asked to stop. The others are not asked: they may be anywhere."""
        if self.is_several:
            self.stop_on([self.stop_code])

    @property
    def stop_code(self) -> float:
        """The exit code of a request to stop, which is also made by the end of what started the processes; 0 without
        one."""
        request = requested()
        if request is None and self.parent != os.getppid():
            return 143.0
        return 0.0 if request is None else float(getattr(request, "exit_code", 130))

    def stop_on(self, codes: Sequence[float]) -> None:
        if any(codes):
            raise StoppedTogether("stopped.", int(max(codes)))

    def check_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """TrainingError where a process has other numbers than the first."""
        sums = bit_sums(tensors)
        texts = (f"{name} {tuple(one.shape)} {sums.get(name)}" for name, one in tensors.items())
        if (other := self._unlike(texts)) is not None:
            raise TrainingError(
                f"{when}, process {other + 1} of {self.size} has other weights than the first process. Processes "
                "that train together must compute alike: use machines of one kind, with the same versions."
            )

    def check_same_rows(self, report: str) -> None:
        """DataError where a process has prepared other rows than the first, by the report on them."""
        if self.is_several and (other := self._unlike([report])) is not None:
            raise DataError(
                f"process {other + 1} of {self.size} reads other rows than the first process. All must see the same "
                "files, which nobody changes meanwhile."
            )

    def check_peers(self) -> None:
        """LostProcessError where a process of this machine is gone."""
        if lost := [(rank, pid) for rank, pid in self.pids if pid != os.getpid() and not _is_alive(pid)]:
            raise self._lost(*lost[0])

    def _unlike(self, texts: Iterable[str]) -> int | None:
        """The first process whose texts differ from those of process 0, by 48 bits of their hash."""
        own = sha256("\n".join(texts).encode()).digest()
        first, *others = (row[0] for row in self.gather([float(int.from_bytes(own[:6]))]))
        return next((rank for rank, digest in enumerate(others, start=1) if digest != first), None)

    def _sum_part(self, parameters: Sequence[nn.Parameter]) -> None:
        grads = [one.grad for one in parameters]
        first = parameters[0]
        there = torch.tensor([float(grad is not None) for grad in grads], dtype=first.dtype, device=first.device)
        flat = torch.cat([
            there, *((torch.zeros_like(one) if grad is None else grad).flatten()
            for one, grad in zip(parameters, grads, strict=True))
        ])  # fmt: skip
        with self._connected():
            distributed.all_reduce(flat)
        anywhere, *values = flat.split([len(grads), *(one.numel() for one in parameters)])
        for one, grad, value, count in zip(parameters, grads, values, anywhere.tolist(), strict=True):
            if grad is not None:
                grad.copy_(value.view_as(grad))
            elif count:
                one.grad = value.view_as(one).clone()

    def explained(self, error: BaseException) -> BaseException:
        """A LostProcessError where an operation of torch over all processes failed because one of them is gone; any
        other error as it is."""
        if not self.is_several or not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
            return error
        try:
            with self._connected():
                raise error
        except LostProcessError as lost:
            return lost

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            until = time.monotonic() + SECONDS_TO_DIE
            while time.monotonic() < until:  # its connections close before it is gone
                self.check_peers()
                time.sleep(0.05)
            raise self._lost() from None

    def _lost(self, rank: int | None = None, pid: int | None = None) -> LostProcessError:
        which = f"process {rank + 1}" if rank is not None else "one"
        number = f" (number {pid})" if pid is not None else ""
        return LostProcessError(
            f"{which} of the {self.size} processes of this training{number} has ended, so all of them ended. It was "
            "killed, by somebody or because memory ran out, or its machine is gone."
        )


ONE_PROCESS = World()
_joined: list[World] = []


def join() -> World:
    """The processes that torchrun started, connected at the first call; ALONE where it started none."""
    own = launched()
    if own is None:
        return ONE_PROCESS
    if _joined:
        return _joined[0]
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards >= own.local_size:
        torch.cuda.set_device(own.local_rank)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cards >= own.local_size else "gloo")
        control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise TrainingError(f"the {own.size} processes cannot reach each other: {first_line(error)}.") from None
    world = World(own.rank, own.size, own.local_rank, own.local_size, control)
    machine = float(os.environ.get("GROUP_RANK", "0"))
    every = world.gather([machine, float(os.getpid())])
    pids = tuple((rank, int(pid)) for rank, (where, pid) in enumerate(every) if where == machine)
    world = World(
        own.rank, own.size, own.local_rank, local_size=own.local_size, control=control, pids=pids, parent=os.getppid()
    )
    check_when_asked(world.check_peers)
    atexit.register(_leave)
    _joined.append(world)
    return world


def _leave() -> None:
    with suppress(Exception):  # the others may be gone
        distributed.destroy_process_group()


def _parts(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    part: list[nn.Parameter] = []
    for one in parameters:
        if part and sum(other.numel() for other in part) + one.numel() > AT_ONCE:
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


_Item = TypeVar("_Item")


def computed_by_all(
    world: World, items: Sequence[_Item], costs: Sequence[int], compute: Callable[[list[_Item]], Sequence[Any]]
) -> list[Any]:
    """What `compute` makes of the items, one result for each. A process without a share computes nothing."""
    if not world.is_several:
        return undealt(items, costs, compute)
    shares = deal(costs, world.size)
    own = [items[place] for place in shares[world.rank]]
    results = dict[int, Any]()
    for share, made in zip(shares, world.exchange(list(compute(own)) if own else []), strict=True):
        results |= zip(share, made, strict=True)
    return [results[place] for place in range(len(items))]


def divided_over(
    world: World, rows: Sequence[Tokens], layout: Callable[[Sequence[Tokens]], list[Batch]]
) -> list[Batch]:
    """This process's share of the rows as batches, whose losses are summed over all processes."""
    own = share_of(rows, world.rank, world.size)
    batches = layout(own) if own else []
    if not world.is_several:
        return batches
    count, chosen = world.sums([sum(batch.count for batch in batches), chosen_targets(batches)])
    return with_chosen_tokens(batches, chosen / count) if chosen else batches


NOTHING_PREDICTED = Tokens((0, 0), (False, False))


def filled_up(batches: Sequence[Batch], world: World, layout: Arrange) -> list[Batch]:
    """The batches of this process and as many idle ones as the others have more."""
    passes = max(round(count) for (count,) in world.gather([len(batches)]))
    (idle,) = layout([NOTHING_PREDICTED], len(NOTHING_PREDICTED.ids))
    return [*batches, *[idle] * (passes - len(batches))]
