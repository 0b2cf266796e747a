"""Run the tutorials as they are written: every command of docs/tutorials, in an empty folder, page by page.

    python examples/tutorials.py [--write] [PAGE …]        # all pages, or: tickets, emails, style, pictures, gguf, keep

With --write, the output of each block of commands is written into the page, below the block: results and warnings, with
`…` for progress, messages and lines that are left out. Blocks in `sh` and commands that install are not run. A server
runs until its page ends. The seconds of each command are printed, and the minutes of each page at the end.
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
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.DOTALL | re.MULTILINE)
NOTED = ("warning:", "note:")
"""How the lines of stderr begin that a page shows."""
FIRST, LAST, WIDTH = 7, 9, 200
"""Lines of a command's output that a page shows, and characters of a line."""
PATIENCE = 120
"""Seconds until a server must answer."""


def commands_of(page: str) -> list[str]:
    """The commands of a page, those of its Python blocks as a call of the interpreter."""
    return [command for block in BLOCK.finditer(page) for command in commands_in(*block.groups())]


def commands_in(language: str, text: str) -> list[str]:
    if language == "python":
        return [f"python - <<'END'\n{text}END"]
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def shown(result: str, notes: str, folder: Path) -> str:
    """What a page shows of a command's stdout and stderr."""
    told = [line for line in notes.splitlines() if line.strip()]
    warnings = [line for line in told if line.startswith(NOTED)]
    left_out = ["…"] if len(warnings) < len(told) else []
    lines = [line for line in result.splitlines() if line.strip()]
    if len(lines) > FIRST + LAST:
        lines[FIRST:-LAST] = ["…"]
    cut = (line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in left_out + warnings + lines)
    return "".join(f"{line}\n" for line in cut).replace(f"{folder}{os.sep}", "")


def run_page(page: Path, folder: Path, write: bool) -> float:
    servers, began, text = list[subprocess.Popen[bytes]](), time.monotonic(), page.read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NO_COLOR": "1", "COLUMNS": "110"}

    def run(block: re.Match[str]) -> str:
        output = ""
        for command in commands_in(*block.groups()):
            if command.startswith("pip install"):
                continue
            print(f"\n$ {command}", flush=True)
            since = time.monotonic()
            if command.startswith("rankwise serve"):
                servers.append(subprocess.Popen(command.split(), cwd=folder, env=environment))
                wait_for(command.split()[-1])
            else:
                done = subprocess.run(
                    ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
                )
                print(f"{done.stderr}{done.stdout}", flush=True)
                done.check_returncode()
                output += shown(done.stdout, done.stderr, folder)
            print(f"[{time.monotonic() - since:.0f} s]", flush=True)
        commands = f"```{block[1]}\n{block[2]}```\n"
        return f"{commands}\n```text\n{output}```\n" if output else commands

    try:
        text = BLOCK.sub(run, text)
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    if write:
        page.write_text(text, encoding="utf-8")
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


def main(words: list[str]) -> None:
    names = [word for word in words if word != "--write"]
    pages = [PAGES / f"{name}.md" for name in names] or sorted(PAGES.glob("*.md"))
    minutes = dict[str, float]()
    for page in pages:
        with tempfile.TemporaryDirectory() as folder:
            minutes[page.stem] = run_page(page, Path(folder).resolve(), "--write" in words)
    print("\n" + "\n".join(f"{name}: {one:.1f} minutes" for name, one in minutes.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
