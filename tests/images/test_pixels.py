"""Pixels lie in a file without a name, wherever one can be written; a full disk is said in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from rankwise.objectives.image_classification.encode import PixelFile

IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


def test_what_was_written_is_read_and_no_name_is_left(tmp_path: Path) -> None:
    file = PixelFile(tmp_path / "pixels")
    first, later = file.add(IMAGES[:1]), file.add(IMAGES[1:])
    assert all((view == image).all() for view, image in zip([*first, *later], IMAGES, strict=True))
    assert file.add([]) == [] and list((tmp_path / "pixels").iterdir()) == []


def test_a_cache_that_cannot_be_written_to_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (view,) = PixelFile(tmp_path / "file" / "pixels").add(IMAGES[:1])
    assert (view == IMAGES[0]).all()


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk, which the system answers alike."""
    program = (
        "import resource\nfrom pathlib import Path\nimport numpy as np\n"
        "from rankwise.errors import ResourceError\n"
        "from rankwise.objectives.image_classification.encode import PixelFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    PixelFile(Path('pixels')).add([np.zeros((99, 99, 3), np.uint8)])\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.startswith("no space left while writing pixels (")
