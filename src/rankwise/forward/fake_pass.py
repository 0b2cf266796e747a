"""One pass of a model without memory: what autograd saves in each block, and how its layers are called.

Fake tensors have sizes and a device, so every operation is chosen as on a processor and computes nothing. Autograd
offers each tensor that it saves to a hook; one that is no weight and was not there before belongs to the block that
saves it first.

Of a model of images a backward pass is made too:

    saved      bytes that the backward pass needs, by block, as of texts
    passing    the most bytes that live at once, less those that are saved when the forward pass ends

The second number is of tensors alone, followed from the operation that makes them to the end of their last reference.
Gradients of weights are dropped as soon as they are there: a plan counts them for itself. Operations are counted by
torch's own formulas.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from rankwise.adapters.base_layers import is_host, is_linear
from rankwise.config.modules import NUMBER
from rankwise.kernels.linear import is_conv1d


@dataclass
class Trace:
    """One forward pass: bytes saved by the path of each block, each block's width, and of each layer its stage, the
    last size of its input, and the tokens of it."""

    saved: Counter[str] = field(default_factory=Counter)
    widths: dict[str, int] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)


@contextmanager
def without_memory(model: nn.Module, kept_blocks: Mapping[str, int]) -> Iterator[None]:
    """Inside, tensors are fake, and of the list of blocks at each path only so many of the first are there."""
    from transformers import masking_utils, pytorch_utils

    log = logging.getLogger("torch._subclasses.fake_tensor")
    with ExitStack() as undo:
        undo.callback(setattr, log, "disabled", log.disabled)
        log.disabled = True  # it would print the traceback of what the caller catches
        for path, count in kept_blocks.items():
            blocks = model.get_submodule(path)._modules
            undo.callback(blocks.update, dict(blocks))
            for number in list(blocks)[count:]:
                del blocks[number]
        # without values transformers cannot see that a row is a single sequence, and would save a mask for it
        undo.enter_context(_patched(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None))
        # some models cache tensors by their sizes for the whole process, where fake ones would meet real ones
        undo.enter_context(_patched(pytorch_utils, "is_torchdynamo_compiling", lambda: True))
        undo.enter_context(FakeTensorMode())
        yield


@contextmanager
def _patched(module: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    before = getattr(module, name, None)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, before)


def make_fake(
    model: nn.Module, dtype: torch.dtype, *, everything: bool, learning: Collection[nn.Module] | None = None
) -> None:
    """Weights and buffers as fake tensors of a processor, of which those learn that a pass is made for: everything, the
    modules of `learning`, or the linear layers but the head."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    for part in model.modules():
        chosen = part in learning if learning is not None else part is not head and (is_linear(part) or is_conv1d(part))
        learns = everything or chosen
        weights: dict[str, Any] = part._parameters  # pyright: ignore[reportAssignmentType]
        buffers: dict[str, Any] = part._buffers  # pyright: ignore[reportAssignmentType]
        for values in (weights, buffers):
            for name, value in values.items():
                if value is None:
                    continue
                floating = value.is_floating_point()
                fake = torch.empty(value.shape, dtype=dtype if floating else value.dtype, device="cpu")
                learned = nn.Parameter(fake, requires_grad=learns and floating)
                values[name] = learned if values is weights else fake


