"""What one training would hold and compute: the job that a method, a model, rows and a device come to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from rankwise.config.experiment import Planned
from rankwise.config.forgetting import BLOCKS, AnchorConfig
from rankwise.config.method import Form, MethodConfig
from rankwise.config.modules import image_readers
from rankwise.config.parameters import Parameters
from rankwise.config.training import TrainingConfig
from rankwise.planning.activations import FAST, OF_IMAGES, OF_TEXTS
from rankwise.planning.batches import AtOnce, writes_answers
from rankwise.planning.devices import Device
from rankwise.planning.memory import GPU, PROCESSOR, Job, Memory, Overheads, memory_of
from rankwise.planning.operations import Load, Operations
from rankwise.planning.parameters import parameters_of, seen
from rankwise.planning.shape import CLASSIFIER, IMAGE_CLASSIFIER, NEW_TOKENS, TAGGER, ModelShape
from rankwise.planning.stored_weights import Storage, storage_of, unpacked_numbers

FAMILIES = {CLASSIFIER: OF_TEXTS, TAGGER: OF_TEXTS, IMAGE_CLASSIFIER: OF_IMAGES}
"""With a fast form, by the class of transformers; those of every other model are FAST."""


@dataclass(frozen=True)
class Forecast:
    shape: ModelShape
    parameters: Parameters
    job: Job
    overheads: Overheads
    memory: Memory

    @property
    def unpacked(self) -> float:
        """Numbers of packed weights that a micro-batch unpacks."""
        job = self.job
        return unpacked_numbers(self.shape, job.storage, lowest=job.lowest, recomputed=job.recomputed)

    def changed(self, **changes: int) -> Forecast:
        """With another job."""
        job = replace(self.job, **changes)
        return replace(self, job=job, memory=memory_of(self.shape, job, self.overheads))

    @property
    def blocks(self) -> int:
        """That learn, and so can be computed twice."""
        return self.shape.block_count - self.job.lowest

    def least_recomputed(self, room: int) -> int | None:
        """How many blocks must be computed twice to fit; None where all of them do not do."""
        if self.blocks < 1 or self.changed(recomputed=self.blocks).needed > room:
            return None
        low, high = 0, self.blocks
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.changed(recomputed=middle).needed <= room else (middle, high)
        return high

    @property
    def peak(self) -> int:
        return self.memory.peak

    @property
    def needed(self) -> int:
        return self.memory.needed


def form_of(shape: ModelShape, spec: MethodConfig, training: TrainingConfig, device: Device) -> Form:
    has_kernels = shape.family in FAMILIES.get(shape.auto_class, FAST)
    # the fused kernels do not know rows of new tokens
    knows = has_kernels and not any(name.endswith(NEW_TOKENS) for name in shape.heads)
    return spec.form("fast" if device.kind == "processor" and knows and training.backend != "eager" else "plain")


def forecast(
    shape: ModelShape, spec: MethodConfig, training: TrainingConfig, device: Device, dtype: str, amount: AtOnce,
    counted: Parameters | None = None, writes_answers: bool = False, compiled: bool = False,
    storage: Storage = "none", given_back: bool = False,
) -> Forecast:  # fmt: skip
    """Forecast the memory of a training by the method `spec` on a device, and what its time is computed from.

    `dtype` is what the base computes in, stored as `storage` says and `given_back` after each use. `counted` saves
    counting. Without kernels there is nothing to be `compiled`."""
    counted = counted or parameters_of(shape, spec)
    form = form_of(shape, spec, training, device)
    asked, blocks = training.activation_checkpointing, shape.block_count
    ranks = ranks_by_block(counted, amount.output_share)
    numbers = [block for block in ranks if block is not None]
    lowest = min(*numbers, blocks - 1) if numbers and len(numbers) == len(ranks) else 0
    if not ranks:
        lowest = min(max(0, spec.lowest[0]), blocks)
    job = Job(
        method=spec, form=form, dtype=dtype, trainable=counted.trainable, beside=counted.beside,
        ranks={block: rank for block, rank in ranks.items() if block is not None},
        tokens=amount.tokens, learned=amount.learned, longest=amount.longest, lowest=lowest,
        images=amount.images, arrow=amount.arrow, passes=amount.passes,
        learns=spec.learns("adapter" if shape.image is None else _adapted(shape, counted)),
        recomputed=0 if asked == "auto" else min(asked, blocks - lowest), writes_answers=writes_answers,
        compiled=compiled and form == "fast" and shape.task.compiled,
        storage=storage, given_back=given_back and storage != "none",
        output_share=amount.output_share,
    )  # fmt: skip
    overheads = PROCESSOR if device.kind == "processor" else GPU
    return Forecast(shape, counted, job, overheads, memory_of(shape, job, overheads))


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
    job, shape, adapted = forecasted.job, forecasted.shape, forecasted.parameters.adapted
    ranks = {planned.layer.path: job.method.mean_rank_share * sum(planned.ranks) for planned in adapted}
    return Operations(
        shape, load, ranks, job.method, recomputed=job.recomputed / max(1, shape.block_count),
        trimmed=job.form == "fast" and shape.task.trimmed,
        frozen=job.lowest if job.caches_prefix else 0, passes=job.passes,
    )  # fmt: skip


def anchor_operations(forecasted: Forecast, anchor: AnchorConfig | None, steps: int | None) -> float:
    """Of a step for the anchor's block of other text, of which the tuned model and its base predict every token: a
    forward and a backward pass, once more the head for the base's predictions, and a forward pass of the base where
    the block comes for the first time."""
    if anchor is None:
        return 0.0
    whole = operations_of(forecasted, Load((anchor.tokens,), float(anchor.tokens)))
    first = min(1.0, BLOCKS / steps) if steps else 1.0
    return whole.total + whole.head + first * whole.forward


def planned_forecast(
    config: Planned, shape: ModelShape, device: Device, amount: AtOnce, spec: MethodConfig | None = None,
    counted: Parameters | None = None, compiled: bool = False,
) -> Forecast:  # fmt: skip
    """By the settings of a training, or by another method, with as many blocks computed twice as training chooses."""
    spec, answers = spec or config.adapter, bool(shape.task.writes) and writes_answers(config)
    base = spec.loaded(config.model)
    dtype, limited = base.dtype, base.memory is not None and device.kind == "processor"
    dtype = device.dtype if dtype == "auto" else dtype
    storage = storage_of(base.quantize, shape, given_back=limited)
    first = forecast(
        shape, spec, config.training, device, dtype, amount, counted, answers, compiled, storage, limited
    )  # fmt: skip
    if config.training.activation_checkpointing != "auto" or first.needed <= device.usable:
        return first
    twice = first.least_recomputed(device.usable)
    return first if twice is None else first.changed(recomputed=twice)
