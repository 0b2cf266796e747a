"""The strength of an adapter after training: a factor of its change."""

from __future__ import annotations

from rankwise.errors import ConfigError

LARGEST_STRENGTH = 10.0


def check_strength(strength: float) -> None:
    """Refuse a factor of the adapter's change that is negative, NaN or very large."""
    if not 0 <= strength <= LARGEST_STRENGTH:  # so that NaN is refused too
        raise ConfigError(
            [
                f"the strength {strength:g} is out of range: 0 is the base model, 1 the adapter as trained, "
                f"{LARGEST_STRENGTH:g} the maximum."
            ]
        )
