"""The most memory that a run holds, part by part, each with its formula; and the disk space that it takes.

    weights       parameters x bytes of the format they are held in; packed ones as stored_weights.py has them
    unpacking     the largest packed weight while it is unpacked for a product
    adapter       4 bytes each: what learns is float32         (a whole model learns in its own weights)
    gradients     4 bytes for each that learns
    optimizer     8, AdamW's two averages;   averages   8 more, AdaLoRA's importance
    activations   planning/activations.py, for the tokens of one micro-batch
    logits        the head's numbers: 256 rows at a time in the fast form; all learned tokens, 8 bytes each and those of
                  the format, in the plain one, and 16 bytes behind an encoder; of a classifier as many numbers of
                  each row as it has outputs
    answers       the weights of linear layers once more, laid out for decoding, where validation writes answers
    images        the pixels of all images (N S^2 3 bytes), in pages of a file that the system drops where memory is
                  short
    prefix        outputs of the blocks below the lowest trained one, cached for each image in the fast form where
                  images are seen again and are not varied; at most a share of free memory, so a training fits without
    overhead      what a block's backward pass holds on its way, as a multiple of what a block keeps; holes between
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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rankwise.config.method import Form, MethodConfig
from rankwise.config.training import TrainingConfig
from rankwise.config.validation import ValidationConfig
from rankwise.planning.activations import ADAPTED, DTYPES, EXACT, block_bytes, positions_of, saved_bytes
from rankwise.planning.shape import CLASSIFIER, IMAGE_CLASSIFIER, SEQUENCES, TAGGER, Blocks, ModelShape
from rankwise.planning.stored_weights import (
    BESIDE_PACKED,
    DTYPE_BYTES,
    Storage,
    packed_bytes,
    rest_bytes,
    unpacking_bytes,
)

CHANNELS = 3
SLOW_DISK = 250e6
"""Bytes that one writes in a second."""
HEAD_ROWS = 256
"""As kernels/loss.py takes them; a test compares both."""


@dataclass(frozen=True)
class ImageOverheads:
    """`process` bytes are held beside those of a training on texts, and `arrow` bytes where pyarrow reads the rows.
    `holes` are shares of activations by what learns, `fast` that of the fast form, and `passing` how many times what
    lives beside activations is held."""

    process: float
    arrow: float
    holes: Mapping[str, float]
    fast: float
    passing: float

    def overhead(
        self, blocks: Blocks, learns: str, dtype: str, tokens: int, activations: float, *, fast: bool
    ) -> tuple[float, str]:
        """Bytes for `tokens` at once, and their formula."""
        measured = blocks.passing[f"{learns} {dtype}"].of(tokens)
        share = self.fast if fast else self.holes[learns]
        return (
            self.passing * measured + share * activations,
            f"{self.passing:g} x {measured / 1e6:,.1f} MB beside activations + {share:.0%} of activations",
        )


@dataclass(frozen=True)
class Overheads:
    """`process` bytes are there before anything, and more where products are in 16 bits: `products` in the fast form,
    `plain_products` in the plain one. A block's backward pass takes `backward` times what a block keeps, `plain` times
    in the plain form and `classifier` times where it runs through an adapter of a classifier. Holes are the share
    `holes` of activations and logits, except a classifier's, and OF_AVERAGES of the optimizer's averages."""

    process: float
    products: float
    plain_products: float
    backward: float
    plain: float
    classifier: float
    holes: float
    compiler: float
    measured: bool
    of_images: ImageOverheads
    prepacks: bool = False
    """Whether weights are laid out anew for decoding (kernels/prepacked.py)."""

    def blocks(self, shape: ModelShape, job: Job) -> float:
        """How many times what a block keeps is held on the way through its backward pass."""
        if job.form == "fast":
            return self.backward
        return shape.task.backward(self.plain, self.classifier) if job.ranks else self.plain

    def process_of(self, job: Job, shape: ModelShape) -> float:
        """Images make few sizes of matrices, so that oneDNN keeps little for their products in 16 bits."""
        if shape.image is not None:
            return self.process + self.of_images.process + self.of_images.arrow * job.arrow
        if FORMATS[job.dtype] >= EXACT:
            return self.process
        return self.process + (self.products if job.form == "fast" else self.plain_products)


OF_LOGITS = 4
"""Copies of an encoder-decoder's logits in float32 at once, as the loss's backward pass holds them: a step of T5's and
BART's shapes grew by 3.9 to 4.0 of them beside what its blocks keep."""
OF_AVERAGES = 0.1
COMPILER = 0.15e9
"""Code and data of torch's compiler, and what compiling leaves behind: the same training with it took 0.06 GB and more
beyond what it took without (docs/plan.md)."""
PROCESSOR = Overheads(
    0.42e9, 0.41e9, 0.25e9, 3.5, 1.0, 3.0, 0.055, COMPILER, True, ImageOverheads(
        0.05e9, 0.08e9, {"adapter": 0.42, "conv": 0.33, "both": 0.42, "head": 0.0, "full": 0.2}, 0.45, 1.5
    ), prepacks=True,
)  # fmt: skip
"""By trainings of the starters (lab/LOG.md, docs/plan.md), torch 2.13."""
GPU = Overheads(
    0.6e9, 0.0, 0.0, 3.5, 3.5, 3.5, 0.1, 0.0, False,
    ImageOverheads(0.0, 0.0, dict.fromkeys((*ADAPTED, "full"), 0.1), 0.1, 1.5),
)  # fmt: skip
FORMATS: Mapping[str, float] = {**DTYPE_BYTES, "int8": 1.0, "nf4": 0.5}


