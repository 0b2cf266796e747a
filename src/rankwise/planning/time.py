"""How long a step takes, and the whole run.

    seconds = operations / (rate x efficiency)     the rate is a card's by its maker's word, and a processor's as it was
                                                   measured; a GPU takes no less than its kernels need to start
            + numbers unpacked / rate of unpacking of each micro-batch, where weights are packed
    seconds = a + b x tokens                       as a probe measured it: two steps of different size

Both factors are told with where they come from. What an assumption is worth is seen from its width: the same model is
trained at a quarter of a card's peak by one program and at half by another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rankwise.config.method import Form
from rankwise.errors import RunError
from rankwise.planning.devices import Device, Kind
from rankwise.planning.estimate import Estimate
from rankwise.planning.stored_weights import Storage, unpacking_rate
from rankwise.system.processor import usable_cores

SECONDS_OF_HOUR = 3600
COMPILED_AFTER = 300.0
"""Seconds of a training that is long enough to be compiled by itself. What compiling saves of it, a twentieth to a
seventh (more where products are faster), is several times what compiling takes."""


GAIN_OF_INT8 = 1.28
"""How many times as fast the training of a narrow model is with products of its frozen weights in int8."""
NARROW, MOST_BY_WIDTH, MOST_SHARE = 576, 1.35, 1.4
"""The width of the starter model, and how many times as large what int8 gains, and the share of a processor's rate in
bfloat16, are in the widest models. The cube root of the width is a rough fit to gains of 1.28, 1.45, 1.67
(docs/speed.md) and, at 4,096, 1.72 (lab/LOG.md, 2026-12-01), and its power of 0.7 to shares of 53, 73, 77 and 75 % at
576, 896, 1,536 and 4,096 (docs/speed.md), and of 52 and 79 % at the first two (bench/plan-accuracy.md)."""

PLAIN = 0.77
"""The model's own code reaches so much of the rate that kernels reach (bench/plan-accuracy.md)."""
STARTED = 12.0
"""Seconds of a command beside its training: to import torch, to load the model, to encode rows, and of the first step
what it takes longer than others. Measured on two cores (bench/plan-accuracy.md)."""


@dataclass(frozen=True)
class Efficiency:
    """Operations that a training makes, as a share of the rate that was assumed."""

    share: Estimate
    source: str


