"""Passes of a model without memory: what autograd saves in each block, and how its layers are called.

Fake tensors have sizes and a device, so every operation is chosen as on a processor and computes nothing. A survey of
the whole model follows how its layers are called, and counts operations by torch's own formulas. In another pass
autograd offers each tensor that it saves to a hook; one that is no weight and was not there before belongs to the block
that saves it first.

Of a model of images a backward pass is made too:

    saved      bytes that the backward pass needs, by block, as of texts
    passing    the most bytes that live at once, less those that are saved when the forward pass ends

The second number is of tensors alone, followed from the operation that makes them to the end of their last reference.
Gradients of weights are dropped as soon as they are there: a plan counts them for itself.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from rankwise.adapters.base_layers import is_host, is_linear
from rankwise.config.modules import NUMBER, Layer
from rankwise.kernels.linear import is_conv1d

Call = Callable[[nn.Module], Any]
"""A call of the model with rows of some size."""


@dataclass
class Survey:
    """How a forward pass calls the layers, by their paths: the stage of each, the last size and the length of its
    input, and how many inputs it maps; and the width of each block."""

    stages: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    positions: Counter[str] = field(default_factory=Counter)
    widths: dict[str, int] = field(default_factory=dict)
    operations: int = 0

    def with_stage(self, layer: Layer) -> Layer:
        """With its stage. A layer outside all blocks is before the first of them that is called, or after it."""
        if layer.path not in self.stages:
            return layer
        if layer.block is not None:
            return replace(layer, stage=self.stages[layer.path])
        before = list(takewhile(lambda path: not NUMBER.search(path), self.stages))
        return replace(layer, stage=-1 if layer.path in before else 0)


@dataclass
class MemoryPass:
    """Bytes that a pass takes: `saved` by the path of the block, "" outside of all."""

    saved: Counter[str] = field(default_factory=Counter)
    passing: int = 0


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


@contextmanager
def following(model: nn.Module, blocks: Sequence[str], enter: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Inside, `enter` is called with the path of each block that is computed, with the block and its inputs, and with
    "" after it."""
    with ExitStack() as hooks:
        for path in blocks:
            part = model.get_submodule(path)
            hooks.callback(part.register_forward_pre_hook(partial(enter, path)).remove)
            hooks.callback(part.register_forward_hook(lambda *_: enter("", None, ())).remove)
        yield


class Recorder:
    """Counts the bytes that autograd saves in each block."""

    def __init__(self, model: nn.Module) -> None:
        self.saved = Counter[str]()
        self._block = ""
        self._weights = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
        self._there: dict[int, torch.UntypedStorage] = {}

    def enter(self, path: str, _: Any, arguments: Any) -> None:
        self._block = path

    def save(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._there:
            self._there[storage._cdata] = storage  # its number stays its own as long as it lives
            self.saved[self._block] += storage.nbytes()
        return value

    def forget(self) -> None:
        """Let go of what was saved, so that it lives no longer than it is needed."""
        self._there.clear()


class _Surveyor:
    """A stage counts the inputs of all layers of the same block, or, where no blocks are followed, of all layers with
    the same number in their paths, as positions compare."""

    def __init__(self, blocks: Sequence[str]) -> None:
        self.seen = Survey()
        self._numbered, self._block = not blocks, ""
        self._inputs: dict[str, list[torch.UntypedStorage]] = {}

    def enter(self, path: str, _: Any, arguments: Any) -> None:
        self._block = path
        if arguments and isinstance(arguments[0], Tensor):
            self.seen.widths[path] = arguments[0].shape[-1]

    def call(self, path: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        given = inputs[0]
        if self._numbered:
            number = NUMBER.search(path)
            self._block = "" if number is None else number[1]
        if self._block and not given.is_floating_point():  # a table of positions, which is no part of the chain
            self.seen.stages.setdefault(path, 0)
            return
        before, storage = self._inputs.setdefault(self._block, []), given.untyped_storage()
        if not any(one._cdata == storage._cdata for one in before):
            before.append(storage)
        stage = next(at for at, one in enumerate(before) if one._cdata == storage._cdata)
        self.seen.stages.setdefault(path, stage)
        self.seen.inputs.setdefault(path, given.shape[-1])
        self.seen.lengths.setdefault(path, given.shape[1])

    def count(self, path: str, module: nn.Module, _: Any, output: Tensor) -> None:
        width = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
        self.seen.positions[path] += output.numel() // width


def survey(model: nn.Module, call: Call, blocks: Sequence[str] = ()) -> Survey:
    """Make a forward pass and record how it uses the model's layers. `blocks` are the paths of all blocks, where these
    are equal or of a few kinds."""
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
            query, key, value
        )
    }
    surveyor = _Surveyor(blocks)
    with ExitStack() as hooks:
        hooks.enter_context(following(model, blocks, surveyor.enter))
        for path, part in model.named_modules():
            if is_host(part):
                hooks.callback(part.register_forward_pre_hook(partial(surveyor.call, path)).remove)
                hooks.callback(part.register_forward_hook(partial(surveyor.count, path)).remove)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
            call(model)
    surveyor.seen.operations = counter.get_total_flops()
    return surveyor.seen


def kept_bytes(model: nn.Module, call: Call, blocks: Sequence[str]) -> MemoryPass:
    """Count the bytes that a forward pass keeps for the backward pass. `blocks` are the paths of all blocks that are
    there."""
    recorder = Recorder(model)
    saving = torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value)
    with following(model, blocks, recorder.enter), torch.enable_grad(), saving:
        call(model)
    return MemoryPass(recorder.saved)


def read_texts(length: int, *, masked: bool = False, output: int | None = None) -> Call:
    """One sequence of so many tokens. `masked`: behind an attention mask, as the padded rows of a classifier are.
    `output`: so many tokens are written by a decoder behind the encoder that reads the others."""

    def call(model: nn.Module) -> Any:
        ids = torch.zeros(1, length, dtype=torch.long)
        given: dict[str, Any] = {"use_cache": False} if not masked else {}
        if masked or output is not None:
            given["attention_mask"] = torch.ones_like(ids)
        if output is not None:
            given["decoder_input_ids"] = torch.zeros(1, output, dtype=torch.long)
        return model(ids, **given)

    return call


CHANNELS = 3


def read_images(classify: Callable[[nn.Module, Tensor], Tensor], count: int, side: int) -> Call:
    """So many images of `side` pixels; `classify` makes logits of pixels (B, 3, S, S), as training calls the model."""

    def call(model: nn.Module) -> Tensor:
        return classify(model, torch.zeros(count, CHANNELS, side, side, dtype=next(model.parameters()).dtype))

    return call


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


def measure_memory(model: nn.Module, call: Call, blocks: Sequence[str]) -> MemoryPass:
    """Measure the memory of a forward and backward pass. `blocks` are the paths of all blocks that are there."""
    recorder, living = Recorder(model), _Living([*model.parameters(), *model.buffers()])
    with ExitStack() as hooks:
        hooks.enter_context(following(model, blocks, recorder.enter))
        for weight in model.parameters():
            if weight.requires_grad:
                hooks.callback(weight.register_post_accumulate_grad_hook(_drop_gradient).remove)
        with torch.enable_grad(), living:
            with torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value):
                loss = call(model).float().sum()
            recorder.forget()
            loss.backward()
    return MemoryPass(recorder.saved, living.most - recorder.saved.total())


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
