"""What is served where, and who may ask there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.config.models import Dtype, ModelConfig, parse_size
from rankwise.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that no other can use."""
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True)
class Address:
    """`key` is what requests must bring; `origins` are pages in browsers that may ask."""

    host: str
    port: int
    key: str | None
    origins: tuple[str, ...]

    def check(self, *keys: str) -> None:
        """ConfigError with all that is wrong, and with other problems of the same command."""
        wrong = [one for one in self.origins if not _ORIGIN.fullmatch(one)]
        problems = [f"--allow-origin {one}: write scheme and host alone, such as https://app.example." for one in wrong]
        if self.key is not None and not self.key.isascii():
            problems.append(
                "the key (RANKWISE_API_KEY, --api-key) has characters that no request can bring; use ASCII."
            )
        if self.host not in LOOPBACK and not self.key:
            problems.append(
                f"--host {self.host}: other machines could ask, so a key is needed. Set RANKWISE_API_KEY, or --api-key."
            )
        if problems or keys:
            raise ConfigError([*problems, *keys])

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class Offer:
    """What is served: runs and adapters by name, or a base alone. `most` are the tokens of an answer that asks for no
    number; requests may load adapters that lie below `load_from`."""

    names: Sequence[str]
    base: str | None = None
    most: int = 1024
    dtype: str = "auto"
    force_base: bool = False
    trust_code: str | None = None
    load_from: Path | None = None
    fine_tuning: bool = False
    """Whether requests may upload files and train on them."""
    aliases: Sequence[str] = ()
    """Other names of the base."""
    prefix_cache: str = "512MB"
    """For keys and values of earlier prompts and answers; 0 for none."""
    unconstrained: bool = False
    """Whether answers are not held to the schemas of their runs."""

    @property
    def number_format(self) -> Dtype:
        """ConfigError where it is none."""
        return ModelConfig(name="serve", dtype=self.dtype).dtype  # pyright: ignore[reportArgumentType]  checked there

    @property
    def prefix_bytes(self) -> int:
        """ValueError where it is no amount of memory."""
        return 0 if self.prefix_cache.strip() == "0" else parse_size(self.prefix_cache)

    @property
    def problems(self) -> list[str]:
        """All that is wrong with it."""
        problems = list[str]()
        if not self.names and self.base is None:
            problems.append("name runs or adapters to serve, or a base alone with --model.")
        if self.names and self.base is not None:
            problems.append(
                f"--model {self.base} serves a base alone, and runs or adapters bring their own. Leave one of them out."
            )
        if self.load_from is not None and not self.load_from.is_dir():
            problems.append(f"--load-from {self.load_from} is not a folder.")
        try:
            _ = self.prefix_bytes
        except ValueError as error:
            problems.append(f"--prefix-cache {self.prefix_cache[:40]!r}: {error}; 0 keeps none.")
        return problems
