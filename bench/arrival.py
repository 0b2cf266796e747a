"""The demo's adapter in other engines: how many of the demo's 100 test rows are answered as by ours in float32.

    python bench/arrival.py ADAPTER --out bench/results/arrival-DATE [--engine-python PATH …] [--formats peft,merged]

ADAPTER is the finished run of `rankwise demo`, or its adapter's folder. Our own answers are computed once and stored
beside the exports. Each row of the result is one format in one engine, with the share of equal answers and the mean and
largest absolute difference of the log-probabilities of our answers' tokens, in nats.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import asdict
from pathlib import Path

from rankwise.commands.demo import LONGEST_ANSWER, demo_rows
from rankwise.commands.export import export
from rankwise.exporting.agreement import compare
from rankwise.exporting.engine_process import EngineFailure, ask, engines_for, interpreters
from rankwise.exporting.reference import Reference, ReferencePrompt, ReferenceQuestion, open_for_export, reference_to
from rankwise.exporting.verification import Verifying
from rankwise.inference.generate import asking_ids
from rankwise.methods.artifact import open_artifact
from rankwise.rows.text.example import Message

FORMATS = ("portable", "peft", "merged")


def reference(adapter: str, work: Path, rows: int) -> Reference:
    """Our own answers to the demo's test rows, in float32, from a file if they were computed before."""
    file = work / f"reference-{rows}.json"
    if file.is_file():
        return read(json.loads(file.read_text()))
    tuned = open_for_export(open_artifact(adapter))
    prompts = []
    for line in demo_rows()[1][:rows]:
        messages = [Message(**message) for message in json.loads(line)["messages"]]
        ids = tuple(asking_ids(tuned.model, messages[:-1]))
        prompts.append(ReferencePrompt(tuned.model.tokenizer.decode(ids), ids))
    began = time.perf_counter()
    ours = reference_to(tuned, prompts, 1.0, LONGEST_ANSWER, lambda event: print(event, flush=True))
    print(f"ours: {time.perf_counter() - began:.0f} s", flush=True)
    file.write_text(json.dumps(asdict(ours)))
    return ours


def read(facts: dict) -> Reference:
    """What `reference` wrote."""
    questions = tuple(ReferenceQuestion(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()})
                      for one in facts["questions"])  # fmt: skip
    conversations = tuple((tuple(Message(**one) for one in messages), tuple(ids))
                          for messages, ids in facts["conversations"])  # fmt: skip
    return Reference(**{**facts, "questions": questions, "conversations": conversations})


def written(adapter: str, format: str, dtype: str | None, work: Path) -> Path:
    folder = work / (format if dtype is None else f"{format}-{dtype}")
    if not folder.exists():
        export(adapter, folder, format, dtype=dtype, verifying=Verifying("no"))
    return folder


def measured(
    ours: Reference, folder: Path, format: str, number_format: str, pythons: list[str], only: list[str]
) -> list[dict]:
    """In each engine. A folder with "-ir" behind the name of the export, or of the base, is its form for OpenVINO."""
    results = []
    ir = folder.with_name("base-ir" if format == "portable" else f"{folder.name}-ir")
    for engine, python in engines_for(format, pythons):
        if only and engine.name not in only:
            continue
        began = time.perf_counter()
        request = {"export": str(folder.absolute()), "format": format, "ir": str(ir.absolute()), **ours.request}
        replies = ask(engine, python, request, 7200)
        seconds = time.perf_counter() - began
        if isinstance(replies, EngineFailure):
            results.append({"engine": engine.name, "format": format, "weights": number_format, "failure": replies.why})
        else:
            verdict = compare(ours, replies, number_format)
            results.append({"engine": verdict.engine, "format": format, "weights": number_format, "seconds": seconds,
                            **verdict.summary()})  # fmt: skip
        print(json.dumps(results[-1]), flush=True)
        gc.collect()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/arrival"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--dtypes", default="float32", help="of merged models")
    parser.add_argument("--engine-python", action="append", default=[])
    parser.add_argument("--engine", action="append", default=[], help="only this one; may be repeated")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ours = reference(options.adapter, options.work, options.rows)
    file = options.out.with_suffix(".json")
    results = json.loads(file.read_text())["results"] if file.is_file() else []
    for format in options.formats.split(","):
        for dtype in options.dtypes.split(",") if format == "merged" else [None]:
            folder = written(options.adapter, format, dtype, options.work)
            new = measured(ours, folder, format, dtype or "float32", interpreters(options.engine_python),
                           options.engine)  # fmt: skip
            keys = [(one["engine"], one["format"], one["weights"]) for one in new]
            results = [one for one in results if (one["engine"], one["format"], one["weights"]) not in keys] + new
            write(file, results, ours)


def write(file: Path, results: list[dict], ours: Reference) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"rows": len(ours.questions), "change": ours.change, "results": results}
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    head = "| engine | format | weights | answers equal | mean difference | largest difference | verdict |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for one in results:
        if "failure" in one:
            lines.append(f"| {one['engine']} | {one['format']} | {one['weights']} | | | | {one['failure']} |")
            continue
        near = f" (+{one['answers_near']} near ties)" if one["answers_near"] else ""
        mean, largest = (
            "not given" if value is None else f"{value:.2g}"
            for value in (one["mean_difference"], one["max_difference"])
        )
        lines.append(
            f"| {one['engine']} {one['version']} | {one['format']} | {one['weights']} | {one['answers_equal']} of "
            f"{one['questions']}{near} | {mean} | {largest} | {one['status']} |"
        )
    change = "" if ours.change is None else f" The adapter itself changes them by {ours.change:.2g} on average."
    file.with_suffix(".md").write_text(
        "# The demo's adapter in other engines\n\n`python bench/arrival.py`\n\n" + "\n".join(lines)
        + f"\n\nDifferences are of the log-probabilities of our answers' tokens, in nats.{change}\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
