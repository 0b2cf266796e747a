"""What `rankwise verify` finds: 300 changes of signed folders, their bases and their rows; is each one named?

    python bench/signed_faults.py --out bench/results/signed-faults-DATE

Six results of tiny models (an adapter as peft and as portable, a merged model, full fine-tuning, a classifier, a
classifier of images) are signed. Then one thing at a time is changed at random: a byte is flipped, a file is cut,
extended, removed, renamed or added, a value of a JSON file is replaced, a row is changed, added or removed. A change is
named if the verdict is `changed`, with exit code 2, and has the name of the file, the part of the base, or the line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

from fixed_runs import write_model

import conftest  # noqa: F401  for its environment
from kit.command import done, rankwise
from kit.library import Library

RESULTS = {
    "peft": ("lora", "rows.jsonl", "tiny-llama"), "portable": ("adalora", "rows.jsonl", "tiny-llama"),
    "merged": ("lora", "rows.jsonl", "tiny-llama"), "full": ("short-full", "rows.jsonl", "tiny-llama"),
    "labels": ("films", "films.jsonl", "bert"), "images": ("pictures", "pictures", "vit"),
}  # fmt: skip
KINDS = {
    "weights": ("*.safetensors",),
    "settings": ("training.json", "adapter_config.json", "config.json", "base_model.json"),
    "tokenizer": ("tokenizer*.json", "preprocessor_config.json"),
    "template": ("chat_template.jinja", "data_report.json"),
    "card": ("README.md",),
}  # fmt: skip
Change = Callable[[Path, random.Random], str]
"""Makes a change and returns what has to be named."""


def flip(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return file.name


def cut(file: Path, chance: random.Random) -> str:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])
    return file.name


def extend(file: Path, chance: random.Random) -> str:
    file.write_bytes(file.read_bytes() + chance.randbytes(chance.randint(1, 9)))
    return file.name


def remove(file: Path, chance: random.Random) -> str:
    file.unlink()
    return file.name


def rename(file: Path, chance: random.Random) -> str:
    file.rename(file.with_name(f"old-{file.name}"))
    return f"old-{file.name}"


def edit(file: Path, chance: random.Random) -> str:
    """Replace a value somewhere in a JSON file; another file is flipped."""
    if file.suffix != ".json":
        return flip(file, chance)
    content = part = json.loads(file.read_bytes())
    while True:
        key = chance.choice(list(part) if isinstance(part, dict) else range(len(part)))
        if not isinstance(part[key], dict | list) or not part[key]:
            break
        part = part[key]
    part[key] = "another" if part[key] != "another" else None
    file.write_text(json.dumps(content))
    return file.name


CHANGES: tuple[Change, ...] = (flip, cut, extend, remove, rename, edit)


def change_folder(kind: str, folder: Path, chance: random.Random) -> str | None:
    files = [file for pattern in KINDS[kind] for file in sorted(folder.glob(pattern))]
    return chance.choice(CHANGES)(chance.choice(files), chance) if files else None


def add(folder: Path, chance: random.Random) -> str:
    name = chance.choice(("added_tokens.json", "modeling.py", ".hidden", "pytorch_model.bin", "NOTES.md"))
    (folder / name).write_bytes(b"x")
    return name


def change_base(folder: Path, chance: random.Random) -> str:
    """A part that decides what the model does."""
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    file = folder / chance.choice([name for name in names if (folder / name).exists()])
    name = chance.choice((flip, extend, edit))(file, chance)
    return "weights" if name == "model.safetensors" else name


def change_rows(rows: Path, chance: random.Random) -> str:
    """A row is changed, added or removed; of images, a file."""
    if rows.is_dir():
        file = chance.choice(sorted(rows.rglob("*.png")))
        other = chance.choice([one for one in sorted(rows.rglob("*.png")) if one.read_bytes() != file.read_bytes()])
        shutil.copy(other, file)
        return f"{file} was changed"
    lines = rows.read_text().splitlines(keepends=True)
    at, how = chance.randrange(len(lines)), chance.choice(("changed", "added", "missing"))
    new = json.dumps({key: f"{value} {chance.random()}" for key, value in json.loads(lines[at]).items()}) + "\n"
    rows.write_text(
        "".join(lines[:at] + {"changed": [new], "added": [new, lines[at]], "missing": []}[how] + lines[at + 1 :])
    )
    return f"row {at + 1} of {rows} is missing" if how == "missing" else f"{rows}:{at + 1} was {how}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--changes", type=int, default=300)
    options = parser.parse_args()
    out, chance, results = options.out.absolute(), random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_model(home / "base")
        Library(home / "library", home / "base").lay_out(home / "here", *{run for run, _, _ in RESULTS.values()})
        os.chdir(home / "here")
        prepare()
        for number in range(options.changes):
            result = list(RESULTS)[number % len(RESULTS)]
            kind = (*KINDS, "base", "rows", "added")[number // len(RESULTS) % (len(KINDS) + 3)]
            results.append(one_change(result, kind, chance))
    missed = [one for one in results if not one["named"]]
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    counts, named = Counter(one["kind"] for one in results), Counter(one["kind"] for one in results if one["named"])
    table = "\n".join(f"| {kind} | {count} | {named[kind]} |" for kind, count in counts.items())
    many = f"{len(results) - len(missed)} of {len(results)} are named."
    head = f"# Changes of signed results\n\n`python bench/signed_faults.py`\n\n{many}\n\n| what | changes | named |"
    text = f"{head}\n|---|---|---|\n{table}\n"
    out.with_suffix(".md").write_text(text)
    print(text, *missed, sep="\n")


def prepare() -> None:
    """The signed results, and a key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    Path("key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    Path("key").chmod(0o600)
    Path("key.pub").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    for result, (run, _, _) in RESULTS.items():
        format = {"portable": "portable", "merged": "merged", "full": "merged"}.get(result, "peft")
        done("export", run, "--to", f"signed/{result}", "--format", format)
        done("sign", f"signed/{result}", "--key", "key")


def one_change(result: str, kind: str, chance: random.Random) -> dict:
    _, rows, base = RESULTS[result]
    folder = Path("signed") / result
    for place in (folder, Path(rows), Path(base)):
        if not (kept := Path("kept") / place).exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(place, kept) if place.is_dir() else shutil.copy(place, kept)
    words = ["verify", folder, "--key", "key.pub", "--base-model", base, "--data", rows]
    words += ["--data", "apart.jsonl"] if result == "portable" else []
    good = rankwise(*words)
    assert good.exit_code == 0 and "verified by" in good.stdout, good.output
    own = {"base": (Path(base), change_base), "rows": (Path(rows), change_rows), "added": (folder, add)}
    place, change = own.get(kind, (folder, lambda place, chance: change_folder(kind, place, chance)))
    if (wanted := change(place, chance)) is None:  # such a result has no such file
        wanted = add(folder, chance)
    found = rankwise(*words)
    for place in (folder, Path(rows), Path(base)):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        kept = Path("kept") / place
        shutil.copytree(kept, place) if kept.is_dir() else shutil.copy(kept, place)
    named = found.exit_code == 2 and wanted in found.output and "Traceback" not in found.output
    return {"result": result, "kind": kind, "wanted": wanted, "named": named, "said": found.output[-300:]}


if __name__ == "__main__":
    main()
