"""What one training would hold and compute: the job that a method, a model, rows and a device come to.

The largest micro-batch decides the memory. Rows of a step lie in it up to `max_batch_tokens`, a longer document
alone; a step that has less is one micro-batch, of as many tokens as the fullest step is likely to have.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace

from rankwise.config.experiment import Planned
from rankwise.config.method import MethodConfig
from rankwise.config.modules import image_readers
from rankwise.config.training import TrainingConfig
from rankwise.planning.activations import FAST, OF_IMAGES, OF_TEXTS, Form
from rankwise.planning.devices import Device
from rankwise.planning.memory import GPU, PROCESSOR, Job, Memory, Overheads, memory_of
from rankwise.planning.new_tokens import has_new_tokens
from rankwise.planning.operations import Load, Operations, operations
from rankwise.planning.parameters import Parameters, parameters_of, seen
from rankwise.planning.rows import PlannedRows
from rankwise.planning.shape import ModelShape
from rankwise.planning.stored_weights import Storage, unpacked_numbers

UNKNOWN_LENGTH = 1024
"""Tokens of a document, where no rows are given and no limit is."""
DEVIATIONS = 2.5
"""By how many standard deviations the fullest step of a run has more tokens than the mean one."""
OF_SHARE = 0.25
"""By how much documents differ in the share that is learned, as one standard deviation: 0.23 of Dolly's."""


@dataclass(frozen=True)
class AtOnce:
    """Of the largest micro-batch, whose documents have `mean` tokens where rows tell, `share` of them learned."""

    tokens: int
    learned: int
    longest: int
    share: float = 1.0
    mean: float | None = None
    images: int = 0
    """Images whose pixels are in memory."""
    passes: float = 1.0
    """How often a training sees each image as it is."""
    arrow: bool = False
    """Whether pyarrow reads them."""
    output_share: float = 0.0
    """Of an encoder with a decoder, the share of the tokens that the decoder has."""

    def learned_of(self, tokens: int) -> int:
        """In a micro-batch of so many: of few documents some have much more to learn than the mean one."""
        if self.mean is None:
            return math.ceil(tokens * self.learned / max(1, self.tokens))
        spread = DEVIATIONS * OF_SHARE / math.sqrt(max(1.0, tokens / self.mean))
        return math.ceil(tokens * min(1.0, self.share + spread))


@dataclass(frozen=True)
class Forecast:
    shape: ModelShape
    spec: MethodConfig
    parameters: Parameters
    job: Job
    overheads: Overheads
    memory: Memory

    @property
    def unpacked(self) -> float:
        """Numbers of packed weights that a micro-batch unpacks."""
        job = self.job
        return unpacked_numbers(self.shape, job.storage, lowest=job.lowest, recomputed=job.recomputed)

    def with_job(self, job: Job) -> Forecast:
        return replace(self, job=job, memory=memory_of(self.shape, job, self.overheads))

    @property
    def peak(self) -> int:
        return self.memory.peak

    @property
    def needed(self) -> int:
        return self.memory.needed


def at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int) -> AtOnce:
    """Without rows: a full micro-batch in which every token is learned, of documents as long as may be."""
    most = training.max_batch_tokens
    if rows is None or not rows.lengths:
        tokens = max(1, min(most, limit * training.batch_size))
        return _with_anchor(AtOnce(tokens, tokens, min(limit, tokens)), training)
    count = training.rows_per_step(max(1, round(rows.documents.likely)))
    mean, spread = statistics.fmean(rows.lengths), statistics.pstdev(rows.lengths)
    fullest = count * mean + DEVIATIONS * spread * math.sqrt(count)
    tokens = max(rows.longest, min(most, math.ceil(fullest)))
    found = AtOnce(tokens, tokens, rows.longest, rows.supervised_share, mean)
    return _with_anchor(replace(found, learned=found.learned_of(tokens)), training)


def _with_anchor(amount: AtOnce, training: TrainingConfig) -> AtOnce:
    """The anchor's block goes into one row with the last micro-batch where there is room, and is alone elsewhere."""
    block = 0 if training.anchor is None else training.anchor.tokens
    if amount.tokens + block <= training.max_batch_tokens:
        return replace(amount, tokens=amount.tokens + block, learned=amount.learned + block)
    return replace(amount, tokens=max(amount.tokens, block), learned=max(amount.learned, block))


