"""What a shell makes of a command that a message prints."""

from __future__ import annotations

import subprocess


def typed_in_bash(options: str) -> list[str]:
    """The words of it."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {options}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]
