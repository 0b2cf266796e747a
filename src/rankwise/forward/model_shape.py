"""A config.json into the shape of its model, read from the model itself.

transformers builds the model on the meta device, where weights have sizes and no memory. Its modules are walked: those
that an adapter can be laid over are known by the rule that adapters themselves go by (adapters/base_layers.py), and
everything else that holds weights is counted. A forward pass over fake tensors then tells where each layer stands and
what its block keeps for the backward pass (saved_activations.py). Nothing is downloaded, and no code that comes with a
model is run.

Models of images are built by transformers or, inside its wrapper, by timm. Passes over fake batches of two
sizes give what an image takes: all images have one size, so bytes and operations are a constant and a part for each
image. A plan counts an image in patches of 16 pixels, as training does, so every number here is for one of these.

    equal blocks (ViT, DINOv2, BEiT, the towers of CLIP and SigLIP)   one stack of them, of which two are gone through
    all others (Swin, ConvNeXt, timm's)                               one stack of a single block, the whole model
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

import rankwise.base.quiet as quiet
from rankwise.adapters.adapter import conv_problem
from rankwise.adapters.base_layers import experts_of, features_of, kind_of, split_of, weight_of
from rankwise.adapters.experts import stacked_by_own_code, stacked_hosts
from rankwise.base.config_check import checked_config
from rankwise.base.gguf.mapped import tokenizer_folder as tokenizer_folder  # for plan.py, which imports no torch
from rankwise.base.inspection import reads_images
from rankwise.base.pooling import read_pooled
from rankwise.base.preprocessing import size_arguments
from rankwise.base.timm_models import head_modules, need_timm
from rankwise.config.base import shown
from rankwise.config.images import LARGEST
from rankwise.config.modules import Layer, Side, inner_convolutions, linear_layers
from rankwise.errors import ModelError, RankwiseError, did_you_mean, first_line
from rankwise.forward.fake_pass import (
    MemoryPass,
    make_fake,
    measure_memory,
    read_images,
    read_texts,
    survey,
    without_memory,
)
from rankwise.forward.reference import usable_positions
from rankwise.forward.saved_activations import (
    SIDES,
    BlockStack,
    lengths_within,
    measured_sides,
    pairs_within,
    stacks_of,
    surveyed,
    with_saved,
)
from rankwise.planning.activations import ADAPTED
from rankwise.planning.parameters import seen
from rankwise.planning.shape import Blocks, ModelShape, NewHead, Saved
from rankwise.planning.tasks import CAUSAL, CLASSIFIER, IMAGE_CLASSIFIER, SEQUENCES, TAGGER

MOST_MODULES = 500_000
"""Against a config that would be built without end."""
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


def shape_of_config(config: dict[str, Any], name: str, where: str, head: NewHead | None = None) -> ModelShape:
    """`config` is a parsed config.json, which `where` names in messages. With `head`, the shape of a classifier."""
    settings = checked_config(config, where)
    with torch.random.fork_rng(devices=[]):  # a training that plans itself draws the numbers that it would draw anyway
        return _shape(settings, name, where, head)


def _shape(settings: dict[str, Any], name: str, where: str, new_head: NewHead | None) -> ModelShape:
    auto_class, model = _built(settings, where, new_head)
    if auto_class == IMAGE_CLASSIFIER and new_head is not None:
        return _image_shape(settings, name, where, new_head, model)
    text: Any = model.config.get_text_config()  # pyright: ignore[reportCallIssue]
    head = None if new_head is not None else model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    paths = {id(module): path for path, module in model.named_modules()}
    layers, stacks = list(_layers(model)), stacks_of(model, causal=_auto_class(model.config) == CAUSAL)
    whole = Blocks(1, 0, 0, causal=False)  # of a model without a list of blocks
    both = auto_class == SEQUENCES and len(stacks) == SIDES
    if both or (not model.config.is_encoder_decoder and getattr(text, "vocab_size", 0)):
        stacks, layers = _with_activations(model, stacks, layers, masked=new_head is not None, both=both)
    return ModelShape(
        name=name, family=settings["model_type"], auto_class=auto_class, layers=tuple(layers),
        stacks=tuple(stack.blocks for stack in stacks) or (whole,), vocabulary=getattr(text, "vocab_size", None) or 0,
        context=_context(model, text, new_head), head=paths.get(id(head)), outputs=new_head and new_head.outputs,
        heads={} if new_head is None else _heads(model, new_head), image=side_in(settings),
    )  # fmt: skip


def _with_activations(
    model: Any, stacks: tuple[BlockStack, ...], layers: list[Layer], *, masked: bool, both: bool
) -> tuple[tuple[BlockStack, ...], list[Layer]]:
    """The stacks with what their blocks save, and the layers with their place; as they were where passes cannot be
    faked. `masked` rows are padded. Of `both`, an encoder and its decoder, blocks are counted from the encoder's first,
    and the length of its input tells a layer's side."""
    given, output = pairs_within(model)[-1] if both else (lengths_within(model)[-1], None)
    seen = surveyed(model, stacks, read_texts(given, masked=masked, output=output))
    if seen is None:
        return stacks, layers
    sized = measured_sides(model, stacks, seen) if both else with_saved(model, stacks, seen, masked=masked)
    if not sized:
        return stacks, layers
    placed = [seen.with_stage(layer) for layer in layers]
    if not both:
        return sized, placed
    sides: dict[str, Side] = {path: "input" if size == given else "output" for path, size in seen.lengths.items()}
    writes, offset = f"{sized[-1].path}.", sized[0].blocks.count
    return sized, [
        layer if layer.block is None
        else replace(layer, side=sides.get(layer.path, ""), offset=offset if layer.path.startswith(writes) else 0)
        for layer in placed
    ]  # fmt: skip


