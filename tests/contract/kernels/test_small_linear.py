from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from services.worker.kernels.fast_linear import speed_up_linear_layers
from services.worker.kernels.native_ops import MAX_ROWS, linear, small_linear


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 8, 31])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (16, 4), (37, 5), (64, 130), (896, 33)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_equals_the_general_product(num_rows, num_in, num_out, has_bias) -> None:
    generator = torch.Generator().manual_seed(num_rows * num_in)
    x, weight = torch.randn(1, num_rows, num_in, generator=generator), torch.randn(num_out, num_in, generator=generator)
    bias = torch.randn(num_out, generator=generator) if has_bias else None
    found = small_linear(x, weight, bias)
    torch.testing.assert_close(found, functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    # Another order of sums could not give the same bits.
    assert torch.equal(small_linear(x[:, -1:], weight, bias), found[:, -1:])


def test_inputs_and_weights_may_be_views() -> None:
    x, weight = torch.randn(6, 20)[::2, 2:18], torch.randn(16, 24).T
    torch.testing.assert_close(small_linear(x, weight, None), functional.linear(x, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_rows", [MAX_ROWS + 1, 100])
@pytest.mark.parametrize("has_bias", [True, False])
def test_many_rows_equal_the_general_product(num_rows, has_bias) -> None:
    x, weight, bias = torch.randn(1, num_rows, 96), torch.randn(40, 96), torch.randn(40) if has_bias else None
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear(x[:, ::2], weight, bias), linear(x, weight, bias)[:, ::2], rtol=1e-4, atol=1e-4)


class TestModels:
    def test_plain_layers_are_changed_and_others_left(self) -> None:
        class Scaled(nn.Linear):
            pass

        model = nn.Sequential(nn.Linear(8, 4), Scaled(4, 4), nn.Linear(4, 2, dtype=torch.float64)).requires_grad_(False)
        assert speed_up_linear_layers(model) == 1
        assert "forward" in vars(model[0])
        assert "forward" not in vars(model[1])

    def test_few_rows_and_many_rows_agree(self) -> None:
        layer = nn.Linear(48, 24).requires_grad_(False)
        x = torch.randn(MAX_ROWS + 8, 48)
        expected = layer(x)
        speed_up_linear_layers(layer)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x[:3]), expected[:3], rtol=1e-4, atol=1e-5)

    def test_a_weight_that_is_replaced_later_is_used(self) -> None:
        layer = nn.Linear(8, 4, bias=False).requires_grad_(False)
        speed_up_linear_layers(layer)
        layer.weight = nn.Parameter(torch.full((4, 8), 0.5), requires_grad=False)
        assert layer(torch.ones(1, 8)).tolist() == [[4.0] * 4]

    def test_gradients_flow_where_they_are_asked_for(self) -> None:
        layer = nn.Linear(8, 4)
        speed_up_linear_layers(layer)
        layer(torch.ones(2, 8)).sum().backward()
        assert layer.weight.grad is not None
