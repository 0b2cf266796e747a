"""What the row store promises any objective: targets that are of whole rows, and types of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.text.tokenize import Tokens


def labelled_rows(kind: str, count: int = 14) -> list[Tokens]:
    random = np.random.default_rng(3)
    rows = []
    for number in range(count):
        first, second = random.integers(1, 90, random.integers(2, 9)), random.integers(1, 90, random.integers(1, 6))
        ids, types = [*first, *second], [0] * len(first) + [1] * len(second)
        target = float(random.normal()) if kind == "values" else number % 3
        rows.append(Tokens(ids, [False] * len(ids), token_type_ids=types, target=target))
    return rows


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_targets_and_token_types_survive_the_disk_and_a_selection(tmp_path, kind):
    rows = labelled_rows(kind)
    writer = RowWriter()
    for part in (rows[:4], [], rows[4:]):
        writer.add(EncodedRows.of(part))
    writer.write(tmp_path)
    found = SelectedRows(EncodedRows.read(tmp_path), np.array([3, 0, 3]))
    assert found.loss_count == 3
    for row, number in zip(found, (3, 0, 3), strict=True):
        assert list(row.ids) == list(rows[number].ids)
        assert list(row.token_type_ids) == rows[number].token_type_ids
        assert row.target == pytest.approx(rows[number].target) and row.loss_count == 1