def _image_shape(settings: dict[str, Any], name: str, where: str, new_head: NewHead, model: Any) -> ModelShape:
    side = new_head.image
    assert side is not None, "a classifier of images has a size"
    family, layers, heads = settings["model_type"], tuple(_layers(model)), _heads(model, new_head)
    shape = ModelShape(
        name=name, family=family, auto_class=IMAGE_CLASSIFIER, layers=layers, stacks=(), vocabulary=0, context=None,
        head=None, outputs=new_head.outputs, heads=heads, image=side,
    )  # fmt: skip
    try:
        return with_measured_images(shape, model)
    except Exception as error:  # as many kinds as there are architectures
        raise ModelError(
            f"{where}: this model cannot be planned for images of {side} x {side} pixels: {_reason(error)}"
        ) from None


def _context(model: nn.Module, text: Any, new_head: NewHead | None) -> int | None:
    """Tokens of the longest text. A classifier's is counted as its training counts it."""
    longest = getattr(text, "max_position_embeddings", None)
    usable = usable_positions(model) if new_head is not None else None
    return min(longest or usable, usable) if usable is not None else longest


def _heads(model: Any, new_head: NewHead) -> dict[str, tuple[int, ...]]:
    """The weights of the head, and of the model's pooler where that is new."""
    heads = tuple(f"{path}." for path in head_modules(model, images=new_head.image is not None))
    return {
        name: tuple(value.shape) for name, value in model.named_parameters()
        if name.startswith(heads) or (new_head.new_pooler and "pooler." in name)
    }  # fmt: skip


