"""What an anchor to the base adds to a step: other text, of which the tuned model and its base predict every token."""

from __future__ import annotations

from rankwise.config.forgetting import BLOCKS, AnchorConfig
from rankwise.planning.forecast import Forecast, operations_of
from rankwise.planning.operations import Load


def anchor_operations(forecasted: Forecast, anchor: AnchorConfig | None, steps: int | None) -> float:
    """Of a step for its block of other text: a forward and a backward pass, once more the head for the base's
    predictions, and a forward pass of the base where the block comes for the first time."""
    if anchor is None:
        return 0.0
    whole = operations_of(forecasted, Load((anchor.tokens,), float(anchor.tokens)))
    first = min(1.0, BLOCKS / steps) if steps else 1.0
    return whole.total + whole.head + first * whole.forward
