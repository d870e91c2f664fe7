from __future__ import annotations

import pytest
import torch

from hilora_lab.testbed.muon import Muon, orthogonalised


class TestOrthogonalised:
    @pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
    def test_singular_values_end_near_one(self, shape):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))

        values = torch.linalg.svdvals(orthogonalised(matrix, num_rounds=8))

        assert values.min() > 0.6
        assert values.max() < 1.3

    def test_the_scale_of_the_gradient_does_not_matter(self):
        matrix = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))

        torch.testing.assert_close(orthogonalised(matrix), orthogonalised(100.0 * matrix), rtol=1e-4, atol=1e-4)


class TestMuon:
    def test_it_descends(self):
        generator = torch.Generator().manual_seed(0)
        target = torch.randn((6, 4), generator=generator)
        weight = torch.nn.Parameter(torch.zeros(6, 4))
        optimizer = Muon([weight], lr=0.1, momentum=0.5)
        before = (weight - target).square().sum().item()

        for _ in range(40):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()

        assert (weight - target).square().sum().item() < 0.1 * before

    def test_a_weight_without_gradient_stays(self):
        weight = torch.nn.Parameter(torch.ones(2, 2))

        Muon([weight]).step()

        assert weight.detach().eq(1.0).all()