def _built(settings: dict[str, Any], where: str, new_head: NewHead | None) -> tuple[str, Any]:
    """The name of the automatic class, and the model that it builds on the meta device."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    quiet.hush()
    need_timm(settings, where)
    family = settings["model_type"]
    if family not in CONFIG_MAPPING:
        hint = did_you_mean(family, CONFIG_MAPPING)
        raise ModelError(f"{where}: model_type {shown(family)} is not known to transformers.{hint}")
    counted = 0

    def count(*_: Any) -> None:
        nonlocal counted
        counted += 1
        if counted > MOST_MODULES:
            raise ModelError(f"{where}: it has more than {MOST_MODULES:,} modules, so it cannot be planned.")

    hook = register_module_module_registration_hook(count)
    try:
        config = CONFIG_MAPPING[family].from_dict(settings)
        auto_class = _auto_class(config)
        if new_head is not None:
            auto_class = TAGGER if new_head.words else CLASSIFIER if new_head.image is None else IMAGE_CLASSIFIER
            config.num_labels = new_head.outputs
        with torch.device("meta"):
            built = getattr(transformers, auto_class).from_config(config, trust_remote_code=False).eval()
        if new_head is not None and new_head.pooled:
            read_pooled(built, "mean")
        return auto_class, built
    except RankwiseError:
        raise
    except Exception as error:  # as many kinds as there are architectures
        raise ModelError(f"{where}: transformers cannot build this model: {_reason(error)}") from None
    finally:
        hook.remove()


def _reason(error: Exception) -> str:
    """The whole of a validation error, which names the setting in its first line and what is wrong in the next."""
    return " ".join(str(error).split()) if type(error).__module__.startswith("huggingface_hub") else first_line(error)


def _auto_class(config: Any) -> str:
    """That of the task a model was made for, as far as its type says so: an encoder that could also be a decoder is
    one if its architecture is named for it."""
    from transformers.models.auto import modeling_auto as auto

    family, named = config.model_type, str(getattr(config, "architectures", None) or "")
    if config.is_encoder_decoder:
        texts = family in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return SEQUENCES if texts else "AutoModel"
    either = family in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not ("CausalLM" in named or "LMHead" in named)
    return CAUSAL if family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not either else "AutoModel"


def _layers(model: nn.Module) -> Iterator[Layer]:
    """In the order of the modules; a weight that two of them read belongs to the first."""
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        weights = dict(module.named_parameters(recurse=False))
        own = {name: value for name, value in weights.items() if id(value) not in owners}
        shared = [owners[id(value)] for value in weights.values() if id(value) in owners]
        kind = kind_of(module)
        if kind is None:
            stacks = dict(stacked_hosts(path, module))
            for parameter, stack in stacks.items():
                yield Layer(parameter, "experts", *features_of(stack), experts=experts_of(stack))
            count = sum(value.numel() for value in own.values())
            count -= sum(weight_of(stack).numel() for stack in stacks.values())
            if len(weights) > len(stacks):
                problem = conv_problem(module) if isinstance(module, nn.Conv2d) else ""
                yield Layer(
                    path, "other", bias=count, shares=shared[0] if shared else None, class_name=type(module).__name__,
                    problem=problem, stacked=stacked_by_own_code(module),
                )  # fmt: skip
        else:
            yield _layer(model, path, kind, owners.get(id(weight_of(module))))
        owners |= {id(value): path for value in own.values()}


def _layer(model: nn.Module, path: str, kind: Any, shares: str | None) -> Layer:
    module = model.get_submodule(path)
    inputs, outputs = features_of(module)
    bias = getattr(module, "bias", None)
    split = split_of(model, path, outputs) if kind in ("linear", "conv1d") else None
    kernel = module.kernel_size if isinstance(module, nn.Conv2d) else None
    return Layer(
        path=path, kind=kind, inputs=inputs, outputs=outputs, bias=0 if bias is None else bias.numel(), shares=shares,
        parts=() if split is None else tuple(len(rows) for rows in split.rows),
        kernel=None if kernel is None else (kernel[0], kernel[1]),
    )  # fmt: skip


def with_measured_images(shape: ModelShape, model: Any) -> ModelShape:
    """The shape of a classifier with what its blocks save and compute for each planned token, and with where its layers
    stand. The model's weights are replaced by fake ones."""
    side, patches, learning = shape.image or USUAL, shape.patches, _learning(shape, model)
    stack = _equal_blocks(model)
    paths = [] if stack is None else [stack.block_path(number) for number in range(stack.short)]
    width = _width(model) if stack is None else stack.blocks.width
    count = 1 if stack is None else stack.blocks.count
    memory: dict[str, list[MemoryPass]] = {}
    done: dict[tuple[frozenset[nn.Module], torch.dtype], list[MemoryPass]] = {}
    calls = [read_images(classify(side), batch, side) for batch in BATCHES]
    with without_memory(model, {}):
        make_fake(model, torch.float32, everything=False)
        seen = survey(model, calls[0])
    with without_memory(model, {} if stack is None else {stack.path: stack.short}):
        for learns, dtype in PASSES:
            chosen = learning[learns]
            if (chosen, dtype) not in done:
                make_fake(model, dtype, everything=False, learning=chosen)
                done[chosen, dtype] = [measure_memory(model, call, paths) for call in calls]
            memory[f"{learns} {str(dtype).removeprefix('torch.')}"] = done[chosen, dtype]
    planned = BATCHES[0] * patches
    used = {layer.path: 2 * layer.inputs * layer.outputs * seen.positions[layer.path]
            for layer in shape.layers if layer.kind in MULTIPLYING}  # fmt: skip
    blocks = Blocks(
        count, width, 0, causal=False,
        saved={key: _line([_of_block(one.saved, paths, count) for one in each], patches)
               for key, each in memory.items()},
        passing={key: _line([one.passing for one in each], patches) for key, each in memory.items()},
        rest=max(0.0, seen.operations - sum(used.values())) / (count * planned),
    )  # fmt: skip
    layers = tuple(
        replace(seen.with_stage(layer), positions=seen.positions[layer.path] / planned)
        if layer.path in used and layer.path in seen.stages else seen.with_stage(layer)
        for layer in shape.layers
    )  # fmt: skip
    return replace(shape, layers=layers, stacks=(blocks,))


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


def _equal_blocks(model: Any) -> BlockStack | None:
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
    chosen = {name: [*some, *shape.full_paths] for name, some in paths.items()}
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
    return Saved.by_length(max(0.0, small - few * each), each / patches)
