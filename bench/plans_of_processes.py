"""What plans say of 8 and 64 H100s: a table for docs/several-processes.md. Nothing is measured.

    python bench/plans_of_processes.py [--batch-size 128] [--json] [--out TITLE]

Each row is `rankwise plan --model MODEL --device h100 --batch-size 128 --processes N …` without rows, so that 128
sequences of 1,024 tokens make a step: by NVLink in one machine, by NVLink in 8 machines with 400 Gbit/s between them,
and by PCIe in one machine.
"""

from __future__ import annotations

from typing import Any

from telling import parser_of, tell

from rankwise.cli.plan_numbers import size_text
from rankwise.config.planning import Planned
from rankwise.forward.plan import plan
from rankwise.planning.processes import Processes
from rankwise.planning.several import several_of

MODELS = ("smollm2-135m", "llama-3-8b", "llama-2-13b")
METHODS: dict[str, dict[str, Any]] = {"lora": {"method": "lora", "rank": 16}, "full": {"method": "full"}}
GROUPS = {
    "8, NVLink": Processes(8), "64 in 8 machines, NVLink and 400 Gbit/s": Processes(64, 8, gigabits=400),
    "8, PCIe": Processes(8, link="pcie"),
}  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    chosen = parser.parse_args()
    rows = [
        row_of(model, method, group, chosen.batch_size) for model in MODELS for method in METHODS for group in GROUPS
    ]
    tell(chosen, {"batch_size": chosen.batch_size, "rows": rows}, show)


def row_of(model: str, method: str, group: str, batch: int) -> dict[str, Any]:
    settings = {"model": model, "adapter": METHODS[method], "training": {"batch_size": batch}}
    made = plan(Planned.model_validate(settings), device="h100", processes=GROUPS[group])
    several, told = several_of(made), made.duration
    assert several is not None and told is not None, "an H100's speed is known"
    base = several.sharded
    return {
        "model": model, "method": method, "processes": group, "peak": made.forecast.peak, "fits": made.fit.fits,
        "gradients": several.exchange.gradients, "exchange_seconds": vars(several.exchange.seconds),
        "step_seconds": vars(told.step), "speedup": several.speedup, "sharded_peak": base and base.peak,
        "gather_seconds": base and base.seconds.likely,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print("| model | method | GPUs | memory of each | gradients | sums of a step | step | times as fast | sharded |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        memory = size_text(row["peak"]) + ("" if row["fits"] else ", too much")
        sums = seconds_of(row["exchange_seconds"]["likely"])
        low, likely, high = (seconds_of(row["step_seconds"][name]) for name in ("low", "likely", "high"))
        base = row["sharded_peak"]
        sharded = "-" if base is None else f"{size_text(base)}, + {seconds_of(row['gather_seconds'])}"
        print(
            f"| {row['model']} | {row['method']} | {row['processes']} | {memory} | {size_text(row['gradients'])} | "
            f"{sums} | {likely} ({low} to {high}) | "
            f"{row['speedup']:.3g} | {sharded} |"
        )


def seconds_of(amount: float) -> str:
    return f"{1e3 * amount:.2g} ms" if amount < 0.0995 else f"{amount:.2f} s" if amount < 9.95 else f"{amount:.0f} s"


if __name__ == "__main__":
    main()