@dataclass(frozen=True)
class Job:
    """What is held and computed at once. `ranks` are sums over a block's adapters as training begins; `tokens` those
    of the largest micro-batch with padding, `learned` how many of them have a loss."""

    method: MethodConfig
    form: Form
    dtype: str
    trainable: int
    beside: int
    """Numbers in float32 that lie beside the base's weights: those of an adapter."""
    ranks: Mapping[int, float]
    tokens: int
    learned: int
    longest: int
    """Tokens of the longest document."""
    lowest: int = 0
    recomputed: int = 0
    writes_answers: bool = False
    compiled: bool = False
    """Whether the training is compiled, or may be."""
    learns: str = "adapter"
    """What learns: the whole model, "full", or what adapters are laid over, one of ADAPTED (activations.py)."""
    images: int = 0
    """Images whose pixels are in memory."""
    passes: float = 1.0
    """How often a training sees each image as it is."""
    arrow: bool = False
    """Whether pyarrow reads the rows."""
    storage: Storage = "none"
    """How the base's weights are stored."""
    given_back: bool = False
    """Whether packed weights are pages of a file that are given back after each use, as under a limit of memory."""
    output_share: float = 0.0
    """Of an encoder with a decoder, the share of the tokens, padding included, that the decoder has."""

    @property
    def caches_prefix(self) -> bool:
        """Whether the outputs of blocks that do not learn are kept from one pass over images to the next."""
        return self.form == "fast" and self.lowest > 0 and self.passes > 1


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    formula: str
    droppable: bool = False
    """Whether the system takes it back where memory is short, so that a training fits without it."""


@dataclass(frozen=True)
class Memory:
    parts: tuple[Part, ...]

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


def weights_bytes(shape: ModelShape, dtype: str) -> float:
    """With int8 and nf4, what is not packed is in bfloat16."""
    storage: Storage = "int8" if dtype == "int8" else "nf4" if dtype == "nf4" else "none"
    number = DTYPE_BYTES[BESIDE_PACKED if storage != "none" else dtype]
    return packed_bytes(shape, storage) + rest_bytes(shape, storage, number)


def memory_of(shape: ModelShape, job: Job, overheads: Overheads) -> Memory:
    number, count, each = int(FORMATS[job.dtype]), job.trainable, EXACT * job.method.averages
    saved = saved_bytes(
        shape, job.ranks, number, job.form, job.tokens, recomputed=job.recomputed, lowest=job.lowest,
        longest=job.longest, learns=job.learns, output_share=job.output_share,
    )  # fmt: skip
    logits = LOGITS.get(shape.auto_class, _logits)(shape, job, number)
    copies = job.writes_answers and overheads.prepacks and not job.given_back
    linear = sum(one.inputs * one.outputs for one in shape.layers if one.kind == "linear")  # a tied head among them
    packed = number * linear if copies else 0
    compiler = overheads.compiler if job.compiled else 0
    unpacking = unpacking_bytes(shape, job.storage, number, given_back=job.given_back)
    return Memory((
        Part("process", overheads.process_of(job, shape), "measured" if overheads.measured else "assumed"),
        _weights(shape, job, number),
        Part("unpacking", unpacking, "the largest packed weight" if unpacking else "no weight is packed"),
        Part("adapter", EXACT * job.beside, f"{job.beside:,} x 4" if job.beside else "no adapter"),
        Part("gradients", EXACT * count, f"{count:,} x 4"),
        Part("optimizer", 8 * count, f"{count:,} x 8"),
        Part("averages", each * count, f"{count:,} x {each}" if each else "only for AdaLoRA"),
        Part("activations", saved, f"{job.tokens:,} tokens x {saved / max(1, job.tokens):,.0f}"),
        logits,
        Part("answers", packed, f"{'a' if packed else 'no'} second copy of the linear weights for decoding"),
        Part("compiler", compiler, "torch's compiler in this process, measured" if compiler else "not compiled"),
        *_images(shape, job), _overhead(shape, job, overheads, saved + logits.bytes),
    ))  # fmt: skip


