"""Run the tutorials as they are written: every command of docs/tutorials, in an empty folder, one page after the other.

    python examples/tutorials.py [PAGE …]        # all, or tickets, emails, style, pictures

A server goes on while the commands behind it run. Commands that install are left out: this environment has the extras.
The seconds of each command are printed, and the minutes of each page at the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PATIENCE = 120
"""Seconds until a server must answer."""


def commands_of(page: str) -> list[str]:
    """The commands of a page, those of its Python blocks as a call of the interpreter."""
    commands = list[str]()
    for language, text in BLOCK.findall(page):
        if language == "python":
            commands.append(f"python - <<'END'\n{text}END")
        else:
            commands += [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return commands


def run_page(page: Path, folder: Path) -> float:
    servers, began = list[subprocess.Popen[bytes]](), time.monotonic()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        for command in commands_of(page.read_text(encoding="utf-8")):
            if command.startswith("pip install"):
                continue
            print(f"\n$ {command}", flush=True)
            since = time.monotonic()
            if command.startswith("rankwise serve"):
                servers.append(subprocess.Popen(command.split(), cwd=folder, env=environment))
                wait_for(command.split()[-1])
            else:
                subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True)
            print(f"[{time.monotonic() - since:.0f} s]", flush=True)
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    return (time.monotonic() - began) / 60


def wait_for(port: str) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def main(names: list[str]) -> None:
    pages = [PAGES / f"{name}.md" for name in names] or sorted(PAGES.glob("*.md"))
    minutes = dict[str, float]()
    for page in pages:
        with tempfile.TemporaryDirectory() as folder:
            minutes[page.stem] = run_page(page, Path(folder))
    print("\n" + "\n".join(f"{name}: {one:.1f} minutes" for name, one in minutes.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
