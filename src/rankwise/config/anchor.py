"""Settings of the anchor, which holds a tuned model to its base on other text while it learns."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rankwise.config.base import Config, Number, PositiveInt

OWN_TEXT = "text that the base model wrote itself"
BLOCKS = 256
"""At most so many blocks of the text are drawn from. A run of fewer steps sees none of them twice."""


class AnchorConfig(Config):
    """Each step adds, to the loss of its rows, the divergence of the tuned model from its base on other text, so that
    the model forgets less. The base is the same weights with the adapter switched off."""

    text: str | None = None
    """The other text: a plain text file; or a file, folder or hub data set with rows that have a `text`. It should be
    unlike the rows, and like what the model must go on doing well. By default the base writes it itself, from short
    openings of several kinds of text; that takes place once for each base, and the text lies in the cache."""
    tokens: PositiveInt = 128
    """Tokens of that text in each step."""
    weight: Annotated[Number, Field(gt=0, le=1000)] = 1.0
    """What the mean divergence of a token, in nats, is multiplied by before it is added to the loss."""
    forget_at_most: Annotated[Number, Field(gt=0, le=10)] | None = None
    """A budget of forgetting: the KL divergence from the base, in nats per token, that the result may have on ordinary
    text, which is neither trained on nor the anchor's. `weight` is then the largest weight: it falls while what is
    measured leaves room. If the result has forgotten more, its change is scaled down until it keeps the budget."""
