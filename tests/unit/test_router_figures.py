"""The test builder that tells whether a router's fit is through."""

from __future__ import annotations

import pytest

from tests.builders.router_figures import has_fitted


def metrics(**figures):
    return "".join(
        f"# TYPE hilora_router_{name} gauge\nhilora_router_{name} {value}\n" for name, value in figures.items()
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"fit_generation": "39.0"}, False),
        ({"adapters_since_fit": "1.0"}, False),
        ({"adapters": "35.0"}, False),
    ],
)
def test_it_is_when_it_knows_all_and_lags_behind_nothing(changes, expected):
    figures = {"adapters": "36.0", "adapters_since_fit": "0.0", "fit_generation": "40.0", "catalog_generation": "40.0"}
    assert has_fitted(metrics(**{**figures, **changes}), num_adapters=36) is expected


def test_a_router_without_a_catalogue_has_fitted_nothing():
    assert not has_fitted("", num_adapters=36)
