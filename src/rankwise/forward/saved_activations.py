"""What each block of a model keeps for its backward pass, and in which order its layers are called.

A forward pass over fake tensors (they have sizes and a device, and no memory) is made at three lengths. Autograd offers
every tensor that it saves to a hook; one that is no weight and was not there before belongs to the block that saves it
first. Three lengths S give the three numbers of

    bytes of a block = constant + token S + pair S^2

In a pass "adapter" the linear layers learn, so their inputs are saved as an adapter over them would save them; in a
pass "full" everything learns. Of equal blocks that follow each other only the first two are gone through.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.adapters.base_layers import is_host, is_linear
from rankwise.kernels.linear import is_conv1d
from rankwise.planning.shape import Blocks, Saved

LENGTHS = (32, 64, 96)
PASSES = (("adapter", torch.bfloat16), ("adapter", torch.float32), ("full", torch.float32))


@dataclass(frozen=True)
class Stack:
    """A list of blocks at `path`; blocks of one entry in `kinds` are equal."""

    path: str
    kinds: tuple[Hashable, ...]
    blocks: Blocks

    @property
    def short(self) -> int:
        """How many blocks have every kind of them among them, two at least."""
        return max(2, 1 + max(self.kinds.index(kind) for kind in set(self.kinds)))

    def block_path(self, number: int) -> str:
        return f"{self.path}.{number}"

    def example(self, number: int) -> int:
        """The last of the first blocks that is of the same kind."""
        short = self.kinds[: self.short]
        return len(short) - 1 - short[::-1].index(self.kinds[number])


@dataclass
class Trace:
    """One forward pass: bytes saved by the path of each block, each block's width, and of each layer its stage and the
    last size of its input."""

    saved: Counter[str] = field(default_factory=Counter)
    widths: dict[str, int] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)


def stacks_of(model: Any, auto_class: str) -> tuple[Stack, ...]:
    """The outermost lists of blocks: those that transformers can compute twice, or lists of any modules where a model
    has none of these."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    marked = [(path, part) for path, part in lists if all(isinstance(one, GradientCheckpointingLayer) for one in part)]
    outermost: list[tuple[str, nn.ModuleList]] = []
    for path, part in marked or lists:
        if not any(path.startswith(f"{outer}.") for outer, _ in outermost):
            outermost.append((path, part))
    text = model.config.get_text_config()
    width = getattr(text, "hidden_size", 0)
    width = width if isinstance(width, int) else 0
    return tuple(
        Stack(path, tuple(_kind(block) for block in part), Blocks(
            len(part), width, 0, auto_class == "AutoModelForCausalLM" or "decoder" in path, _window(text),
        ))
        for path, part in outermost
    )  # fmt: skip


def measured(model: Any, stacks: Sequence[Stack]) -> tuple[tuple[Stack, ...], dict[str, int]]:
    """The stacks with what their blocks save, and the stage of every layer that is called. Both come back as they
    were, and empty, where a forward pass needs more than token ids or cannot be faked (experts in float32). The model's
    weights are replaced by fake ones."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LENGTHS[-1]
    lengths = [max(number, min(limit, LENGTHS[-1]) * number // 3) for number in (1, 2, 3)]
    traces: dict[str, list[Trace]] = {}
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # it would print the traceback of what is caught here
    try:
        with _shortened(model, stacks), _one_sequence(), FakeTensorMode():
            for learns, dtype in PASSES:
                _make_fake(model, dtype, everything=learns == "full")
                name = f"{learns} {str(dtype).removeprefix('torch.')}"
                traces[name] = [_trace(model, length, stacks) for length in lengths]
    except Exception:  # as many kinds as there are architectures
        return tuple(stacks), {}
    finally:
        log.disabled = before
    last = next(iter(traces.values()))[-1]
    measured = (_with_saved(stack, lengths, traces, last, model) for stack in stacks)
    return tuple(measured), _everywhere(last.stages, stacks)


def _kind(block: nn.Module) -> Hashable:
    """Equal for blocks that compute the same: by their parts, the sizes of weights, and the settings of each part but
    its number."""
    return tuple(
        (
            path, type(part).__name__, tuple(tuple(weight.shape) for weight in part.parameters(recurse=False)),
            tuple(sorted(
                (key, value) for key, value in vars(part).items()
                if isinstance(value, bool | str) and not key.startswith("_")
            )),
        )
        for path, part in block.named_modules()
    )  # fmt: skip


def _window(text: Any) -> int | None:
    """Tokens that attention looks back, where no block sees all."""
    window, kinds = getattr(text, "sliding_window", None), set(getattr(text, "layer_types", None) or ())
    everywhere = kinds == {"sliding_attention"} or (not kinds and getattr(text, "use_sliding_window", True))
    return window if isinstance(window, int) and everywhere else None


@contextmanager
def _shortened(model: nn.Module, stacks: Sequence[Stack]) -> Iterator[None]:
    with ExitStack() as undo:
        for stack in stacks:
            blocks = model.get_submodule(stack.path)
            undo.callback(blocks._modules.update, dict(blocks._modules))
            for number in range(stack.short, stack.blocks.count):
                del blocks._modules[str(number)]
        yield


@contextmanager
def _one_sequence() -> Iterator[None]:
    """Without values transformers cannot see that a row is a single sequence, and would save a mask for it."""
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    before = getattr(masking_utils, name, None)
    setattr(masking_utils, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, before)


def _make_fake(model: nn.Module, dtype: torch.dtype, *, everything: bool) -> None:
    """Weights and buffers as fake tensors of a processor, of which those learn that a pass is made for."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    for part in model.modules():
        learns = everything or (part is not head and (is_linear(part) or is_conv1d(part)))
        for values in (part._parameters, part._buffers):
            for name, value in values.items():
                if value is None:
                    continue
                floating = value.is_floating_point()
                fake = torch.empty(value.shape, dtype=dtype if floating else value.dtype, device="cpu")
                is_weight = values is part._parameters
                values[name] = nn.Parameter(fake, requires_grad=learns and floating) if is_weight else fake


