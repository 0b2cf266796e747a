"""Rows with several labels, made of the E2E restaurant texts: which slots a text was written from.

    python lab/labels.py FOLDER          write FOLDER/rows.jsonl

Each row has the text, the meaning representation that it was written from (`mr`, by which rows are grouped), and the
names of its slots but the name, which every text has. Every fourth of the 4,672 rows of the development set is taken.
The commands that train and measure are in lab/labels.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

from claims import data

SLOT = re.compile(r"(\w[\w ]*)\[")
EVERY = 4


def rows() -> list[dict[str, str | list[str]]]:
    with data("e2e/devset.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))[::EVERY]
    return [
        {"mr": line["mr"], "text": line["ref"], "label": [name for name in SLOT.findall(line["mr"]) if name != "name"]}
        for line in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
