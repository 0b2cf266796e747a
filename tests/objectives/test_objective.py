"""What every objective is promised: a new head is drawn with the seed of the training, and the row store keeps the
targets of whole rows and types of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.tagged import spanned, tagger_folder
from kit.vision_models import dark_and_light, save_folder
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.experiment import RowSettings
from rankwise.config.models import ModelConfig
from rankwise.objectives.registry import objective_of
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import silent


def labelled_rows(kind: str, count: int = 14) -> list[Tokens]:
    random = np.random.default_rng(3)
    rows = []
    for number in range(count):
        first, second = random.integers(1, 90, random.integers(2, 9)), random.integers(1, 90, random.integers(1, 6))
        ids, types = [*first, *second], [0] * len(first) + [1] * len(second)
        target = float(random.normal()) if kind == "values" else number % 3
        rows.append(Tokens(ids, [False] * len(ids), token_type_ids=types, target=target))
    return rows


def row_settings(name: str, folder: Path, seed: int) -> RowSettings:
    """With a tiny model whose head is made anew, and rows for it."""
    rows, model = folder / "rows", folder / "model"
    if name == "image-classification":
        save_folder("vit", model)
        dark_and_light(rows)
    else:
        tagging = name == "token-classification"
        (tagger_folder if tagging else encoder_folder)(model)
        write_rows(rows := folder / "rows.jsonl", spanned(8) if tagging else labelled(8))
    return RowSettings(DataConfig(path=str(rows)), ModelConfig(name=str(model), dtype="float32"), seed=seed)


@pytest.mark.parametrize("name", ["sequence-classification", "token-classification", "image-classification"])
def test_a_new_head_is_drawn_with_the_seed_of_the_training(tmp_path, name):
    def head(seed: int) -> torch.Tensor:
        rows = row_settings(name, tmp_path, seed)
        module = load(rows.base, silent, objective_of(name, rows, silent).kind).module
        return module.get_parameter("classifier.weight")

    assert head(3).equal(head(3)) and not head(3).equal(head(4))


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
