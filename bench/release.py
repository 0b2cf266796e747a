"""Whether the wheel can be handed out: it is built, looked through, and used alone in empty environments.

    python bench/release.py [--json] [--parts newest,lowest,pipx,uvx] [--out bench/results/TITLE]

dist/ gets the source archive, and the wheel that is built from it, which must hold every tracked file of the package
and nothing else. In an environment with the newest versions (by pip) and in one with the lowest that pyproject.toml
admits (by uv), with an empty home and empty caches, `rankwise` shows its help, runs the demo, and takes a CSV file to
predictions. The sizes are those of the installed packages: torch and transformers alone, and with rankwise. pipx and
uvx run the wheel without installing it. `make release` brings the tools.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from telling import parser_of, tell

TOOLS = Path(".venv-supply/bin").resolve()
PARTS = ("newest", "lowest", "pipx", "uvx")
MB = 1_000_000
ASKED = ("Where is my parcel?", "I want my money back.", "The app crashes when I log in.")
OF_OWN_ROWS = (
    ("data", "check", "own.csv", "--model", "minilm"),
    ("train", "--model", "minilm", "--data", "own.csv", "--run", "own", "--steps", "20"),
    ("evaluate", "own"),
    ("predict", "own", "--data", "own.csv", "--out", "predicted.csv"),
)


def done(*words: str | Path, **options: Any) -> str:
    print("$", " ".join(Path(word).name if "/" in str(word) else str(word) for word in words), flush=True)
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    if ended.returncode:
        raise SystemExit(f"exit code {ended.returncode}:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
    return ended.stdout


def built(dist: Path) -> Path:
    for earlier in dist.glob("rankwise-*"):
        earlier.unlink()
    done(TOOLS / "uv", "build", "--quiet", "--out-dir", dist)
    done(TOOLS / "twine", "check", "--strict", *dist.glob("rankwise-*"))
    (wheel,) = dist.glob("*.whl")
    done(TOOLS / "check-wheel-contents", wheel)
    tracked = set(done("git", "ls-files", "src/rankwise").replace("src/", "").split())
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if tracked != held:
        raise SystemExit(f"the wheel and the repository differ in {sorted(tracked ^ held)}.")
    return wheel


def megabytes(environment: Path) -> float:
    (packages,) = environment.glob("lib/*/site-packages")
    return sum(file.stat().st_size for file in packages.rglob("*") if file.is_file()) / MB


def newest(folder: Path, wheel: Path) -> dict[str, float]:
    done(TOOLS / "uv", "venv", "--quiet", "--seed", "--python", "3.11", folder)
    pip = (folder / "bin/python", "-m", "pip", "install", "--quiet")
    done(*pip, "torch", "transformers")
    alone = megabytes(folder)
    done(*pip, wheel)
    return {"torch_and_transformers_mb": alone, "with_rankwise_mb": megabytes(folder)}


def lowest(folder: Path, wheel: Path) -> dict[str, float]:
    done(TOOLS / "uv", "venv", "--quiet", "--python", "3.11", folder)
    done(TOOLS / "uv", "pip", "install", "--quiet", "--python", folder / "bin/python", "--resolution", "lowest-direct",
         wheel)  # fmt: skip
    return {"with_rankwise_mb": megabytes(folder)}


def used(environment: Path, home: Path) -> dict[str, Any]:
    """A first visit: nothing of this user's is seen."""
    home.mkdir()
    own = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "HF_HOME": home / "hub", "TMPDIR": home}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    options = {"cwd": home, "env": kept | {name: str(path) for name, path in own.items()}}
    with (home / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"{text} It is order {number}.", text.split()[0]] for number in range(40) for text in ASKED)
    python, rankwise = environment / "bin/python", environment / "bin/rankwise"
    assert str(environment) in done(python, "-c", "import rankwise; print(rankwise.__file__)", **options)
    imported = [_seconds(python, "-c", "import rankwise", **options) for _ in range(7)]
    alone = [_seconds(python, "-c", "pass", **options) for _ in range(7)]
    done(rankwise, "--help", **options)
    return {
        "import_seconds": statistics.median(imported) - statistics.median(alone),
        "demo_seconds": _seconds(rankwise, "demo", **options),
        "own_csv_seconds": sum(_seconds(rankwise, *words, **options) for words in OF_OWN_ROWS),
        "predicted_rows": len((home / "predicted.csv").read_text().splitlines()) - 1,
    }


def _seconds(*words: str | Path, **options: Any) -> float:
    started = time.perf_counter()
    done(*words, **options)
    return time.perf_counter() - started


def show(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=2))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    asked = parser.parse_args()
    wheel = built(Path("dist").resolve())
    found: dict[str, Any] = {"wheel": wheel.name, "wheel_mb": wheel.stat().st_size / MB}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in asked.parts.split(","):
            if part in ("newest", "lowest"):
                sizes = {"newest": newest, "lowest": lowest}[part](folder / part, wheel)
                found[part] = sizes | used(folder / part, folder / f"home-{part}")
            else:
                spec = {"pipx": ("pipx", "run", "--spec"), "uvx": ("uvx", "--from")}[part]
                elsewhere = os.environ | {"PIPX_HOME": str(folder / "pipx")}
                ran = done(TOOLS / spec[0], *spec[1:], wheel, "rankwise", "--version", env=elsewhere)
                found[part] = ran.strip()
    tell(asked, found, show)


if __name__ == "__main__":
    main()