class Recorder:
    """Writes into a trace what the hooks see. `block` is the path of the block that is computed, or empty."""

    def __init__(self, model: nn.Module) -> None:
        self.trace = Trace()
        self.block = ""
        self._weights = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._inputs: dict[str, list[torch.UntypedStorage]] = {}

    def save(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._saved:
            self._saved[storage._cdata] = storage  # its number stays its own as long as it lives
            self.trace.saved[self.block] += storage.nbytes()
        return value

    def call(self, path: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self.block and not given[0].is_floating_point():  # a table of positions, which is no part of the chain
            self.trace.stages.setdefault(path, 0)
            return
        seen, storage = self._inputs.setdefault(self.block, []), given[0].untyped_storage()
        if not any(one._cdata == storage._cdata for one in seen):
            seen.append(storage)
        stage = next(at for at, one in enumerate(seen) if one._cdata == storage._cdata)
        self.trace.stages.setdefault(path, stage)
        self.trace.inputs.setdefault(path, given[0].shape[-1])
        self.trace.lengths.setdefault(path, given[0].shape[1])

    def forget(self) -> None:
        """Let go of what was saved, so that it lives no longer than it is needed."""
        self._saved.clear()

    def enter(self, path: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        self.block = path
        if given and isinstance(given[0], Tensor):
            self.trace.widths[path] = given[0].shape[-1]

    def leave(self, *_: Any) -> None:
        self.block = ""

    def follow(self, hooks: ExitStack, model: nn.Module, blocks: Sequence[str]) -> None:
        """Until the hooks are undone, know which of the blocks is computed."""
        for path in blocks:
            part = model.get_submodule(path)
            hooks.callback(part.register_forward_pre_hook(partial(self.enter, path)).remove)
            hooks.callback(part.register_forward_hook(self.leave).remove)


def trace(
    model: nn.Module, length: int, *, blocks: Sequence[str], masked: bool = False, output: int | None = None
) -> Trace:
    """A pass over one sequence of so many tokens. `blocks` are the paths of all blocks that are there. `masked`: behind
    an attention mask, as the padded rows of a classifier are. `output`: so many tokens are written by a decoder behind
    the encoder that reads the others."""
    recorder = Recorder(model)
    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if is_host(part):
                hooks.callback(part.register_forward_pre_hook(partial(recorder.call, path)).remove)
        recorder.follow(hooks, model, blocks)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value):
            ids = torch.zeros(1, length, dtype=torch.long)
            given: dict[str, Any] = {"use_cache": False} if not masked else {}
            if masked or output is not None:
                given["attention_mask"] = torch.ones_like(ids)
            if output is not None:
                given["decoder_input_ids"] = torch.zeros(1, output, dtype=torch.long)
            model(ids, **given)
    return recorder.trace


Classify = Callable[[nn.Module, Tensor], Tensor]
"""Pixels (B, 3, S, S) to logits, as training calls the model."""
CHANNELS = 3


@dataclass
class Memory:
    """Bytes of a batch: `saved` by the path of the block, "" outside of all."""

    saved: Counter[str] = field(default_factory=Counter)
    passing: int = 0


@dataclass
class Survey:
    """Operations of a batch's forward pass; of each layer its stage, and how many inputs it maps."""

    operations: int = 0
    of_blocks: dict[str, int] = field(default_factory=dict)
    """Those of each block, by its path."""
    stages: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)


class _Surveyor(Recorder):
    """A layer's stage counts the inputs of all layers with the same number in their paths, as positions compare."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.positions: dict[str, int] = {}

    def call(self, path: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        number = NUMBER.search(path)
        self.block = "" if number is None else number[1]
        super().call(path, _, given)

    def count(self, path: str, module: nn.Module, _: Any, output: Tensor) -> None:
        width = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
        self.positions[path] = self.positions.get(path, 0) + output.numel() // width


class _Living(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._there = {value.untyped_storage()._cdata for value in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number in self._there:
            return
        self._there.add(number)
        weakref.finalize(storage, self._remove, number, storage.nbytes())
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)

    def _remove(self, number: int, size: int) -> None:
        self._there.discard(number)
        self.now -= size


def measure_memory(model: nn.Module, classify: Classify, count: int, side: int, blocks: Sequence[str]) -> Memory:
    """Of a pass over `count` images of `side` pixels. `blocks` are the paths of all blocks that are there."""
    recorder, living = Recorder(model), _Living([*model.parameters(), *model.buffers()])
    with ExitStack() as hooks:
        recorder.follow(hooks, model, blocks)
        for weight in model.parameters():
            if weight.requires_grad:
                hooks.callback(weight.register_post_accumulate_grad_hook(_drop_gradient).remove)
        with torch.enable_grad(), living:
            with torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value):
                loss = classify(model, _pixels(model, count, side)).float().sum()
            recorder.forget()
            loss.backward()
    saved = recorder.trace.saved
    return Memory(saved, living.most - saved.total())


def survey(model: nn.Module, classify: Classify, count: int, side: int, blocks: Sequence[str]) -> Survey:
    """A forward pass over `count` images of `side` pixels. `blocks` are the paths of all blocks that are there."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    recorder = _Surveyor(model)
    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if is_host(part):
                hooks.callback(part.register_forward_pre_hook(partial(recorder.call, path)).remove)
                hooks.callback(part.register_forward_hook(partial(recorder.count, path)).remove)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
            classify(model, _pixels(model, count, side))
    counts, name = counter.get_flop_counts(), type(model).__name__
    of_blocks = {path: sum(counts[f"{name}.{path}"].values()) for path in blocks}
    return Survey(counter.get_total_flops(), of_blocks, recorder.trace.stages, recorder.positions)


def _pixels(model: nn.Module, count: int, side: int) -> Tensor:
    return torch.zeros(count, CHANNELS, side, side, dtype=next(model.parameters()).dtype)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
