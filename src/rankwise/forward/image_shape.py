"""A config.json of a model of images into the shape of the classifier that is made of it.

The model is built on the meta device, by transformers or, inside its wrapper, by timm. Passes over fake batches of two
sizes give what an image takes: all images have one size, so bytes and operations are a constant and a part for each
image. A plan counts an image in patches of 16 pixels, as training does, so every number here is for one of these.

    equal blocks (ViT, DINOv2, BEiT, the towers of CLIP and SigLIP)   one stack of them, of which two are gone through
    all others (Swin, ConvNeXt, timm's)                               one stack of a single block, the whole model
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.config.images import LARGEST
from rankwise.config.layer import Layer
from rankwise.config.modules import inner_convolutions, linear_layers
from rankwise.forward.fake_pass import Memory, Survey, make_fake, measure_memory, survey, without_memory
from rankwise.forward.saved_activations import Stack, stacks_of
from rankwise.models.inspection import reads_images
from rankwise.models.preprocessing import size_arguments
from rankwise.planning.activations import ADAPTED
from rankwise.planning.parameters import seen
from rankwise.planning.shape import Blocks, ModelShape, Saved

MULTIPLYING = ("linear", "conv1d", "conv2d")
USUAL = 224
"""Pixels a side where nothing is said of it."""
BATCHES = (2, 4)
"""Images of the two passes."""
PASSES = (
    *((learns, dtype) for learns in ADAPTED for dtype in (torch.float32, torch.bfloat16)),
    ("full", torch.float32),
)
"""What learns, and the number format."""


def with_measured_images(shape: ModelShape, model: Any) -> ModelShape:
    """The shape of a classifier with what its blocks save and compute for each planned token, and with where its layers
    stand. The model's weights are replaced by fake ones."""
    side, patches, learning = shape.image or USUAL, shape.patches, _learning(shape, model)
    stack = _equal_blocks(model)
    paths = [] if stack is None else [stack.block_path(number) for number in range(stack.short)]
    width = _width(model) if stack is None else stack.blocks.width
    count = 1 if stack is None else stack.blocks.count
    memory: dict[str, list[Memory]] = {}
    done: dict[tuple[frozenset[nn.Module], torch.dtype], list[Memory]] = {}
    with without_memory(model, {} if stack is None else {stack.path: stack.short}):
        for learns, dtype in PASSES:
            chosen = learning[learns]
            if (chosen, dtype) not in done:
                make_fake(model, dtype, everything=False, learning=chosen)
                done[chosen, dtype] = [measure_memory(model, classify(side), batch, side, paths) for batch in BATCHES]
            memory[f"{learns} {str(dtype).removeprefix('torch.')}"] = done[chosen, dtype]
        pass_over = survey(model, classify(side), BATCHES[0], side, paths)
    placed = tuple(_placed(layer, pass_over, stack, patches) for layer in shape.layers)
    blocks = Blocks(
        count, width, 0, causal=False,
        saved={key: _line([_of_block(one.saved, paths, count) for one in each], patches)
               for key, each in memory.items()},
        passing={key: _line([one.passing for one in each], patches) for key, each in memory.items()},
        rest=_rest(pass_over, placed, paths, count, patches),
    )  # fmt: skip
    return replace(shape, layers=placed, stacks=(blocks,))


def side_in(config: dict[str, Any]) -> int | None:
    """Pixels a side of the images that a config.json has; None for a model of texts."""
    if not reads_images(config):
        return None
    own, pretrained = config.get("vision_config"), config.get("pretrained_cfg")
    size = (own if isinstance(own, dict) else config).get("image_size", USUAL)
    if isinstance(pretrained, dict):
        size = pretrained.get("input_size", USUAL)
    size = size[-1] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) and 0 < size <= LARGEST else USUAL


def classify(side: int) -> Any:
    """As training calls the model."""

    def logits(model: Any, pixels: Tensor) -> Tensor:
        return model(pixels, **size_arguments(model, side)).logits

    return logits


def _equal_blocks(model: Any) -> Stack | None:
    """The only list of blocks that activations can be saved of one by one, where all of them are equal."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    stacks = stacks_of(model, causal=False)
    if len(stacks) != 1 or stacks[0].blocks.count != len(blocks) or len(set(stacks[0].kinds)) != 1 or len(blocks) < 2:
        return None
    return stacks[0]


def _width(model: Any) -> int:
    """The numbers that the head reads."""
    config = model.config
    sizes = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", 0) or 0]
    return sizes[-1] if isinstance(sizes[-1], int) else 0


def _learning(shape: ModelShape, model: nn.Module) -> dict[str, frozenset[nn.Module]]:
    """The modules that learn in each pass. An adapter saves what its layer would save to learn itself."""
    modules = seen(shape)
    linear, inner = linear_layers(modules), inner_convolutions(modules)
    convolutions = [path for path, one in modules.items() if one.kind == "conv2d"]
    paths = {"adapter": linear, "conv": inner, "both": [*linear, *convolutions], "head": []}
    chosen = {name: [*some, *shape.whole] for name, some in paths.items()}
    return {name: frozenset(map(model.get_submodule, some)) for name, some in chosen.items()} | {
        "full": frozenset(model.modules())
    }


def _of_block(saved: dict[str, int], paths: list[str], count: int) -> float:
    """Bytes of the mean block, which takes its share of what is saved outside of all."""
    inside = sum(saved[path] for path in paths) / len(paths) if paths else 0.0
    return inside + saved[""] / count


def _line(amounts: list[float], patches: int) -> Saved:
    (few, many), (small, large) = BATCHES, amounts
    each = (large - small) / (many - few)
    return Saved(max(0.0, small - few * each), each / patches)


def _placed(layer: Layer, seen: Survey, stack: Stack | None, patches: int) -> Layer:
    """Blocks that were not gone through are like the last that was."""
    path, number = layer.path, layer.block
    inside = stack is not None and path.startswith(f"{stack.path}.")
    if stack is not None and inside and number is not None and number >= stack.short:
        path = stack.block_path(stack.short - 1) + path.removeprefix(stack.block_path(number))
    if path not in seen.stages:
        return layer
    stage = seen.stages[path]
    if number is None:
        stage = -1 if _before(path, seen) else 0
    positions = seen.positions[path] / (BATCHES[0] * patches) if layer.kind in MULTIPLYING else None
    return replace(layer, stage=stage, positions=positions)


def _before(path: str, seen: Survey) -> bool:
    """Whether a layer outside all blocks is called before the first of them."""
    order = list(seen.stages)
    numbered = next((at for at, one in enumerate(order) if Layer(one, "other").block is not None), len(order))
    return order.index(path) < numbered


def _rest(seen: Survey, placed: Sequence[Layer], paths: Sequence[str], count: int, patches: int) -> float:
    """Operations of the mean block beside its layers, such as attention and grouped convolutions, with its share of
    those outside of all blocks."""
    own = Counter[str]()
    for layer in placed:
        if layer.kind in MULTIPLYING and layer.path in seen.positions:
            home = next((path for path in paths if layer.path.startswith(f"{path}.")), "")
            own[home] += 2 * layer.inputs * layer.outputs * seen.positions[layer.path]
    inside = sum(seen.of_blocks[path] - own[path] for path in paths) / len(paths) if paths else 0.0
    outside = seen.operations - sum(seen.of_blocks.values()) - own[""]
    return max(0.0, inside + outside / count) / (BATCHES[0] * patches)
