"""A disk that is full at the moment when a training has just become a finished one."""

from __future__ import annotations

import pytest

from fault_cells import Cells


@pytest.mark.parametrize("stage", ["train", "resume"])
def test_a_run_whose_manifest_says_finished_still_has_its_result(tmp_path, tiny_folder, stage):
    """The manifest has its name, and then the folder cannot be flushed: the run is reported as failed, but it cannot
    write so, and must not take away what the manifest names."""
    cells = Cells(tmp_path, tiny_folder, without_page=True)
    operations = cells.operations(stage)
    renamed = [at for at, one in enumerate(operations) if one.kind == "rename" and one.other.endswith("/manifest.json")]
    after = renamed[-1] + 1
    assert operations[after].kind == "flush"
    for mode in ("ENOSPC", "EIO"):
        assert cells.fault(stage, operations[after].number, mode) == []
