"""The default rate of LoRA, and Tinker's formula, on a published sweep of rates: what either would have lost.

    python lab/published_rates.py sft_sweep.md

`sft_sweep.md` lies in thinking-machines-lab/tinker-cookbook (tinker_cookbook/recipes/chat_sl/results): test losses of
LoRA on Tulu 3, 780 steps of 128 rows, at a few rates and ranks for each model. Between two rates the loss is taken from
the line through them over log rate. Losses are convex there, so this is more than the rate would have lost, as far as
the grid tells: its best rate is the best of three to five, a factor of two to three apart. Models whose hidden size is
not listed here and ranks with fewer than three rates are left out.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from rankwise.config.adapters import LoraConfig
from rankwise.config.training import TrainingConfig

WIDTHS = {
    "Llama-3.2-1B": 2048, "Llama-3.2-3B": 3072, "Llama-3.1-8B": 4096, "Llama-3.1-8B-Instruct": 4096,
    "Llama-3.1-70B": 8192, "Llama-3.3-70B-Instruct": 8192, "Qwen3-4B-Instruct-2507": 2560, "Qwen3-8B": 4096,
    "Qwen3-8B-Base": 4096, "Qwen3-32B": 5120, "Qwen3.5-4B": 2560, "Qwen3.5-27B": 5120, "Qwen3-30B-A3B": 2048,
    "Qwen3-30B-A3B-Base": 2048, "Qwen3-30B-A3B-Instruct-2507": 2048, "gpt-oss-120b": 2880,
    "DeepSeek-V3.1-Base": 7168, "Kimi-K2-Thinking": 7168,
}  # fmt: skip
ROW = re.compile(r"^\| ([\d.e+-]+) \| (\d+) \| ([\d.]+) \|", re.MULTILINE)
Losses = dict[float, float]


def tinker(model: str, width: int) -> float:
    """5e-5 x 10 x (2000 / H)^P, as its cookbook had it before it listed the best rates of this sweep."""
    return 5e-4 * (2000 / width) ** (0.0775 if "Qwen" in model else 0.781)


def excess(losses: Losses, rate: float) -> float | None:
    """By which share the loss at a rate is above the least; None outside the rates that were tried."""
    rates = sorted(losses)
    if not rates[0] <= rate <= rates[-1]:
        return None
    low, high = max(one for one in rates if one <= rate), min(one for one in rates if one >= rate)
    share = math.log(rate / low) / math.log(high / low) if high > low else 0.0
    return (losses[low] * (1 - share) + losses[high] * share) / min(losses.values()) - 1


def main() -> None:
    auto, formula = list[float](), list[float]()
    print("| model | hidden size | auto | Tinker | rank: best rate, auto's excess, Tinker's excess |")
    print("|---|---:|---:|---:|---|")
    for part in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n## ")[1:]:
        named = re.search(r"Model: `[^/]*/([^`]*)`", part)
        if named is None or (width := WIDTHS.get(named[1])) is None:
            continue
        ours, theirs = TrainingConfig().highest_rate(width, LoraConfig.auto_rate), tinker(named[1], width)
        by_rank: dict[int, Losses] = defaultdict(dict)
        for rate, rank, loss in ROW.findall(part):
            by_rank[int(rank)][float(rate)] = float(loss)
        cells = []
        for rank, losses in sorted(by_rank.items()):
            lost = excess(losses, ours), excess(losses, theirs)
            if len(losses) < 3 or lost[0] is None or lost[1] is None:
                continue
            auto.append(lost[0])
            formula.append(lost[1])
            cells.append(f"{rank}: {min(losses, key=lambda one: losses[one]):g}, {lost[0]:.2%}, {lost[1]:.2%}")
        if cells:
            print(f"| {named[1]} | {width:,} | {ours:.2g} | {theirs:.2g} | {'; '.join(cells)} |")
    for name, values in (("auto", auto), ("Tinker", formula)):
        print(f"\n{name}: {len(values)} curves, median {statistics.median(values):.2%}, worst {max(values):.2%}")


if __name__ == "__main__":
    main()
