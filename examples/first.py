"""Run examples/first.ipynb from its first cell to its last, in a folder of its own.

    python examples/first.py            # as it stands, with the model that it names
    python examples/first.py --write    # and keep what its cells show in the file

The minutes that it took are printed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("first.ipynb")
PATIENCE = 900
"""Seconds that one cell may take."""


def executed(folder: Path, **parameters: Any) -> Any:
    """The notebook with what its cells show. `parameters` take the place of the values in the cell of this tag."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if parameters and "parameters" in cell.metadata.get("tags", ()):
            cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for the lines with !
    here = {"metadata": {"path": folder}}
    return NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=here).execute()


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(Path(folder))
    print(f"{NOTEBOOK.name}: {(time.monotonic() - began) / 60:.1f} minutes")
    if "--write" in sys.argv[1:]:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
