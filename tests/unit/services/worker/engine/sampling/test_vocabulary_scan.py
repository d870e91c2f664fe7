from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.sampling.vocabulary_scan import (
    all_tokens,
    best_tokens,
    block_masses,
    leading_tokens,
    likeliest_tokens,
)

_SIZES = st.sampled_from([1, 5, 63, 64, 65, 128, 200, 4096, 6001])


def _rows(num_tokens: int, seed: int, num_values: int | None = None) -> torch.Tensor:
    """Few distinct values make many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    if num_values is None:
        return torch.randn(3, num_tokens, generator=generator)
    return torch.randint(0, num_values, (3, num_tokens), generator=generator).float()


def _order(row_V: torch.Tensor) -> list[int]:
    values = row_V.tolist()
    return sorted(range(len(values)), key=lambda idx: (-values[idx], idx))


@settings(max_examples=120, deadline=None)
@given(_SIZES, st.integers(0, 999), st.sampled_from([None, 2, 30]))
def test_the_best_is_the_first_maximum(num_tokens, seed, num_values) -> None:
    rows = _rows(num_tokens, seed, num_values)
    best, token_ids = best_tokens(rows)
    assert token_ids == [_order(row)[0] for row in rows]
    assert best == [float(row.max()) for row in rows]


@pytest.mark.parametrize("place", [0, 70, 199])
def test_one_value_that_is_not_a_number_shows(place) -> None:
    rows = _rows(200, 1)
    rows[1, place] = math.nan
    best, _ = best_tokens(rows)
    assert [math.isnan(value) for value in best] == [False, True, False]


@settings(max_examples=150, deadline=None)
@given(_SIZES, st.integers(1, 300), st.integers(0, 999), st.sampled_from([None, 2, 30]))
def test_leading_tokens_are_the_beginning_of_the_sorted_row(num_tokens, num_leading, seed, num_values) -> None:
    rows = _rows(num_tokens, seed, num_values)
    for row, leading in zip(rows, leading_tokens(rows, num_leading), strict=True):
        order = _order(row)
        assert len(leading.values_K) >= min(num_leading, num_tokens)
        assert leading.values_K.tolist() == row[order[: len(leading.values_K)]].tolist()
        certain = [leading.token_at(place) for place in range(leading.num_certain)]
        assert certain == order[: leading.num_certain]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 999), st.sampled_from([None, 2]))
def test_a_whole_row_is_certain_to_its_end(num_tokens, seed, num_values) -> None:
    row = _rows(num_tokens, seed, num_values)[0]
    found = all_tokens(row)
    assert [found.token_at(place) for place in range(found.num_certain)] == _order(row)


@settings(max_examples=60, deadline=None)
@given(_SIZES, st.integers(1, 20), st.integers(0, 999), st.sampled_from([None, 2]))
def test_likeliest_tokens_prefer_the_lower_id(num_tokens, num_top, seed, num_values) -> None:
    rows = _rows(num_tokens, seed, num_values)
    for row, found in zip(rows, likeliest_tokens(rows, num_top), strict=True):
        assert [token_id for token_id, _ in found] == _order(row)[:num_top]
        assert [value for _, value in found] == row[_order(row)[:num_top]].tolist()


@settings(max_examples=40, deadline=None)
@given(_SIZES, st.integers(0, 99))
def test_block_masses_add_up(num_tokens, seed) -> None:
    weights = _rows(num_tokens, seed).exp()
    np.testing.assert_allclose(block_masses(weights).sum(axis=1), weights.double().sum(dim=1).numpy(), rtol=1e-12)