CARDS = "likely 26 %: PEFT's run on an L40S (7,198 tokens/s of Llama-3.2-3B); at least half of this, which is a guess; "
EFFICIENCIES: dict[Kind, Efficiency] = {
    "datacentre": Efficiency(
        Estimate(0.13, 0.26, 0.43),
        CARDS
        + "at most 43 %: NeMo AutoModel on an H100 (12,473 tokens/s of Llama-3-8B, 402 of 989 TFLOP/s as it counts)",
    ),
    "consumer": Efficiency(
        Estimate(0.13, 0.26, 0.60),
        CARDS + "at most 60 % of 165 TFLOP/s: torchtune's README on an RTX 4090 (3,083 tokens/s of Llama-3.1-8B, "
        "packed and compiled)",
    ),
    "apple": Efficiency(
        Estimate(0.13, 0.26, 0.39),
        "at most 39 %: mlx-lm's LORA.md on an M1 Max (250 tokens/s of Mistral-7B, 4 adapted layers); with torch likely "
        "two thirds and at least one third of this, which is a guess",
    ),
}
PROCESSORS = {
    "avx512_bf16": Efficiency(
        Estimate(0.28, 0.54, 0.62),
        "bench/speed-method.md, of the best product in bfloat16: the starter model reached 53 % with the compiled "
        "backend and 28 % with the eager one, models of 0.5B, 1.5B and 7B parameters 73, 77 and 75 %; twice the rate "
        "in float32 was 0.95 of that product where both were measured (bench/plan-accuracy.md)",
    ),
    "amx_bf16": Efficiency(
        Estimate(0.17, 0.24, 0.34),
        "matrix products on two cores with AMX reached 1.8 to 2.4 of the 5.3 TFLOP/s that their clock would give; "
        "training reached half of the rate of such products on the starter model and three quarters on 7B parameters, "
        "on another processor (docs/speed.md)",
    ),
    "float32": Efficiency(
        Estimate(0.25, 0.55, 0.85),
        "lab/LOG.md, 2026-11-28: one core of a Xeon: of the rate of its products the starter model reached 0.75 with "
        "LoRA and the fused backend, and 0.66 with full fine-tuning and the eager one; on two cores of an EPYC full "
        "fine-tuning reached about 0.3 (docs/speed.md); the range around this is a guess",
    ),
}
IMAGES_SOURCE = (
    "bench/plan-accuracy.md: processor time of one core, eager backend; DINOv2-small reached 77 to 88 GFLOP/s in "
    "float32 and 121 to 125 in bfloat16, EfficientNet-Lite0 28 to 37 and 34 to 39, of some 205 and "
    "410; the range is a guess"
)
OF_IMAGES = {
    ("patches", "float32"): Efficiency(Estimate(0.25, 0.40, 0.80), IMAGES_SOURCE),
    ("patches", "bfloat16"): Efficiency(Estimate(0.20, 0.30, 0.70), IMAGES_SOURCE),
    ("convolutions", "float32"): Efficiency(Estimate(0.08, 0.16, 0.40), IMAGES_SOURCE),
    ("convolutions", "bfloat16"): Efficiency(Estimate(0.04, 0.09, 0.22), IMAGES_SOURCE),
}
"""On processors without AMX, by what most operations of a model of images are, and by the number format."""
LAUNCH = Estimate(1.37e-3, 4.1e-3, 4.1e-3)
"""Seconds of one block for a micro-batch, however little there is to compute: axolotl's PR 2324 has 41.2 ms forward for
the 30 blocks of SmolLM2-135M on an H100 (512 tokens, LoRA). The backward pass is taken as twice that; at least, as
nothing."""
PREPARATION = Estimate(1e-3, 4e-3, 8e-3)
"""Seconds of one block for a micro-batch on a processor, beside its products: processor time of a step of 98 tokens of
the starter model (30 blocks) was 3.9 ms a block above that of its operations, and of a model of two tiny blocks 4 to 6
ms (lab/LOG.md, 2026-11-28); the range is a guess."""

DECODED, OF_BLOCK = 22e9, 1.2e-3
"""Bytes of weights that a processor reads in a second of decoding, and seconds of each block beside it."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step is on average."""

    operations: float
    tokens: float
    micro_batches: float = 1.0
    unpacked: float = 0.0
    """Numbers of packed weights that each micro-batch unpacks."""


@dataclass(frozen=True)
class Speed:
    rate: float
    """Operations per second, by `source`."""
    efficiency: Efficiency
    launch: Estimate
    """Seconds that a micro-batch takes at least: a GPU computes while its next operation is prepared."""
    preparation: Estimate
    """Seconds of a micro-batch beside its operations: a processor does not."""
    source: str
    """Where the rate comes from."""
    unpacking: Estimate | None = None
    """Numbers of packed weights that are unpacked in a second; None where none are, or where it takes no time."""
    origin: Literal["assumed"] = "assumed"

    def seconds(self, step: Step) -> Estimate:
        work = Estimate.exactly(step.operations).over(self.efficiency.share.times(self.rate))
        seconds = work.at_least(self.launch.times(step.micro_batches)).plus(self.preparation.times(step.micro_batches))
        if not step.unpacked or self.unpacking is None:
            return seconds
        return seconds.plus(Estimate.exactly(step.unpacked * step.micro_batches).over(self.unpacking))


SPREAD = 0.015
"""By how much single steps are off the line, as a share; bench/scaling.py had 1.5 % from 512 to 8,192 tokens."""


