"""The most memory that a training needs, part by part, each with its formula; and the disk space that it takes.

    weights       parameters x bytes of the format they are held in; packed ones as stored_weights.py has them
    unpacking     the largest packed weight while it is unpacked for a product
    adapter       4 bytes each: what learns is float32         (a whole model learns in its own weights)
    gradients     4 bytes for each that learns
    optimizer     8, AdamW's two averages;   averages   8 more, AdaLoRA's importance
    activations   planning/activations.py, for the tokens of one micro-batch
    logits        the head's numbers: 256 rows at a time in the fast form; all learned tokens, 8 bytes each and those of
                  the format, in the plain one, and 16 bytes behind an encoder; of a classifier as many numbers of
                  each row as it has outputs
    images        the pixels of all images (N S^2 3 bytes), in pages of a file that the system drops where memory is
                  short
    prefix        outputs of the blocks below the lowest trained one, cached for each image in the fast form where
                  images are seen again and are not varied; at most a share of free memory, so a training fits without
    overhead      what a block's backward pass needs on its way, as a multiple of what a block keeps; holes between
                  pieces of memory, as shares of activations and logits, and of the optimizer's averages, which come
                  after the first step; and where the whole model learns, the gradient of the table of words, and of
                  a head that shares it, before it is added to that of the other micro-batches. Of images what lives
                  beside saved activations at the most, as a pass over fake images measured it (forward/fake_pass.py),
                  and holes between them, as a share of activations: the layers of a model of images differ in size,
                  so what one frees seldom fits the next
    compiler      torch's compiler, which runs in the same process, where a training is or may be compiled
    process       python and its libraries, and on a processor what oneDNN keeps of products in bfloat16

All but the last three are arithmetic; the last three are measured (bench/plan.py) and hold for a processor. On a GPU
both are assumed.

The disk space that a run takes at most, while it trains, is

    result + (keep_checkpoints + 1) x checkpoint + snapshots x trained weights

One checkpoint more than is stored is there while it is written, and two others where a run that diverges goes back.
How many a run writes depends on the time that its steps take, so all are counted unless none is written but at a stop.
With validation.keep at `best`, each checkpoint needs the best snapshot before it, and two more are there while one is
written. The weights that are trained take 4 bytes a parameter, and a checkpoint has the optimizer's two averages beside
them, and those of the method. Logs and reports are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from rankwise.base.packed import EXACT
from rankwise.config.experiment import Planned
from rankwise.config.forgetting import BLOCKS, AnchorConfig
from rankwise.config.method import Form, MethodConfig
from rankwise.config.modules import image_readers
from rankwise.config.parameters import Parameters
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.planning.activations import ADAPTED, DTYPES, block_bytes, positions_of, saved_bytes
from rankwise.planning.batches import AtOnce
from rankwise.planning.devices import Device
from rankwise.planning.operations import Load, Operations
from rankwise.planning.parameters import parameters_of, seen
from rankwise.planning.shape import NEW_TOKENS, ModelShape
from rankwise.planning.stored_weights import (
    BESIDE_PACKED,
    DTYPE_BYTES,
    Storage,
    multiplied_in_int8,
    packed_bytes,
    rest_bytes,
    storage_of,
    unpacked_numbers,
    unpacking_bytes,
)

CHANNELS = 3
SLOW_DISK = 250e6
"""Bytes that one writes in a second."""
LARGEST, STEP_OF_TOKENS = 65_536, 64
"""Tokens that are tried as what fits at once, at most and by which they differ."""


@dataclass(frozen=True)
class ImageOverheads:
    """`process` bytes are there beside those of a training on texts, and `arrow` bytes where pyarrow reads the rows.
    `holes` are shares of activations by what learns, `fast` that of the fast form, and `passing` how many times what
    lives beside activations is counted."""

    process: float
    arrow: float
    holes: Mapping[str, float]
    fast: float
    passing: float


@dataclass(frozen=True)
class Overheads:
    """`process` bytes are there before anything, and more where products are in 16 bits: `products` in the fast form,
    with the weights of an output head over the vocabulary `heads` times, and `plain_products` in the plain one. A
    block's backward pass takes `backward` times what a block keeps, `plain` times in the plain form and `classifier`
    times where it runs through an adapter of a classifier. Holes are the share `holes` of activations and logits,
    except a classifier's, and OF_AVERAGES of the optimizer's averages."""

    process: float
    products: float
    plain_products: float
    heads: int
    backward: float
    plain: float
    classifier: float
    holes: float
    compiler: float
    is_measured: bool
    of_images: ImageOverheads


OF_AVERAGES = 0.1
COMPILER = 0.15e9
"""Code and data of torch's compiler, and what compiling leaves behind: the same training with it took 0.06 GB and more
beyond what it took without (bench/plan-accuracy.md)."""
PROCESSOR = Overheads(
    0.42e9, 0.41e9, 0.25e9, heads=2, backward=3.5, plain=1.0, classifier=3.0, holes=0.055, compiler=COMPILER,
    is_measured=True, of_images=ImageOverheads(
        0.18e9, 0.08e9, {"adapter": 0.42, "conv": 0.33, "both": 0.42, "head": 0.0, "full": 0.2}, 0.45, 1.5
    ),
)  # fmt: skip
"""By trainings of the starters (lab/LOG.md, bench/plan-accuracy.md), torch 2.13."""
GPU = Overheads(
    0.6e9, 0.0, 0.0, heads=0, backward=3.5, plain=3.5, classifier=3.5, holes=0.1, compiler=0.0, is_measured=False,
    of_images=ImageOverheads(0.0, 0.0, dict.fromkeys((*ADAPTED, "full"), 0.1), 0.1, 1.5),
)  # fmt: skip
FORMATS: Mapping[str, float] = {**DTYPE_BYTES, "int8": 1.0, "nf4": 0.5}


@dataclass(frozen=True)
class MemoryPart:
    name: str
    bytes: float
    formula: str
    droppable: bool = False
    """Whether the system takes it back where memory is short, so that a training fits without it."""


@dataclass(frozen=True)
class Memory:
    parts: tuple[MemoryPart, ...]

    @property
    def peak(self) -> int:
        return round(sum(part.bytes for part in self.parts))

    @property
    def needed(self) -> int:
        """Bytes without which it does not fit."""
        return round(sum(part.bytes for part in self.parts if not part.droppable))

    @property
    def at_least(self) -> int:
        """Bytes of the weights and of what learns, whatever the rows are."""
        return round(sum(self[name] for name in ("weights", "adapter", "gradients", "optimizer", "averages")))

    def __getitem__(self, name: str) -> float:
        return next((part.bytes for part in self.parts if part.name == name), 0.0)


@dataclass(frozen=True)
class Fit:
    """`tokens` are the most that fit at once, and `tokens_recomputed` with all blocks computed twice; 0 where even the
    longest document does not fit. `recomputed` is how many blocks must be computed twice to fit, None where all do not
    do."""

    device: Device
    peak: int
    fits: bool
    recomputed: int | None
    tokens: int
    tokens_recomputed: int


@dataclass(frozen=True)
class Forecast:
    """What one training has in memory and computes at once: of a model by a method, in number formats, on a device."""

    shape: ModelShape
    parameters: Parameters
    method: MethodConfig
    amount: AtOnce
    form: Form
    dtype: str
    """What the base computes in."""
    storage: Storage
    """How the base's weights are stored."""
    int8: bool
    """Whether products of frozen weights are in int8."""
    given_back: bool
    """Whether packed weights are pages of a file that are given back after each use, as under a limit of memory."""
    overheads: Overheads
    recomputed: int
    """Blocks that are computed twice."""
    measures: bool
    """Whether there are validation rows."""
    compiled: bool
    """Whether the training is compiled, or may be."""

    @cached_property
    def memory(self) -> Memory:
        return memory_of(self)

    @property
    def peak(self) -> int:
        return self.memory.peak

    @property
    def needed(self) -> int:
        return self.memory.needed

    @property
    def number(self) -> int:
        """Bytes of a number of the base."""
        return int(FORMATS[self.dtype])

    @cached_property
    def ranks(self) -> dict[int | None, float]:
        """Sums over the adapters of each block as training begins, each for the share of all tokens that its layer
        maps; None is what stands in no block."""
        found: defaultdict[int | None, float] = defaultdict(float)
        shares = {"": 1.0, "input": 1 - self.amount.output_share, "output": self.amount.output_share}
        for planned in self.parameters.adapted:
            layer = planned.layer
            found[layer.block] += sum(planned.ranks) * (layer.positions or 1) * shares[layer.side]
        return dict(found)

    @cached_property
    def lowest(self) -> int:
        """The first block through which the backward pass runs."""
        if not self.ranks:
            return min(max(0, self.method.lowest[0]), self.shape.block_count)
        numbers = [block for block in self.ranks if block is not None]
        return min(*numbers, self.shape.block_count - 1) if len(numbers) == len(self.ranks) else 0

    @cached_property
    def learns(self) -> str:
        """What learns: the whole model, "full", or what adapters are laid over, one of ADAPTED (activations.py)."""
        if self.shape.image is None:
            return self.method.learns("adapter")
        adapted = self.parameters.adapted
        paths, kinds = {one.layer.path for one in adapted}, {one.layer.kind for one in adapted}
        if not paths:
            return self.method.learns("head")
        inner = kinds == {"conv2d"} and paths.isdisjoint(image_readers(seen(self.shape)))
        return self.method.learns("adapter" if kinds == {"linear"} else "conv" if inner else "both")

    @property
    def blocks(self) -> int:
        """That learn, and so can be computed twice."""
        return self.shape.block_count - self.lowest

    @property
    def caches_prefix(self) -> bool:
        """Whether the outputs of blocks that do not learn are kept from one pass over images to the next."""
        return self.form == "fast" and self.lowest > 0 and self.amount.passes > 1

    @property
    def saved(self) -> float:
        """Bytes of activations."""
        return saved_bytes(
            self.shape, self.amount, self.ranks, self.number, self.form, self.learns, lowest=self.lowest,
            recomputed=self.recomputed,
        )  # fmt: skip

    @property
    def saved_by_block(self) -> float:
        """Bytes of activations of the block that keeps the most."""
        most = max((rank for block, rank in self.ranks.items() if block is not None), default=0.0)
        return block_bytes(self.shape, self.amount, most, self.number, self.form, self.learns)

    @property
    def unpacked(self) -> float:
        """Numbers of packed weights that a micro-batch unpacks."""
        return unpacked_numbers(
            self.shape, self.storage, lowest=self.lowest, recomputed=self.recomputed, int8=self.int8
        )

    def with_tokens(self, tokens: int, recomputed: int) -> Forecast:
        """With another micro-batch, and with so many blocks computed twice."""
        amount = replace(self.amount, tokens=tokens, learned=self.amount.learned_of(tokens))
        return replace(self, amount=amount, recomputed=recomputed)

    def least_recomputed(self, room: int) -> int | None:
        """How many blocks must be computed twice to fit; None where all of them do not do."""
        if self.blocks < 1 or replace(self, recomputed=self.blocks).needed > room:
            return None
        low, high = 0, self.blocks
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if replace(self, recomputed=middle).needed <= room else (middle, high)
        return high

    def most_at_once(self, room: int, recomputed: int) -> int:
        """A multiple of 64 tokens, by halving."""
        low, high = self.amount.longest, max(self.amount.longest, LARGEST)
        if self.with_tokens(low, recomputed).needed > room:
            return 0
        if self.with_tokens(high, recomputed).needed <= room:
            return high
        while high - low > STEP_OF_TOKENS:
            middle = (low + high) // 2
            low, high = (middle, high) if self.with_tokens(middle, recomputed).needed <= room else (low, middle)
        return max(self.amount.longest, low // STEP_OF_TOKENS * STEP_OF_TOKENS)

    def fit(self, device: Device) -> Fit:
        room, fits = device.usable, self.needed <= device.usable
        return Fit(
            device, self.needed, fits, self.recomputed if fits else self.least_recomputed(room),
            self.most_at_once(room, self.recomputed), self.most_at_once(room, self.blocks),
        )  # fmt: skip

    def operations(self, load: Load) -> Operations:
        """With the ranks that an adapter has on average over a run."""
        ranks = {one.layer.path: self.method.mean_rank_share * sum(one.ranks) for one in self.parameters.adapted}
        return Operations(
            self.shape, load, ranks, self.method, recomputed=self.recomputed / max(1, self.shape.block_count),
            trimmed=self.form == "fast" and self.shape.task.trimmed,
            frozen=self.lowest if self.caches_prefix else 0, passes=self.amount.passes,
        )  # fmt: skip

    def anchor_operations(self, anchor: AnchorConfig | None, steps: int | None) -> float:
        """Operations that the anchor adds to a step; 0 without one. The tuned model and its base predict every token of
        a block of other text: a forward and a backward pass, the head once more for the base's predictions, and a
        forward pass of the base where the block comes for the first time."""
        if anchor is None:
            return 0.0
        whole = self.operations(Load((anchor.tokens,), float(anchor.tokens)))
        first = min(1.0, BLOCKS / steps) if steps else 1.0
        return whole.total + whole.head + first * whole.forward


def form_of(shape: ModelShape, config: MethodConfig, training: TrainingConfig, device: Device) -> Form:
    # the fused kernels do not know rows of new tokens
    knows = shape.family in shape.task.fused and not any(name.endswith(NEW_TOKENS) for name in shape.heads)
    return config.form("fast" if device.kind == "processor" and knows and training.backend != "eager" else "plain")


def forecast(
    config: Planned, shape: ModelShape, device: Device, amount: AtOnce, method: MethodConfig | None = None,
    counted: Parameters | None = None, compiled: bool = False,
) -> Forecast:  # fmt: skip
    """By the settings of a training, or by another method. `counted` saves counting. Without kernels there is nothing
    to be `compiled`."""
    method, training, twice = method or config.adapter, config.training, config.training.activation_checkpointing
    base = method.loaded(config.model)
    limited = base.memory is not None and device.kind == "processor"
    storage, form = storage_of(base.quantize, shape, given_back=limited), form_of(shape, method, training, device)
    packed = storage in ("int8", "nf4", "file") and not limited
    int8 = packed and device.int8 and multiplied_in_int8(training.matmul, shape, storage, device.usable)
    made = Forecast(
        shape, counted or parameters_of(shape, method), method, amount=amount, form=form,
        dtype=device.dtype if base.dtype == "auto" else base.dtype, storage=storage, int8=int8,
        given_back=limited and storage != "none",
        overheads=PROCESSOR if device.kind == "processor" else GPU, recomputed=0,
        measures=config.data is not None and (config.data.may_hold_out or config.data.validation is not None),
        compiled=compiled and form == "fast" and shape.task.compiled,
    )  # fmt: skip
    return made if twice == "auto" else replace(made, recomputed=min(twice, made.blocks))


def planned_forecast(
    config: Planned, shape: ModelShape, device: Device, amount: AtOnce, method: MethodConfig | None = None,
    counted: Parameters | None = None, compiled: bool = False,
) -> Forecast:  # fmt: skip
    """The forecast of a training, with as many blocks computed twice as training chooses to fit the device."""
    first = forecast(config, shape, device, amount=amount, method=method, counted=counted, compiled=compiled)
    if config.training.matmul == "auto" and first.storage != "int8" and first.needed > device.usable:
        first = replace(first, int8=False)  # a copy is made only where there is room
    if config.training.activation_checkpointing != "auto" or first.needed <= device.usable:
        return first
    return replace(first, recomputed=first.least_recomputed(device.usable) or 0)


def weights_bytes(shape: ModelShape, dtype: str) -> float:
    """With int8 and nf4, what is not packed is in bfloat16."""
    storage: Storage = "int8" if dtype == "int8" else "nf4" if dtype == "nf4" else "none"
    number = DTYPE_BYTES[BESIDE_PACKED if storage != "none" else dtype]
    return packed_bytes(shape, storage) + rest_bytes(shape, storage, number)


def memory_of(planned: Forecast) -> Memory:
    counted, each, saved, number = planned.parameters, EXACT * planned.method.averages, planned.saved, planned.number
    count, beside, tokens = counted.trainable, counted.in_memory, planned.amount.tokens
    outputs = planned.shape.outputs or planned.shape.vocabulary
    logits = MemoryPart("logits", *planned.shape.task.logits(planned.amount.learned, outputs, number, planned.form))
    compiler = planned.overheads.compiler if planned.compiled else 0
    unpacking = unpacking_bytes(
        planned.shape, planned.storage, number, given_back=planned.given_back, int8=planned.int8
    )
    return Memory((
        MemoryPart("process", _process(planned), "measured" if planned.overheads.is_measured else "assumed"),
        _weights(planned),
        MemoryPart("unpacking", unpacking, "the largest packed weight" if unpacking else "no weight is unpacked"),
        MemoryPart("adapter", EXACT * beside, f"{beside:,} x 4" if beside else "no adapter"),
        MemoryPart("gradients", EXACT * count, f"{count:,} x 4"),
        MemoryPart("optimizer", 8 * count, f"{count:,} x 8"),
        MemoryPart("averages", each * count, f"{count:,} x {each}" if each else "only for AdaLoRA"),
        MemoryPart("activations", saved, f"{tokens:,} tokens x {saved / max(1, tokens):,.0f}"),
        logits,
        MemoryPart("compiler", compiler, "torch's compiler in this process, measured" if compiler else "not compiled"),
        *_images(planned), _overhead(planned, saved + logits.bytes),
    ))  # fmt: skip


def _process(planned: Forecast) -> float:
    """Images make few sizes of matrices, so that oneDNN keeps little for their products in 16 bits."""
    known = planned.overheads
    if planned.shape.image is not None:
        return known.process + known.of_images.process + known.of_images.arrow * planned.amount.arrow
    always = known.process + planned.shape.task.compared * planned.measures
    if planned.number >= EXACT:
        return always
    if planned.form == "plain":
        return always + known.plain_products
    words = planned.shape.vocabulary if planned.shape.outputs is None else 0
    return always + known.products + known.heads * planned.number * words * planned.shape.blocks.width


def _weights(planned: Forecast) -> MemoryPart:
    shape, number = planned.shape, planned.number
    rest, packed = rest_bytes(shape, planned.storage, number), packed_bytes(shape, planned.storage, int8=planned.int8)
    if planned.storage == "none":
        return MemoryPart("weights", rest, f"{shape.parameters:,} x {number}")
    others = f"{rest / number:,.0f} x {number}"
    if planned.given_back:
        return MemoryPart("weights", rest, f"{others}; all others are pages of a file, given back after each use")
    name = "the GGUF file's matrices" if planned.storage == "file" else f"weights in {planned.storage}"
    name += " and a copy in int8" if planned.int8 and planned.storage != "int8" else ""
    return MemoryPart("weights", rest + packed, f"{packed / 1e6:,.1f} MB of {name} + {others}")


def _images(planned: Forecast) -> list[MemoryPart]:
    shape, count, side, number = planned.shape, planned.amount.images, planned.shape.image, planned.number
    if side is None:
        return []
    pixels = f"{count:,} x {side} x {side} x 3, which the system can drop"
    found = [MemoryPart("images", count * side**2 * CHANNELS, pixels, droppable=not planned.given_back)]
    if planned.caches_prefix:
        each, width = shape.patches * positions_of(shape), shape.blocks.width
        formula = f"{count:,} images x {each:,.0f} x {width:,} x {number}, as far as there is room"
        found.append(MemoryPart("prefix", count * each * width * number, formula, droppable=True))
    return found


def _overhead(planned: Forecast, saved: float) -> MemoryPart:
    """`saved` are the bytes of activations and logits."""
    shape, known, fast = planned.shape, planned.overheads, planned.form == "fast"
    of_averages = OF_AVERAGES * 8 * planned.parameters.trainable
    if shape.blocks.passing:
        of_images = known.of_images
        passing = shape.blocks.passing[f"{planned.learns} {DTYPES[planned.number]}"].of(planned.amount.tokens)
        share = of_images.fast if fast else of_images.holes[planned.learns]
        return MemoryPart(
            "overhead", of_images.passing * passing + share * saved + of_averages,
            f"{of_images.passing:g} x {passing / 1e6:,.1f} MB beside activations + {share:.0%} of activations + "
            f"{OF_AVERAGES:.0%} of the optimizer",
        )  # fmt: skip
    through = shape.task.backward(known.plain, known.classifier) if planned.ranks.keys() - {None} else known.plain
    times, holes, of_block = known.backward if fast else through, known.holes * shape.task.holes, planned.saved_by_block
    copies = shape.task.tables * planned.method.base_gradients
    tables = copies * EXACT * shape.vocabulary * shape.blocks.width
    of_tables = ("", " + the embedding's gradient", " + twice the embedding's gradient")[copies]
    return MemoryPart(
        "overhead", times * of_block + holes * saved + of_averages + tables,
        f"{times:g} x {of_block / 1e6:,.1f} MB of a block + {holes:.1%} of activations and logits + "
        f"{OF_AVERAGES:.0%} of the optimizer{of_tables}",
    )  # fmt: skip


@dataclass(frozen=True)
class Disk:
    result: int
    checkpoint: int
    """Bytes of each."""
    checkpoints: int
    """How many checkpoints there are while one is written; 0 where the run writes none by itself."""
    snapshots: int
    """The number of copies of the trained weights that may turn out to be the best."""

    @classmethod
    def of(
        cls, trained: int, checkpoint: int, training: TrainingConfig, validation: ValidationConfig, steps: int
    ) -> Disk:  # fmt: skip
        """`trained` is a number of parameters."""
        extra = 2 if training.on_divergence == "back-off" else 0
        stored = training.keep_checkpoints + extra if (training.checkpoint_steps or 1) < steps else 0
        snapshots = stored + 2 if validation.keep == "best" else 0
        return cls(EXACT * trained, checkpoint, stored + 1 if stored else 0, snapshots)

    @property
    def total(self) -> int:
        return self.result * (1 + self.snapshots) + self.checkpoint * self.checkpoints
