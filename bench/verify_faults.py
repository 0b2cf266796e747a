"""What verification finds: six planted faults in several exports each, and no alarm in thirty good exports.

    python bench/verify_faults.py --out bench/results/verify-faults-DATE

Thirty random adapters (rank patterns, alpha patterns, AdaLoRA, layers of rank 0, embeddings, Conv1D, DoRA where it can
be carried) are exported as
peft, portable and merged, and verified as they are. Then each fault is planted into copies of the first fifteen. The
engines run in one process, which saves their start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import conftest
import rankwise.exporting.verification as verification
from kit import planted
from rankwise.commands.export import export
from rankwise.errors import RankwiseError
from rankwise.exporting.engine_process import engines_for
from rankwise.exporting.verification import Export, Verifying
from rankwise.methods.artifact import open_artifact

FORMATS = ("portable", "merged", "peft")
verification.ask = planted.ask_here


def verdict(adapter: Path, folder: Path, format: str, references: dict) -> str | None:
    """None where every engine is right; otherwise why not."""
    artifact = open_artifact(str(adapter))
    export = Export(str(folder), format)
    if adapter not in references:
        references[adapter] = verification._reference(artifact, export, Verifying("yes"), 20, lambda event: None)
    engine, _ = engines_for(format, [sys.executable])[0]
    files = {"export": str(folder)}
    one = verification._verdict(engine, "", references[adapter], export, Verifying("yes"), files, lambda event: None)
    return None if one.status == "right" else one.why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=30)
    options = parser.parse_args()
    tokenizer = conftest.hub_tokenizer._get_wrapped_function()()
    results = {"good": [], "faults": []}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        names = list(planted.KINDS)
        references: dict = {}
        for number in range(options.adapters):
            kind = names[number % len(names)]
            architecture, settings = planted.KINDS[kind]
            base = planted.base_folder(home, architecture, tokenizer)
            other = planted.base_folder(home, architecture, tokenizer, seed=1)
            adapter = planted.random_adapter(
                home / f"adapter-{number}", base, architecture, tokenizer, number, **settings
            )
            format = (
                FORMATS[(number + number // len(names)) % len(FORMATS)]
                if kind != "DoRA"
                else ("merged", "peft")[number // len(names) % 2]
            )
            folder = home / f"export-{number}"
            export(str(adapter), folder, format, verifying=Verifying("no"))
            why = verdict(adapter, folder, format, references)
            results["good"].append({"adapter": kind, "format": format, "verdict": why or "right"})
            print(number, kind, format, why or "right", flush=True)
            if kind in ("DoRA", "embeddings") and format == "merged":
                continue  # a tied or rescaled weight has no change that a fault could double
            for fault, plant in planted.FAULTS.items() if number < 15 else ():
                copy = home / "copy"
                shutil.copytree(folder, copy)
                try:
                    plant(copy, base, other)
                except StopIteration:
                    shutil.rmtree(copy)
                    continue  # no square layer
                try:
                    why = verdict(adapter, copy, format, references)
                except RankwiseError as error:
                    why = str(error)
                shutil.rmtree(copy)
                results["faults"].append(
                    {"fault": fault, "adapter": kind, "format": format, "verdict": why or "MISSED"}
                )
                if why is None:
                    print("MISSED", fault, kind, format, flush=True)
    write(options.out, results)


def write(out: Path, results: dict) -> None:
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    alarms = sum(one["verdict"] != "right" for one in results["good"])
    lines = [f"| good exports | {len(results['good'])} | {alarms} false alarms |"]
    for fault in planted.FAULTS:
        own = [one for one in results["faults"] if one["fault"] == fault]
        lines.append(f"| {fault} | {len(own)} | {sum(one['verdict'] != 'MISSED' for one in own)} found |")
    table = "\n".join(["| what | exports | result |", "|---|---|---|", *lines])
    out.with_suffix(".md").write_text(f"# Planted faults in exports\n\n`python bench/verify_faults.py`\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
