"""The learning rate as a pure function of progress.

It rises linearly over the warm-up and then falls to zero linearly, by a half cosine, or not at all. The rate that
`auto` stands for falls with the width of the model: 2e-3 at width 576, half of the best rate there on short runs of two
tasks and far below what diverges (lab/adalora.md), and by the power 0.8 of the width above it, which gives 4.2e-4 at
4,096, where the best rates of LoRA were found between 2e-4 and 5e-4, ten times those of full fine-tuning (Biderman et
al. 2024, Schulman et al. 2025).

Where the whole model learns it is a twentieth of that: 1e-4 at width 576 and 2.1e-5 at 4,096, where Alpaca and Vicuna
were trained with 2e-5. On four tasks, one short epoch each, the best rate was 2e-4 or 4e-4, a tenth or a twentieth of
LoRA's; 1e-4 was 0.001 to 0.03 nats behind it, or 0.13 where facts had to be learned, and forgot a seventh to two fifths
as much (lab/claims.md).

Classifiers of MiniLM, width 384, ended at chance at the rates of language models in three of six cases (LoRA at 2e-3,
AdaLoRA at 3e-3), and were best at 2e-4 to 1e-3 with adapters, 5e-5 to 1e-4 with all weights, and 0.064 to 0.25 with
the head alone; LoRA at 7e-4 was 0.16 worse with one seed of three on STS-B (lab/classification.md). `auto` is 4.1e-4,
8.3e-5 and 0.069 there. LoRA on DINOv2-small, of the same width, learned CIFAR-10 best at 6e-4 of three rates with 30
and with 100 images of a class (lab/images.md), and at 8.2e-4 of seven in a short run (lab/tuning.md); `auto` is 5.8e-4.
"""

from __future__ import annotations

import math

from rankwise.config.training import TrainingConfig

SHAPES = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
    "constant": lambda left: 1.0,
}


def rate_factor(spec: TrainingConfig, step: int, steps: int) -> float:
    """What part of the highest rate step `step` of `steps` (counted from 0) is made with."""
    warm = round(spec.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return SHAPES[spec.schedule](1 - (step - warm) / max(1, steps - warm))
