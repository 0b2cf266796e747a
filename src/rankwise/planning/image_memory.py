"""What a training on images holds beside weights, activations and the optimizer.

    process    libraries that read and prepare images, beside those of every training
    prefix     outputs of the blocks below the lowest trained one, cached for each image in the fast form where images
               are seen again and are not varied; at most a share of free memory, so a training fits without it
    images     the pixels of all images (N S^2 3 bytes), in pages of a file that the system drops where memory is short
    overhead   what lives beside saved activations at the most, as a pass over fake images measured it
               (forward/fake_pass.py), and holes between them, as a share of activations: the layers of a model of
               images differ in size, so what one frees seldom fits the next

Those shares are measured (bench/plan.py --images) and hold for a processor. On a GPU they are assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankwise.planning.shape import Blocks

CHANNELS = 3


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


PROCESSOR = ImageOverheads(
    0.05e9, 0.08e9, {"adapter": 0.42, "conv": 0.33, "both": 0.42, "head": 0.0, "full": 0.2}, 0.45, 1.5
)
GPU = ImageOverheads(0.0, 0.0, dict.fromkeys(("adapter", "conv", "both", "head", "full"), 0.1), 0.1, 1.5)


def pixels(images: int, side: int) -> int:
    return images * side**2 * CHANNELS