def _weights(shape: ModelShape, job: Job, number: int) -> Part:
    rest, packed = rest_bytes(shape, job.storage, number), packed_bytes(shape, job.storage)
    if job.storage == "none":
        return Part("weights", rest, f"{shape.parameters:,} x {number}")
    others = f"{rest / number:,.0f} x {number}"
    if job.given_back:
        return Part("weights", rest, f"{others}; all others are pages of a file, given back after each use")
    name = "the GGUF file's matrices" if job.storage == "file" else f"weights in {job.storage}"
    return Part("weights", rest + packed, f"{packed / 1e6:,.1f} MB of {name} + {others}")


def _images(shape: ModelShape, job: Job) -> list[Part]:
    if shape.image is None:
        return []
    side, count, number = shape.image, job.images, int(FORMATS[job.dtype])
    size = count * side**2 * CHANNELS
    found = [
        Part(
            "images", size, f"{count:,} x {side} x {side} x 3, which the system can drop", droppable=not job.given_back
        )
    ]
    if job.caches_prefix:
        each, width = shape.patches * positions_of(shape), shape.blocks.width
        formula = f"{count:,} images x {each:,.0f} x {width:,} x {number}, as far as there is room"
        found.append(Part("prefix", count * each * width * number, formula, droppable=True))
    return found


def _overhead(shape: ModelShape, job: Job, overheads: Overheads, kept_bytes: float) -> Part:
    """`kept_bytes` are those of activations and logits."""
    if shape.blocks.passing:
        amount, formula = overheads.of_images.overhead(
            shape.blocks, job.learns, DTYPES[int(FORMATS[job.dtype])], job.tokens, kept_bytes, fast=job.form == "fast"
        )
        of_averages = OF_AVERAGES * 8 * job.trainable
        return Part("overhead", amount + of_averages, f"{formula} + {OF_AVERAGES:.0%} of the optimizer")
    of_block = block_bytes(
        shape, max(job.ranks.values(), default=0.0), int(FORMATS[job.dtype]), job.form, tokens=job.tokens,
        longest=job.longest, learns=job.learns, output_share=job.output_share,
    )  # fmt: skip
    times, holes = overheads.blocks(shape, job), overheads.holes * shape.task.holes
    copies = shape.task.tables * job.method.base_gradients
    tables = copies * EXACT * shape.vocabulary * shape.blocks.width
    of_tables = ("", " + the embedding's gradient", " + twice the embedding's gradient")[copies]
    return Part(
        "overhead", times * of_block + holes * kept_bytes + OF_AVERAGES * 8 * job.trainable + tables,
        f"{times:g} x {of_block / 1e6:,.1f} MB of a block + {holes:.1%} of activations and logits + "
        f"{OF_AVERAGES:.0%} of the optimizer{of_tables}",
    )  # fmt: skip


def _logits(shape: ModelShape, job: Job, number: int) -> Part:
    if job.form == "fast":
        rows = min(HEAD_ROWS, job.learned)
        amount = rows * shape.vocabulary * (number + EXACT)
    else:
        rows = job.learned
        amount = rows * shape.vocabulary * (2 * EXACT + (number if number < EXACT else 0))
    return Part("logits", amount, f"{rows:,} tokens x {shape.vocabulary:,}, in two number formats")


def _logits_behind_encoder(shape: ModelShape, job: Job, number: int) -> Part:
    return Part(
        "logits", OF_LOGITS * EXACT * job.learned * shape.vocabulary,
        f"{job.learned:,} tokens x {shape.vocabulary:,} x {EXACT}, {OF_LOGITS} times in the loss's backward pass",
    )  # fmt: skip


def _outputs(shape: ModelShape, job: Job, number: int) -> Part:
    """Of a classifier, for each target."""
    outputs, units = shape.outputs or 0, shape.task.targets
    return Part(
        "logits", 3.0 * EXACT * job.learned * outputs, f"{job.learned:,} {units} x {outputs:,} outputs, three times"
    )


LOGITS: Mapping[str, Callable[[ModelShape, Job, int], Part]] = {
    SEQUENCES: _logits_behind_encoder, CLASSIFIER: _outputs, TAGGER: _outputs, IMAGE_CLASSIFIER: _outputs,
}  # fmt: skip
"""By the class of transformers; those of every other model are a language model's."""


@dataclass(frozen=True)
class Disk:
    result: int
    checkpoint: int
    """Bytes of each."""
    checkpoints: int
    """Their number while one is written; 0 where the run writes none by itself."""
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
