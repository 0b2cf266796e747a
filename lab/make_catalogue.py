"""Write src/rankwise/planning/catalogue.json anew: the shape of each model as transformers builds it now.

    python lab/make_catalogue.py [--add NAME CONFIG.json HUB_ID ...]

The names, the settings and the sizes of images stay those of the file; `--add` appends a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from rankwise.config.modules import NUMBER
from rankwise.forward.model_shape import shape_of_config
from rankwise.planning import reading as catalogue
from rankwise.planning.shape import shape_to_json

FILE = Path(catalogue.__file__).with_name(catalogue.FILE)


def line(name: str, hub: list[str], config: dict[str, Any], image: int | None = None) -> str:
    shape = shape_to_json(shape_of_config(config, name, name))
    shape["layers"] = in_runs(shape["layers"])
    row = {"name": name, "hub": hub, "config": config} | ({} if image is None else {"image": image}) | {"shape": shape}
    return json.dumps(row, separators=(",", ":"))


def in_runs(layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """With equal blocks that follow each other written once."""
    runs: list[dict[str, Any]] = []

    def end(layer: dict[str, Any]) -> tuple[str, int | None]:
        at = NUMBER.search(layer["path"])
        return ("", None) if at is None else (layer["path"][: at.start()], int(at[1]))

    for (prefix, number), group in groupby(layers, end):
        if number is None:
            runs += group
            continue
        block = [layer | {"path": layer["path"][NUMBER.search(layer["path"]).end() :]} for layer in group]
        last = runs[-1] if runs else {}
        if last.get("repeat") == prefix and last["first"] + last["count"] == number and last["layers"] == block:
            last["count"] += 1
        else:
            runs.append({"repeat": prefix, "first": number, "count": 1, "layers": block})
    return runs


def main() -> None:
    rows = [(row["name"], row["hub"], row["config"], row.get("image")) for row in json.loads(FILE.read_text())]
    if sys.argv[1:2] == ["--add"]:
        name, config, *hub = sys.argv[2:]
        rows.append((name, hub, json.loads(Path(config).read_text(encoding="utf-8")), None))
    lines = [line(*row) for row in rows]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} models, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
