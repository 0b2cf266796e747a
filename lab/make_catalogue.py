"""Write src/rankwise/planning/catalogue.json anew: the shape of each model as transformers builds it now.

    python lab/make_catalogue.py [--add NAME CONFIG.json HUB_ID ...]

The names, the settings and the sizes of images stay those of the file; `--add` appends a model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rankwise.forward.model_shape import shape_of_config
from rankwise.planning import reading as catalogue
from rankwise.planning.shape_file import shape_to_json

FILE = Path(catalogue.__file__).with_name(catalogue.FILE)


def line(name: str, hub: list[str], config: dict[str, Any], image: int | None = None) -> str:
    shape = shape_to_json(shape_of_config(config, name, name))
    row = {"name": name, "hub": hub, "config": config} | ({} if image is None else {"image": image}) | {"shape": shape}
    return json.dumps(row, separators=(",", ":"))


def main() -> None:
    rows = [(row["name"], row["hub"], row["config"], row.get("image")) for row in json.loads(FILE.read_text())]
    if sys.argv[1:2] == ["--add"]:
        name, config, *hub = sys.argv[2:]
        rows.append((name, hub, json.loads(Path(config).read_text()), None))
    lines = [line(*row) for row in rows]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} models, {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
