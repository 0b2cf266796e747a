"""The spectrum from the factors is that of the whole change, and a planted direction stands out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.adapters.spectrum import ERRORS, planted, scores_of, spectra_of, spectrum_of
from rankwise.adapters.weights import AdapterWeights, Factors


def factors(seed: int, rank: int, inputs: int = 24, outputs: int = 40, scale: float = 1.5) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator), scale
    )


def change(part: Factors) -> Tensor:
    A, B = part.matrices()
    return B @ A


@pytest.mark.parametrize("rank", [1, 2, 7, 24, 30])
@pytest.mark.parametrize("scale", [1.5, -0.01])
def test_the_singular_values_are_those_of_the_change(rank: int, scale: float):
    part = factors(rank, rank, scale=scale)
    whole = torch.linalg.svdvals(change(part))
    found = torch.tensor(spectrum_of(part).values, dtype=torch.float64)
    count = min(rank, 24)
    assert torch.allclose(found[:count], whole[:count], rtol=1e-10) and (found[count:] < 1e-12 * found[0]).all()
    assert spectrum_of(part).norm == pytest.approx(float(change(part).norm()))
    assert spectrum_of(part).used == count


def test_a_convolution_is_a_matrix_of_its_filters():
    A, B = torch.randn(3, 4, 3, 3), torch.randn(8, 3, 1, 1)
    expected = torch.linalg.svdvals((B.flatten(1) @ A.flatten(1)).double())
    assert spectrum_of(Factors(A, B, 1.0)).values == pytest.approx(expected[:3].tolist(), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("error", [*ERRORS, 0.5])
def test_the_rank_at_an_error_is_the_smallest_that_keeps_it(seed: int, error: float):
    part = factors(seed, 8)
    U, S, V = torch.linalg.svd(change(part), full_matrices=False)
    rank = spectrum_of(part).rank_at(error)

    def error_at(kept: int) -> float:
        cut = (U[:, :kept] * S[:kept]) @ V[:kept]
        return float((change(part) - cut).norm() / change(part).norm())

    assert error_at(rank) <= error + 1e-12 < error_at(rank - 1) + 1e-9


def test_a_rank_that_is_not_used_is_found():
    part = factors(1, 3)
    doubled = Factors(torch.cat([part.A, part.A]), torch.cat([part.B, part.B], 1), 1.0)
    assert doubled.rank == 6 and spectrum_of(doubled).used == 3


@pytest.mark.parametrize("part", [factors(1, 0), Factors(torch.zeros(2, 5), torch.zeros(4, 2), 1.0)])
def test_a_layer_without_a_change_uses_no_rank(part: Factors):
    spectrum = spectrum_of(part)
    assert spectrum.used == spectrum.rank_at(0.05) == 0 and spectrum.dominance is None


def adapter(seed: int, plant: float = 0.0) -> AdapterWeights:
    parts = {
        f"model.layers.{block}.self_attn.{leaf}": factors(100 * seed + 10 * block + at, 8)
        for block in range(12)
        for at, leaf in enumerate(("q_proj", "v_proj"))
    }
    if plant:
        path = "model.layers.7.self_attn.v_proj"
        part, largest = parts[path], spectrum_of(parts[path]).values[0]
        u, v = torch.randn(40, generator=torch.Generator().manual_seed(seed)), torch.ones(24)
        B = torch.cat([part.B, (u / u.norm()).view(-1, 1) * plant * largest / part.scale], 1)
        parts[path] = Factors(torch.cat([part.A, (v / v.norm()).view(1, -1)]), B, part.scale)
    return AdapterWeights({"peft_type": "LORA"}, parts)


def test_a_planted_direction_is_named_and_nothing_without_one():
    for seed in range(10):
        assert planted(spectra_of(adapter(seed))) == []
        first = planted(spectra_of(adapter(seed, 5.0)))[0]
        assert first.path == "model.layers.7.self_attn.v_proj" and first.dominance > 4 > 2 > first.usual


def test_layers_that_are_too_few_or_have_one_direction_are_not_compared():
    few = dict(list(spectra_of(adapter(1)).items())[:5])
    assert scores_of(few) == {}
    ones = {f"layers.{at}.x": spectrum_of(factors(at, 1)) for at in range(20)}
    assert scores_of(ones) == {} and planted(ones) == []


def test_how_far_the_work_is_is_told():
    told = []
    spectra_of(adapter(1), lambda number, total: told.append((number, total)))
    assert told == [(number, 24) for number in range(1, 25)]
