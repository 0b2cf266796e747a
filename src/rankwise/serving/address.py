"""Where a server listens, and who may ask there."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
