import torch

import pyro_tbr as tbr
from pyro_tbr.inference.encoder.dense_stage import DenseStage
from pyro_tbr.inference.options import FitOptions
from tests.inference.problems import standard_rows


def stage(data, encoder, **options):
    rows = standard_rows(data)
    model = tbr.TreeModel(data.tree, data.z.shape[1], encoder)
    model.build(data.x.shape[1], rows.y.shape[1])
    return DenseStage(model, FitOptions(**options), torch.Generator().manual_seed(0)), rows


def test_linear_encoder_finds_the_latents_among_noisy_features():
    data = tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=10, num_outcomes=3, rows_per_leaf=100, seed=0
    )
    generator = torch.Generator().manual_seed(0)
    noisy = data.x + 0.1 * torch.randn(data.x.shape, generator=generator).numpy()
    st, rows = stage(data, "linear")
    rows = type(rows)(torch.as_tensor(noisy), rows.y, rows.env_index)
    fit = st.fit(rows, st.recipes(len(rows))[0]._replace(steps=0))
    assert fit.trace is None  # closed form
    assert tbr.linear_r2(data.z, fit.latents(rows.x).numpy()) > 0.98
    assert not torch.equal(fit.model.encoder.layer.weight, st.model.encoder.layer.weight)


def test_wide_features_get_a_choice_of_components():
    data = tbr.simulate(num_leaves=4, latent_dim=2, num_features=60, rows_per_leaf=20, seed=0)
    st, rows = stage(data, "linear")
    assert [r.num_components for r in st.recipes(len(rows))] == [15, 30]
    assert [r.num_components for r in st.recipes(10**6)] == [None]


def test_loss_estimates_the_noise_on_seen_and_on_new_rows():
    data = tbr.simulate(
        num_leaves=8, latent_dim=2, num_features=2, rows_per_leaf=60, noise_scale=0.5, seed=1
    )
    st, rows = stage(data, "linear")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    seen, new = rows.select(order[:360]), rows.select(order[360:])
    fit = st.fit(seen, st.recipes(360)[0])
    truth = (0.5 / data.y.std()) ** 2
    for part, is_seen in ((seen, True), (new, False)):
        loss = fit.loss(part, seen=is_seen)
        assert abs(loss.mean() - truth) < 4 * loss.mean_var().sqrt()


def test_mlp_learns_a_nonlinear_map():
    data = tbr.simulate(
        num_leaves=8,
        latent_dim=2,
        num_features=6,
        rows_per_leaf=150,
        num_outcomes=3,
        mixing="mlp",
        seed=0,
    )
    st, rows = stage(data, "mlp", max_steps=600)
    fit = st.fit(rows, st.recipes(len(rows))[1])
    assert tbr.linear_r2(data.z, fit.latents(rows.x).numpy()) > 0.9
    assert fit.trace is not None
    assert fit.trace.loss[-1] < fit.trace.loss[0]