def rows_at_once(rows: PlannedRows | None, training: TrainingConfig, limit: int) -> AtOnce:
    """Of a classifier, whose rows have one target each and are padded to the longest of their micro-batch: in the step
    with the longest row of all as many of this length as there is room for."""
    longest, count = limit, training.batch_size
    if rows is not None and rows.lengths:
        longest, count = rows.longest, training.rows_per_step(max(1, round(rows.documents.likely)))
    together = max(1, min(count, training.max_batch_tokens // longest))
    return AtOnce(together * longest, together, longest)


def longest_of(config: Planned, shape: ModelShape) -> int:
    """Tokens of the longest document there may be: a pair of answers is two texts, and so is an input with its output.
    Images have one size."""
    if shape.image is not None:
        return shape.patches
    return limit_of(config, shape) * (2 if config.objective == "preference" or shape.is_encoder_decoder else 1)


def limit_of(config: Planned, shape: ModelShape) -> int:
    """Tokens of the longest text."""
    limit = UNKNOWN_LENGTH if config.data is None else config.data.max_length
    return min(limit, shape.context or limit)


def form_of(shape: ModelShape, spec: MethodConfig, training: TrainingConfig, device: Device) -> Form:
    families = FAST if not shape.is_classifier else OF_TEXTS if shape.image is None else OF_IMAGES
    has_kernels = shape.family in families
    fast = device.kind == "processor" and has_kernels and not spec.trains_base and not has_new_tokens(shape)
    return "fast" if fast and training.backend != "eager" else "plain"


def forecast(
    shape: ModelShape, spec: MethodConfig, training: TrainingConfig, device: Device, dtype: str, amount: AtOnce,
    counted: Parameters | None = None, writes_answers: bool = False, compiled: bool = False,
    storage: Storage = "none", given_back: bool = False,
) -> Forecast:  # fmt: skip
    """`dtype` is what the base computes in, stored as `storage` says and `given_back` after each use; a whole model
    that learns is in float32. `counted` saves counting. Without kernels there is nothing to be `compiled`."""
    counted = counted or parameters_of(shape, spec)
    form = form_of(shape, spec, training, device)
    asked, blocks = training.activation_checkpointing, shape.block_count
    ranks = ranks_by_block(counted, amount.output_share)
    numbers = [block for block in ranks if block is not None]
    lowest = min(*numbers, blocks - 1) if numbers and len(numbers) == len(ranks) else 0
    if not ranks and not spec.trains_base:  # heads alone learn, above all blocks
        lowest = blocks
    job = Job(
        form=form, dtype=spec.base_dtype or dtype, trains_base=spec.trains_base, averages=spec.averages,
        trainable=counted.trainable, ranks={block: rank for block, rank in ranks.items() if block is not None},
        tokens=amount.tokens, learned=amount.learned, longest=amount.longest, lowest=lowest,
        images=amount.images, arrow=amount.arrow, passes=amount.passes,
        adapted="adapter" if shape.image is None else _adapted(shape, counted),
        recomputed=0 if asked == "auto" else min(asked, blocks - lowest), writes_answers=writes_answers,
        compiled=compiled and form == "fast" and not shape.is_classifier,
        storage=storage, given_back=given_back and storage != "none",
        output_share=amount.output_share,
    )  # fmt: skip
    overheads = PROCESSOR if device.kind == "processor" else GPU
    return Forecast(shape, spec, counted, job, overheads, memory_of(shape, job, overheads))


def _adapted(shape: ModelShape, counted: Parameters) -> str:
    """What the adapters of a model of images are laid over, one of ADAPTED (activations.py)."""
    paths, kinds = {one.layer.path for one in counted.adapted}, {one.layer.kind for one in counted.adapted}
    if not paths:
        return "head"
    if kinds == {"linear"}:
        return "adapter"
    return "conv" if kinds == {"conv2d"} and paths.isdisjoint(image_readers(seen(shape))) else "both"


def ranks_by_block(counted: Parameters, output_share: float = 0.0) -> dict[int | None, float]:
    """Sums, as training begins, each for the share of all tokens that its layer maps; None is what stands in no
    block."""
    found: defaultdict[int | None, float] = defaultdict(float)
    shares = {"": 1.0, "input": 1 - output_share, "output": output_share}
    for planned in counted.adapted:
        layer = planned.layer
        found[layer.block] += sum(planned.ranks) * (layer.positions or 1) * shares[layer.side]
    return dict(found)


def operations_of(forecasted: Forecast, load: Load) -> Operations:
    """With the ranks that an adapter has on average over a run."""
    spec, blocks = forecasted.spec, max(1, forecasted.shape.block_count)
    adapted = forecasted.parameters.adapted
    ranks = {planned.layer.path: spec.mean_rank_share * sum(planned.ranks) for planned in adapted}
    learning = None if spec.trains_base else ranks
    job, of_tokens = forecasted.job, not forecasted.shape.is_classifier
    return operations(
        forecasted.shape, load, learning, recomputed=job.recomputed / blocks, trimmed=job.form == "fast" and of_tokens,
        frozen=job.lowest if job.caches_prefix else 0, passes=job.passes,
    )  # fmt: skip
