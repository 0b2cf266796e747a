"""Damaged, fuzzed, endless and pickled adapters: what `rankwise` makes of them, and what PEFT makes of the same files.

    python bench/damaged_adapters.py [--mutants 2000] [--only fuzz pickles …] [--json] [--out bench/results/TITLE]

A tiny random Llama is trained for a few steps; its run is damaged in every way of tests/kit/damaged.py, inside the run
and as a folder copied out of it. `rankwise generate` must end with exit code 2 and one line. A foreign folder has no
recorded hashes, so three kinds of damage cannot be known there; what is said of them is listed. The base model's
files are hashed before and after. Times are those of reading the adapter, with the model loaded before.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from telling import parser_of, tell

PARTS = ("damaged", "expressions", "fuzz", "pickles")


def hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def prepare(home: Path) -> None:
    """A base model, rows, and a finished run named good."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from typer.testing import CliRunner

    from conftest import TEXT, tiny_model
    from rankwise.cli.main import app

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[2])
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tiny_model("llama", vocab=len(fast)).save_pretrained(home / "base")
    fast.save_pretrained(home / "base")
    rows = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(8)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "--model", "./base", "--data", "rows.jsonl", "--run", "good", "--steps", "10", "--rank", "4",
             "--targets", "q_proj,v_proj", "--learning-rate", "0.01", "--batch-size", "2"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def generated(name: str) -> dict[str, Any]:
    """`rankwise generate` with a run or a folder."""
    from typer.testing import CliRunner

    from rankwise.cli.main import app

    began = time.perf_counter()
    result = CliRunner().invoke(app, ["generate", name, "--prompt", "What is land 1?", "--max-new-tokens", "1"])
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return {
        "exit_code": result.exit_code, "seconds": time.perf_counter() - began, "stderr": lines,
        "traceback": "Traceback" in result.output or (result.exit_code not in (0, 2)),
    }  # fmt: skip


def read(folder: Path) -> tuple[str, float, float]:
    """What reading the adapter over a loaded model says, and the seconds of this process and of the wall."""
    from conftest import tiny_model
    from rankwise.adapters.formats.peft import lay_peft
    from rankwise.errors import RankwiseError

    model, began, wall, said = tiny_model("llama", vocab=400), time.process_time(), time.perf_counter(), ""
    try:
        lay_peft(model, folder, callback=lambda event: None)
    except RankwiseError as error:
        said = str(error)
    return said, time.process_time() - began, time.perf_counter() - wall


def damaged_runs(home: Path, damages: list[Any]) -> list[dict[str, Any]]:
    usual = set(generated("good")["stderr"])
    unrecorded = set(generated("foreign")["stderr"])
    rows = []
    for at, damage in enumerate(damages):
        run, folder = f"damaged-{at}", home / f"foreign-{at}"
        shutil.copytree(home / "runs" / "good", home / "runs" / run)
        shutil.copytree(home / "foreign", folder)
        damage.apply(home / "runs" / run / "adapter")
        damage.apply(folder)
        inside, outside = generated(run), generated(folder.name)
        said = [line for line in outside["stderr"] if line not in unrecorded | usual]
        _, seconds, wall = read(folder)
        rows.append({
            "damage": damage.name, "known": damage.known, "inside_exit": inside["exit_code"],
            "inside_lines": len(inside["stderr"]), "inside": (inside["stderr"] or [""])[-1][:160],
            "outside_exit": outside["exit_code"], "outside_lines": len(said), "outside": (said or [""])[0][:160],
            "outcome": "refused" if outside["exit_code"] == 2 else "said" if said else "loaded without a word",
            "traceback": inside["traceback"] or outside["traceback"], "read_seconds": seconds, "read_wall": wall,
        })  # fmt: skip
    return rows


