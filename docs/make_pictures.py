"""Draw the pictures of README.md from stored results: docs/demo.svg and docs/speed.svg.

    python docs/make_pictures.py                # draw both
    rankwise demo > docs/demo.txt 2>&1          # store another demo first, in a folder without its run

demo.svg is what one `rankwise demo` printed (docs/demo.txt), with "…" where lines, or ends of lines, are left out.
speed.svg is from two stored runs of bench/train_step.py. Neither has every library, so a bar is a library's speed
against rankwise's, from their turns in one run, times rankwise's speed against TRL's.
"""

from __future__ import annotations

import io
import json
import re
from html import escape
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "bench" / "results"
COLUMNS = 100
"""Letters in a line of the demo's picture."""
SHOWN = 2
"""Messages, of the three that the demo prints."""
GREYS: list[tuple[int, int, int]] = [(128, 136, 150)] * 8
THEME = TerminalTheme((24, 27, 33), (214, 218, 226), GREYS, GREYS)
STYLES = (
    (r"(?m)^\$ .*", "bold #ffffff"),
    (r"(?m)^(message|expected|base|adapted) |^next:", "#8ab4f8"),
    (r"(?m)(?<=^adapted  ).*|(?<=^  with adapter   ).*", "bold #7ee2a8"),
    (r"(?m)(?<=^base     ).*|(?<=^  base model     ).*", "#f2a98f"),
)
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"

TRAINING, INT8 = "train-step-2026-11-29.json", "train-step-int8-135m-2026-12-01.json"
BARS = (
    ("TRL, as documented", TRAINING, "trl-fp32"),
    ("Unsloth on the CPU", TRAINING, "unsloth-cpu"),
    ("PEFT, best loop by hand", TRAINING, "peft-packed"),
    ("rankwise", TRAINING, "rankwise"),
    ("rankwise, int8", INT8, "rankwise-int8"),
)
CAPTION = """\
SmolLM2-135M, LoRA of rank 16 on all linear layers, 8 rows of Dolly a step, on two cores of an AMD EPYC. TRL
computes in float32, the others in bfloat16, int8 over a base in int8. No one run had all five: each was timed in
turns with rankwise, int8 on 1 December 2026, the others on 29 November. All figures: docs/speed.md
"""
STYLE = """\
  text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
  .card { fill: #ffffff; stroke: #d8dee4 } .title { font-size: 20px; font-weight: 600 }
  .small { font-size: 13px; fill: #57606a } .number { font-weight: 600 }
  .theirs { fill: #b3bac4 } .ours { fill: #2f6f9f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .card { fill: #161b22; stroke: #30363d } .small { fill: #9aa4af }
    .theirs { fill: #57606a } .ours { fill: #5aa9e6 }
  }
"""
WIDTH, LEFT, TOP, PITCH, BAR = 820, 220, 66, 38, 24


def demo(printed: str) -> str:
    """The picture of a terminal with a demo's output."""
    lines = [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in shortened(printed)]
    text = Text("\n".join(["$ rankwise demo", *lines]))
    for pattern, style in STYLES:
        text.highlight_regex(pattern, style)
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), highlight=False)
    console.print(text)
    picture = console.export_svg(title="rankwise demo", theme=THEME, unique_id="demo")
    alone = re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", picture, flags=re.DOTALL)  # which loads a font from elsewhere
    return re.sub(r"Fira Code[^;]*;", f"{FONT};", alone)


def shortened(printed: str) -> list[str]:
    """The lines of a demo, with … for most of its progress and for the last of its messages."""
    lines = printed.rstrip().splitlines()
    steps = [line for line in lines if line.startswith("Training ")]
    report = lines.index(next(line for line in lines if line.startswith("rows: ")))
    begun = lines.index(steps[0])
    messages = [place for place, line in enumerate(lines) if line.startswith("message ")]
    ended = next(place for place, line in enumerate(lines) if line.startswith("exact answers "))
    rows = lines[begun + len(steps) : messages[SHOWN] - 1]
    return [*lines[: report + 2], "…", *steps[:2], "…", steps[-1], *rows, "…", "", *lines[ended:]]


def speed() -> str:
    """The chart of five libraries, each by how many times as fast as TRL it is."""
    slower = {}
    for name, result, stack in BARS:
        rows = {row["stack"]: row for row in json.loads((RESULTS / result).read_text(encoding="utf-8"))["rows"]}
        slower[name] = rows[stack]["rankwise_times_faster"]
    times = {name: slower[BARS[0][0]] / value for name, value in slower.items()}
    longest = (WIDTH - LEFT - 90) / max(times.values())
    parts = []
    for place, (name, value) in enumerate(times.items()):
        y = TOP + place * PITCH
        kind = "ours" if name.startswith("rankwise") else "theirs"
        parts += [
            f'<text x="{LEFT - 12}" y="{y + 17}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{value * longest:.1f}" height="{BAR}" rx="3"/>',
            f'<text class="number" x="{LEFT + value * longest + 8:.1f}" y="{y + 17}">{value:.1f} ×</text>',
        ]
    below = TOP + len(times) * PITCH + 16
    caption = CAPTION.splitlines()
    parts += [
        f'<text class="small" x="24" y="{below + 19 * place}">{line}</text>' for place, line in enumerate(caption)
    ]
    ours, int8 = times["rankwise"], times["rankwise, int8"]
    title = f"LoRA on two CPU cores: {ours:.1f} times as fast as TRL, {int8:.1f} times in int8"
    height = below + 19 * len(caption)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">
<style>
{STYLE}</style>
<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>
<text class="title" x="24" y="38">{title}</text>
{chr(10).join(parts)}
</svg>
"""


def main() -> None:
    pictures = {"demo.svg": demo((DOCS / "demo.txt").read_text(encoding="utf-8")), "speed.svg": speed()}
    for name, picture in pictures.items():
        (DOCS / name).write_text(picture, encoding="utf-8")
        print(f"docs/{name}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