def _trace(model: nn.Module, length: int, stacks: Sequence[Stack]) -> Trace:
    trace, block = Trace(), [""]
    known = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}
    inputs: dict[str, list[torch.UntypedStorage]] = {}

    def save(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in known and storage._cdata not in saved:
            saved[storage._cdata] = storage  # held, so that no other takes its number
            trace.saved[block[0]] += storage.nbytes()
        return value

    def call(path: str, given: tuple[Any, ...]) -> None:
        seen, storage = inputs.setdefault(block[0], []), given[0].untyped_storage()
        known_at = [at for at, one in enumerate(seen) if one._cdata == storage._cdata]
        if not known_at:
            seen.append(storage)
        trace.stages.setdefault(path, known_at[0] if known_at else len(seen) - 1)
        trace.inputs.setdefault(path, given[0].shape[-1])

    def enter(path: str, given: Any) -> None:
        block[0] = path
        if isinstance(given, Tensor):
            trace.widths[path] = given.shape[-1]

    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if is_host(part):
                hooks.enter_context(_hook(part, lambda given, path=path: call(path, given)))
        for stack in stacks:
            for number in range(min(stack.short, stack.blocks.count)):
                path = stack.block_path(number)
                part = model.get_submodule(path)
                hooks.enter_context(_hook(part, lambda given, path=path: enter(path, given[0] if given else None)))
                hooks.callback(part.register_forward_hook(lambda *_: enter("", None)).remove)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
            model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    return trace


@contextmanager
def _hook(part: nn.Module, call: Any) -> Iterator[None]:
    handle = part.register_forward_pre_hook(lambda _, given: call(given))
    try:
        yield
    finally:
        handle.remove()


def _with_saved(
    stack: Stack, lengths: Sequence[int], traces: Mapping[str, list[Trace]], last: Trace, model: nn.Module
) -> Stack:
    """The mean over all blocks of the stack, each like the example of its kind."""
    examples = Counter(stack.block_path(stack.example(number)) for number in range(stack.blocks.count))
    saved = {name: _mean({path: _fitted(lengths, [one.saved[path] for one in each]) for path in examples}, examples)
             for name, each in traces.items()}  # fmt: skip
    width = next((last.widths[path] for path in examples if path in last.widths), stack.blocks.width)
    queries = sum(count * _queries(model.get_submodule(path), path, last) for path, count in examples.items())
    blocks = replace(stack.blocks, width=width, queries=round(queries / stack.blocks.count), saved=saved)
    return replace(stack, blocks=blocks)


def _queries(block: nn.Module, path: str, trace: Trace) -> int:
    """What the first layer after attention gets for each token: as many numbers as its queries have."""
    if not any("Attention" in type(part).__name__ for part in block.modules()):
        return 0
    inside = (layer for layer, stage in trace.stages.items() if stage == 1 and layer.startswith(f"{path}."))
    return next((trace.inputs[layer] for layer in inside), 0)


def _fitted(lengths: Sequence[int], amounts: Sequence[int]) -> Saved:
    """The parabola through three points."""
    (a, b, c), (x, y, z) = lengths, amounts
    if not a < b < c:
        return Saved(0.0, z / c)
    first, second = (y - x) / (b - a), (z - y) / (c - b)
    pair = (second - first) / (c - a)
    token = first - pair * (a + b)
    return Saved(x - token * a - pair * a * a, token, pair)


def _mean(saved: Mapping[str, Saved], counts: Counter[str]) -> Saved:
    total = counts.total()
    return Saved(*(
        sum(counts[path] * getattr(one, name) for path, one in saved.items()) / total
        for name in ("constant", "token", "pair")
    ))  # fmt: skip


def _everywhere(stages: Mapping[str, int], stacks: Sequence[Stack]) -> dict[str, int]:
    """Of the layers of all blocks, and of those outside: -1 before the first block that is called and 0 after it."""
    found: dict[str, int] = {}
    inside = {stack.block_path(number): (stack, number) for stack in stacks for number in range(stack.blocks.count)}
    before = True
    for path, stage in stages.items():
        home = next((block for block in inside if path.startswith(f"{block}.")), None)
        before = before and home is None
        if home is None:
            found[path] = -1 if before else 0
            continue
        stack, example = inside[home]
        rest = path.removeprefix(home)
        for number, kind in enumerate(stack.kinds):
            if number == example or (kind == stack.kinds[example] and stack.example(number) == example):
                found[f"{stack.block_path(number)}{rest}"] = stage
    return found
