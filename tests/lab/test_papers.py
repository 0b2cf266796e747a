"""The tables of the two papers: what follows from their formulas does here, and what does not is named."""

from __future__ import annotations

import pytest
from papers import ROWS, PaperRow, rows_of

from kit.planning_models import shape_of
from rankwise.config.adapters import LoraConfig
from rankwise.planning.parameters import parameters_of

EXACT = {
    ("gpt3-175b", "1"): 4_718_592, ("gpt3-175b", "4"): 18_874_368, ("gpt3-175b", "8"): 37_748_736,
    ("roberta-base", "8"): 294_912, ("roberta-large", "8"): 786_432, ("deberta-v2-xxlarge", "8"): 2_359_296,
    ("deberta-v2-xxlarge", "16"): 4_718_592, ("gpt2-medium", "4"): 393_216, ("gpt2-large", "4"): 737_280,
    ("deberta-v3-base", "8"): 1_327_104, ("deberta-v3-base", "2"): 331_776, ("bart-large", "8"): 4_325_376,
}  # fmt: skip
"""The parameters of plain LoRA by model and rank, computed by hand from the formulas."""


def named(row: PaperRow) -> str:
    return f"{row.paper}-{row.model}-{row.rank}-{row.printed}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_row_agrees_with_the_paper_or_says_why_not(row: PaperRow) -> None:
    counted = parameters_of(shape_of(row.model), row.config)
    assert row.agrees(counted) or row.remark
    if isinstance(row.config, LoraConfig) and (row.model, row.rank) in EXACT:
        assert counted.trainable == EXACT[row.model, row.rank]


def test_the_rows_that_disagree_are_these_and_no_others() -> None:
    apart = {(row.model, row.printed) for row in ROWS if not row.agrees(parameters_of(shape_of(row.model), row.config))}
    assert apart == {
        ("gpt3-175b", "18M"), ("deberta-v2-xxlarge", "4.7M"), ("gpt2-medium", "0.35M"), ("gpt2-large", "0.77M"),
        ("bart-large", "0.26 %"), ("bart-large", "1.10 %"), ("bart-large", "2.20 %"),
    }  # fmt: skip


def test_rows_are_found_by_the_model() -> None:
    assert {row.rank for row in rows_of("gpt3-175b")} == {"1", "4", "8"}
    assert rows_of("gpt2") == ()
