"""One forward pass of a model without memory: what autograd saves in each block, and how its layers are called.

Fake tensors have sizes and a device, so every operation is chosen as on a processor and computes nothing. Autograd
offers each tensor that it saves to a hook; one that is no weight and was not there before belongs to the block that
saves it first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.adapters.base_layers import is_host, is_linear
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


def trace(
    model: nn.Module, length: int, blocks: Sequence[str], *, masked: bool = False, output: int | None = None
) -> Trace:
    """A pass over one sequence of so many tokens. `blocks` are the paths of all blocks that are there. `masked`: behind
    an attention mask, as the padded rows of a classifier are. `output`: so many tokens are written by a decoder behind
    the encoder that reads the others."""
    recorder = Recorder(model)
    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if is_host(part):
                hooks.callback(part.register_forward_pre_hook(partial(recorder.call, path)).remove)
        for path in blocks:
            part = model.get_submodule(path)
            hooks.callback(part.register_forward_pre_hook(partial(recorder.enter, path)).remove)
            hooks.callback(part.register_forward_hook(recorder.leave).remove)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(recorder.save, lambda value: value):
            ids = torch.zeros(1, length, dtype=torch.long)
            given: dict[str, Any] = {"use_cache": False} if not masked else {}
            if masked or output is not None:
                given["attention_mask"] = torch.ones_like(ids)
            if output is not None:
                given["decoder_input_ids"] = torch.zeros(1, output, dtype=torch.long)
            model(ids, **given)
    return recorder.trace
