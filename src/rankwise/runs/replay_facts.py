"""What a data report and a manifest say about replay rows: where they come from, and how many are shown."""

from __future__ import annotations

from rankwise.config.base import Config


class ReplayFacts(Config):
    """The rows that a training shows among its own so that the model forgets less."""

    source: str
    """The file or files, or that the base wrote them."""
    sha256: str
    """Hash of the rows as they are trained on: token ids and loss masks."""
    origins: tuple[str, ...] = ()
    """The SHA-256 of the files that they come from."""
    share: float
    """Of replay rows in the rows that training shows."""
    rows: int
    """Different rows to choose from."""
    tokens: int
    loss_tokens: int
    rows_in_pass: int
    """Replay rows that are shown in the course of one pass over the training rows."""
    loss_share: float
    """Of replay rows in the tokens that the loss falls on, about: more than `share` where they have long answers."""
    left_out: int = 0
    """Rows that are validation rows too, which are not shown."""

    def describe(self) -> str:
        some = f"; {self.left_out:,} are left out, because they are validation rows" if self.left_out else ""
        return (
            f"{self.share:.3g} of the rows shown, {self.rows_in_pass:,} in a pass, are from {self.source}: "
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.loss_tokens:,} of them in the loss, which makes "
            f"{self.loss_share:.0%} of all loss tokens{some}"
        )
