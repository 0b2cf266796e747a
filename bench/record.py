"""A finished run as a result that can be kept: the command, the numbers and the machine, as JSON and as a page.

    python bench/record.py runs/NAME bench/results/TITLE

Everything is read from the run's own files. The folder of the data sets is written as $RANKWISE_DATA.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rankwise.runs.snapshot import RunSnapshot

PAGE = """# {title}

`{command}`

| | |
|---|---|
| data | {data_file}, {training_sequences} rows trained on, {validation_sequences} held out, {rows_too_long} too long |
| tokens an epoch | {tokens:,}, of which {loss_tokens:,} learned |
| base model | {base} |
| trainable parameters | {trainable_parameters:,} of {total_parameters:,} |
| steps, learning rate | {steps}, {learning_rate:g} |
| held-out loss before | {validation_loss_before} |
| held-out loss after | {validation_loss_after} |
| change | {change} |
| training | {train_seconds:.0f} s, {tokens_per_second:.0f} tokens/s, peak memory {peak_gb:.2f} GB |
| adapter | {adapter_mb:.2f} MB |
| machine | {processor}, {cores} cores, {memory_gb:.0f} GB |
| versions | {versions} |

Losses are nats per learned token.
"""


def portable(text: str) -> str:
    folder = os.environ.get("RANKWISE_DATA")
    return text.replace(folder, "$RANKWISE_DATA") if folder else text


def record(run_name: str) -> dict[str, Any]:
    manifest = RunSnapshot.finished(run_name).manifest
    kept = json.loads(portable(manifest.model_dump_json()))
    kept["machine"].pop("system")
    return kept


def page(title: str, kept: dict[str, Any]) -> str:
    results, data, machine, base = kept["results"], kept["data"], kept["machine"], kept["base_model"]
    before, after = results["validation_loss_before"], results["validation_loss_after"]
    measured = before is not None and after is not None
    return PAGE.format(
        title=title,
        command=" ".join(kept["command"]),
        data_file=data["path"],
        base=f"{base['name']} ({base['source']}), {base['dtype']} on {base['device']}",
        learning_rate=kept["learning_rate"],
        change=f"{after - before:+.4f}" if measured else "not measured",
        peak_gb=results["peak_rss_bytes"] / 1e9,
        adapter_mb=results["adapter_bytes"] / 1e6,
        memory_gb=machine["memory_bytes"] / 1e9,
        versions=", ".join(f"{name} {found}" for name, found in kept["versions"].items()),
        processor=machine["processor"],
        cores=machine["cores"],
        **{key: value for key, value in data.items() if key not in {"path", "system", "format"}},
        **{
            key: value
            for key, value in results.items()
            if key not in {"validation_loss_before", "validation_loss_after"}
        },
        validation_loss_before=f"{before:.4f}" if measured else "not measured",
        validation_loss_after=f"{after:.4f}" if measured else "not measured",
    )


def main() -> None:
    run_name, stem = sys.argv[1], Path(sys.argv[2])
    kept = record(run_name)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(kept, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page(stem.name, kept))
    print(page(stem.name, kept))


if __name__ == "__main__":
    main()
