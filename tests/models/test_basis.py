"""Curves of latents: orthogonal, where they were placed, and as splines are."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_tbr as tbr
from pyro_tbr.models.basis import LatentBasis, PolynomialBasis, SplineBasis


def latents(num=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    z[:, 1] = z[:, 1].exp()
    return z


@pytest.mark.parametrize("basis", [SplineBasis(4), SplineBasis(2), PolynomialBasis(3)], ids=repr)
def test_curves_are_orthogonal_to_lines_and_each_other(basis):
    z = latents()
    built = basis.build(3)
    built.place(z)
    curves = built(z).view(len(z), 3, basis.num_curves)
    for k in range(3):
        whole = torch.cat([torch.ones(len(z), 1).double(), z[:, k : k + 1]], 1)
        assert_close(whole.T @ curves[:, k], torch.zeros(2, basis.num_curves).double(), atol=1e-6,
                     rtol=0)  # fmt: skip
        gram = curves[:, k].T @ curves[:, k] / len(z)
        assert_close(gram, torch.eye(basis.num_curves).double(), atol=1e-8, rtol=0)


def test_a_spline_is_a_cubic_between_knots_and_a_line_beyond():
    z = latents()
    built = SplineBasis(4).build(3)
    built.place(z)
    low, high = built.knots[0, 0], built.knots[0, -1]
    for start in (low - 3, high + 0.1):
        at = (start + torch.linspace(0, 2, 9).double()).unsqueeze(1).expand(-1, 3)
        bend = built(at)[:, :3].diff(n=2, dim=0)
        assert bend.abs().max() < 1e-5
    inside = torch.linspace(float(built.knots[0, 1]), float(built.knots[0, 2]), 12).double()
    fourth = built(inside.unsqueeze(1).expand(-1, 3))[:, :3].diff(n=4, dim=0)
    assert fourth.abs().max() < 1e-5
    around = built.knots[0, 2] + torch.linspace(-0.01, 0.01, 21).double()
    jump = built(around.unsqueeze(1).expand(-1, 3))[:, :3].diff(n=2, dim=0).diff(dim=0)
    assert jump.abs().max() < 1e-3  # slopes and bends go through a knot without a step


def test_its_span_is_that_of_a_plain_regression():
    z = latents()[:, :1]
    y = np.sin(2 * z[:, 0].numpy())
    built = PolynomialBasis(4).build(1)
    built.place(z)
    design = np.column_stack([np.ones(len(z)), z, built(z)])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    plain = np.polyval(np.polyfit(z[:, 0].numpy(), y, 4), z[:, 0].numpy())
    np.testing.assert_allclose(fitted, plain, atol=1e-8)


def test_what_has_no_curve_gets_none():
    z = latents()
    z[:, 0] = (z[:, 0] > 0).double()  # of two values anything is a line
    z[:, 2] = 1.5
    for basis in (SplineBasis(3), PolynomialBasis(3)):
        built = basis.build(3)
        built.place(z)
        curves = built(z).view(len(z), 3, 2)
        assert (curves[:, [0, 2]] == 0).all()
        assert torch.isfinite(curves).all()
        assert_close(curves[:, 1].square().mean(0), torch.ones(2).double())


def test_units_are_the_users():
    class Own(LatentBasis):
        def __init__(self):
            super().__init__(1)

        def curves(self, z):
            self.seen = z
            return z.unsqueeze(-1) ** 2

    built = Own().build(3, (torch.full((3,), 50.0), torch.full((3,), 4.0)))
    built.place(latents())
    assert_close(built.seen, 50 + 4 * latents())


def test_it_says_what_is_wrong():
    class Bad(LatentBasis):
        def __init__(self, kind):
            super().__init__(2, kind=kind)

        def curves(self, z):
            kind = self.description["kind"]
            if kind == "shape":
                return z
            return torch.stack([z.log(), z], -1)

    with pytest.raises(tbr.ShapeError, match=r"curves gives \(400, 3\) .* \(400, 3, 2\) expected"):
        Bad("shape").build(3).place(latents())
    with pytest.raises(tbr.DataError, match="not finite, of 2400"):
        Bad("log").build(3).place(latents())
    with pytest.raises(tbr.DataError, match="has not seen latents yet"):
        SplineBasis().build(3)(latents())
    for make, name in ((SplineBasis, "num_functions"), (PolynomialBasis, "degree")):
        for number in (1, 2.5, True, "3"):
            with pytest.raises(tbr.DataError, match=f"{name}=.* must be a whole number, 2 or more"):
                make(number)
    tree = tbr.Tree.from_newick("(a,b)r;")
    with pytest.raises(tbr.DataError, match="basis='wave' is not known: give one of"):
        tbr.TreeModel(tree, 1, basis="wave")
    with pytest.raises(tbr.DataError, match="SplineBasis is a class: call it"):
        tbr.TreeModel(tree, 1, basis=SplineBasis)
    noisy = tbr.GaussianLikelihood(latent_noise=True)
    with pytest.raises(tbr.DataError, match="basis='spline' together with latent_noise"):
        tbr.TreeModel(tree, 1, likelihood=noisy, basis="spline", num_features=2, num_outcomes=1)