@dataclass(frozen=True)
class Probe:
    """Steps that were made: seconds = constant + per_token x tokens."""

    constant: float
    per_token: float
    machine: str
    when: str
    unpacking: float = 0.0
    """Seconds that unpacking takes beside this in each micro-batch."""
    origin: Literal["measured"] = "measured"

    @classmethod
    def of(
        cls, small: tuple[float, float], large: tuple[float, float], *, machine: str, when: str, unpacking: float = 0.0
    ) -> Probe:
        """Through two steps (tokens, seconds). Where the larger one took no longer, nothing is known of the slope."""
        (few, short), (many, long) = small, large
        assert 0 < few < many, (few, many)
        if not 0 < short < long:
            raise RunError(
                f"the probe's step of {many:,.0f} tokens took {long:.3g} s, and its smaller step of {few:,.0f} tokens "
                f"took {short:.3g} s, so this machine was busy with something else. Run the probe again."
            )
        slope = min((long - short) / (many - few), long / many)  # else a step of no tokens would take less than none
        return cls(long - slope * many, slope, machine, when, unpacking)

    def seconds(self, step: Step) -> Estimate:
        seconds = self.constant + self.per_token * step.tokens + self.unpacking * step.micro_batches
        return Estimate.within(seconds, SPREAD * seconds)


@dataclass(frozen=True)
class Duration:
    step: Estimate
    """Seconds, as `total`."""
    total: Estimate

    @property
    def command(self) -> float:
        """Seconds with start, loading and encoding."""
        return self.total.likely + STARTED


def speed_of(
    device: Device, dtype: str, blocks: int, images: str | None = None, storage: Storage = "none",
    int8: bool = False, width: int = NARROW, form: Form = "fast",
) -> Speed | None:  # fmt: skip
    """None where no rate is known: then only a probe can tell. `images` is what most operations of a model of images
    are, "patches" or "convolutions". `int8` is for products of frozen weights in int8; `width` is that of blocks. The
    fast form computes patches as it computes tokens."""
    rate = device.rate(dtype)
    if rate is None:
        return None
    none = Estimate.exactly(0.0)
    launch = LAUNCH.times(blocks) if device.kind in ("datacentre", "consumer") else none
    preparation = PREPARATION.times(blocks) if device.kind == "processor" and images is None else none
    times = max(1.0, width / NARROW)
    efficiency = _efficiency(device, dtype, images if form == "plain" else None)
    if efficiency is PROCESSORS["avx512_bf16"]:
        efficiency = replace(efficiency, share=efficiency.share.times(min(MOST_SHARE, times**0.7)))
    if device.kind == "processor" and images is None and form == "plain":
        efficiency = replace(efficiency, share=efficiency.share.times(PLAIN))
    if int8:
        gained = GAIN_OF_INT8 * min(MOST_BY_WIDTH, times ** (1 / 3))
        efficiency = replace(efficiency, share=efficiency.share.times(gained))
    # a GPU's memory is so fast that unpacking is not counted there
    counted = device.kind == "processor" and storage != "none"
    unpacking = unpacking_rate(storage).times(usable_cores()) if counted else None
    return Speed(rate, efficiency, launch, preparation, device.source, unpacking=unpacking)


def decoding_seconds(device: Device, weights: float, blocks: int) -> float:
    """Seconds of one step of decoding: a processor reads all `weights` (bytes), and a GPU starts the kernels of a
    forward pass."""
    return weights / DECODED + blocks * OF_BLOCK if device.kind == "processor" else blocks * LAUNCH.low


def duration(
    step: Step, steps: int, by: Speed | Probe, *, error: float = 0.0, validation: Step | None = None,
    answering: float = 0.0,
) -> Duration:  # fmt: skip
    """`error`: by what share the tokens of a step may be others than was estimated. `validation` is all that the run
    reads beside its steps, with as many tokens as it costs in a training step; `answering` are the seconds in which it
    writes."""
    seconds = by.seconds(step)
    seconds = Estimate(seconds.low * max(0.0, 1 - error), seconds.likely, seconds.high * (1 + error))
    total = seconds.times(steps)
    if validation is not None:
        total = total.plus((replace(by, constant=0.0) if isinstance(by, Probe) else by).seconds(validation))
    return Duration(seconds, total.plus(Estimate.exactly(answering)))


def _efficiency(device: Device, dtype: str, images: str | None) -> Efficiency:
    if device.kind != "processor":
        return EFFICIENCIES[device.kind]
    has_amx = "amx_bf16" in device.flags
    if images is not None and (dtype == "float32" or not has_amx):
        return OF_IMAGES[images, "float32" if dtype == "float32" else "bfloat16"]
    if dtype == "float32":
        return PROCESSORS["float32"]
    return PROCESSORS["amx_bf16" if has_amx else "avx512_bf16"]