def with_peft(home: Path, rows: list[dict[str, Any]]) -> None:
    """PEFT's results on the same folders, in a child of its own."""
    script = Path(__file__).parent / "damaged_with_peft.py"
    folders = [str(home / f"foreign-{at}") for at in range(len(rows))]
    command = [sys.executable, str(script), str(home / "base"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    for row, folder in zip(rows, folders, strict=True):
        row["peft"] = results[folder]


def fuzzed(home: Path, mutants: int) -> dict[str, Any]:
    """Mutants of header bytes, settings and key names; accepted ones are compared with the parsed header."""
    from adapters.test_damaged_adapters import assert_sound, mutant
    from rankwise.errors import RankwiseError

    good, folder = home / "foreign", home / "mutant"
    folder.mkdir()
    config, weights = (good / "adapter_config.json").read_bytes(), (good / "adapter_model.safetensors").read_bytes()
    chance, found, slowest, untyped = random.Random(2026), Counter[str](), 0.0, list[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(mutants):
        parts = mutant(chance, config, weights)
        (folder / "adapter_config.json").write_bytes(parts[0])
        (folder / "adapter_model.safetensors").write_bytes(parts[1])
        began = time.process_time()
        try:
            found["accepted, equal to the header" if assert_sound(folder) else "refused"] += 1
        except RankwiseError:
            found["refused"] += 1
        except BaseException as error:
            untyped.append(f"{type(error).__name__}: {str(error)[:100]}")
        slowest = max(slowest, time.process_time() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "mutants": mutants,
        **found,
        "untyped_errors": untyped,
        "slowest_seconds": slowest,
        "memory_grown_mb": grown,
    }


def endless(home: Path) -> list[dict[str, Any]]:
    """Twenty expressions as a rank pattern; the seconds of this process."""
    from kit.damaged import REGEXES, config

    folder, rows = home / "expression", []
    shutil.copytree(home / "foreign", folder)
    for pattern in REGEXES:
        row: dict[str, Any] = {"pattern": pattern}
        for key in ("rank_pattern", "alpha_pattern", "target_modules"):
            shutil.copy(home / "foreign" / "adapter_config.json", folder)
            config(**{key: [pattern, "q_proj", "v_proj"] if key == "target_modules" else {pattern: 4}})(folder)
            said, row[key], _ = read(folder)
            row["outcome"] = "refused" if said else "matched within the limit"
        rows.append(row)
    return rows


def expressions_with_peft(home: Path, rows: list[dict[str, Any]]) -> None:
    from kit.damaged import config

    folders = []
    for at, row in enumerate(rows):
        folder = home / f"expression-{at}"
        shutil.copytree(home / "foreign", folder)
        config(rank_pattern={row["pattern"]: 4})(folder)
        folders.append(str(folder))
    script = Path(__file__).parent / "damaged_with_peft.py"
    done = subprocess.run(
        [sys.executable, str(script), str(home / "base"), *folders], capture_output=True, text=True, check=True
    )
    results = json.loads(done.stdout.splitlines()[-1])
    for row, folder in zip(rows, folders, strict=True):
        row["peft"] = results[folder]["outcome"]


def pickled(home: Path) -> dict[str, Any]:
    """Twelve payloads before an audit hook and a canary, in a child."""
    from adapters.test_damaged_adapters import CHILD, PAYLOADS, payload

    canary, paths = home / "canary", []
    for name in PAYLOADS:
        folder = home / f"pickle-{name.replace('.', '-')}"
        shutil.copytree(home / "foreign", folder)
        (folder / "adapter_model.safetensors").unlink()
        paths.append(str(payload(name, folder, canary)))
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True)
    *lines, heard = done.stdout.splitlines()
    refused = sum(line.startswith("refused") for line in lines)
    return {"payloads": len(PAYLOADS), "refused": refused, "audit_events": heard, "canary_ran": canary.exists()}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that are asked for; the others are taken from an earlier result at --out."""
    from kit.damaged import DAMAGES, EXTRA

    earlier = options.out.with_suffix(".json") if options.out else None
    result = json.loads(earlier.read_text()) if earlier and earlier.is_file() and options.only else {}
    parts = options.only or PARTS
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        home = Path(folder)
        prepare(home)
        shutil.copytree(home / "runs" / "good" / "adapter", home / "foreign")
        for name in ("base_model.json", "data_report.json"):  # as PEFT would have written the folder
            (home / "foreign" / name).unlink(missing_ok=True)
        base = hash_of(home / "base")
        if "damaged" in parts:
            every = [*DAMAGES, *EXTRA]
            rows = damaged_runs(home, [one for one in every if not options.damage or one.name in options.damage])
            with_peft(home, rows)
            named = {row["damage"]: row for row in [*result.get("damaged", []), *rows]}
            result |= {"damaged": [named[one.name] for one in every], "forty": len(DAMAGES)}
        if "expressions" in parts:
            result["expressions"] = endless(home)
            expressions_with_peft(home, result["expressions"])
        if "fuzz" in parts:
            result["fuzz"] = fuzzed(home, options.mutants)
        if "pickles" in parts:
            result["pickles"] = pickled(home)
        unchanged = hash_of(home / "base") == base and result.get("base_unchanged", True)
        return without_places(result | {"base_unchanged": unchanged})


def without_places(result: dict[str, Any]) -> dict[str, Any]:
    """The same without the temporary folders of this machine."""
    return json.loads(re.sub(re.escape(gettempdir()) + r"/\w+", "FOLDER", json.dumps(result)))


def of_ours(row: dict[str, Any]) -> str:
    """What became of a foreign folder. That its base is not recorded is said of each, damaged or not."""
    if row["outcome"] == "refused":
        return "refused" if row["known"] else "refused (its base is not there)"
    if row["outside_lines"] == 1 and "does not record" in row["outside"]:
        return "loaded (cannot be known), its unrecorded base said"
    return f"{row['outcome']} (cannot be known)"


def of_peft(result: dict[str, Any]) -> str:
    """PEFT's outcome in a few words."""
    if result["outcome"] == "refused":
        return f"refused ({result['error']})"
    if result["outcome"] != "loaded":
        return f"{result['outcome']} after {result['seconds']:.0f} s" if "seconds" in result else result["outcome"]
    changed = ", base changed" if result["base_changed"] else ""
    return ("loaded with a warning" if result["warnings"] else "loaded without a word") + changed


def page(result: dict[str, Any]) -> str:
    rows, forty, fuzz, pickles = result["damaged"], result["forty"], result["fuzz"], result["pickles"]
    lines = [
        "# Damaged adapters",
        "",
        *summary(result),
        "",
        "| damage | in its run | as a foreign folder | PEFT |",
        "|---|---|---|---|",
    ]
    for at, row in enumerate(rows):
        if at == forty:
            lines.append("| **eight more** | | | |")
        inside = "refused" if row["inside_exit"] == 2 else "loaded"
        lines.append(f"| {row['damage']} | {inside} | {of_ours(row)} | {of_peft(row['peft'])} |")
    lines += ["", "| expression in rank_pattern | rankwise, processor seconds | PEFT |", "|---|---|---|"]
    for row in result["expressions"]:
        pattern = row["pattern"].replace("|", "\\|")
        lines.append(f"| `{pattern}` | {row['rank_pattern']:.3f} | {row['peft']} |")
    assert fuzz and pickles
    return "\n".join(lines) + "\n"


def summary(result: dict[str, Any]) -> list[str]:
    rows, fuzz, pickles = result["damaged"], result["fuzz"], result["pickles"]
    first = rows[: result["forty"]]
    inside = sum(row["inside_exit"] == 2 and row["inside_lines"] == 1 for row in first)
    known = [row for row in first if row["known"]]
    peft = Counter(of_peft(row["peft"]).partition(" (")[0] for row in first)
    slowest = max(
        max(row[key] for key in ("rank_pattern", "alpha_pattern", "target_modules")) for row in result["expressions"]
    )
    hung = sum(row["peft"] == "stopped" for row in result["expressions"])
    return [
        f"- inside a run, of {len(first)}: {inside} refused with exit code 2 and one line",
        f"- as foreign folders: {sum(row['outcome'] == 'refused' for row in known)} of the {len(known)} that can be "
        f"known refused, {sum(row['outcome'] == 'refused' for row in first)} of {len(first)} in all",
        f"- PEFT on the same {len(first)} folders: " + ", ".join(f"{count} {kind}" for kind, count in peft.items()),
        f"- slowest reading: {max(row['read_seconds'] for row in rows):.2f} s of processor time, "
        f"{max(row['read_wall'] for row in rows):.2f} s; tracebacks: {sum(row['traceback'] for row in rows)}; "
        f"base model {'unchanged' if result['base_unchanged'] else 'CHANGED'} by hash",
        f"- {fuzz['mutants']:,} mutants: {fuzz.get('refused', 0):,} refused, "
        f"{fuzz.get('accepted, equal to the header', 0):,} accepted and equal to the parsed header byte for byte, "
        f"{len(fuzz['untyped_errors'])} untyped errors; slowest {fuzz['slowest_seconds']:.3f} s, memory grown by "
        f"{fuzz['memory_grown_mb']:.0f} MB",
        f"- {len(result['expressions'])} endless expressions in three settings: at most {slowest:.3f} s of processor "
        f"time; PEFT was stopped after 20 s for {hung}",
        f"- {pickles['payloads']} pickles: {pickles['refused']} refused; audit hook {pickles['audit_events']}; the "
        f"canary {'RAN' if pickles['canary_ran'] else 'did not run'}",
    ]  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts; keep the others of --out")
    parser.add_argument("--damage", nargs="+", help="measure these kinds of damage alone, of the part damaged")
    options = parser.parse_args()
    result = measured(options)
    tell(options, result, lambda found: print("\n".join(summary(found))))
    if options.out:
        options.out.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    main()
