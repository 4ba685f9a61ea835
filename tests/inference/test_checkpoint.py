"""A fit that is cut short after any of its parts goes on to the very same posterior."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.errors import DataError
from pyro_tbr.inference.checkpoint import Checkpoint

LIKE = {"num_leaves": 4, "latent_dim": 2, "num_features": 5, "nuisance_dim": 2, "seed": 1}
SIM = tbr.simulate(**LIKE, feature_noise=0.3, rows_per_leaf=30, noise_scale=1.0)
BINARY = tbr.simulate(**LIKE, feature_noise=0.3, rows_per_leaf=30, likelihood="bernoulli")
GROUPS = np.arange(len(SIM.x)) % 17
OPTIONS = tbr.FitOptions(
    restarts=4, max_steps=40, sparse_steps=40, mixture_components=4, cross_fit=2, batch_size=60
)


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)


def own_module():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return WithDropout()


def fit(sim=SIM, encoder="linear", latent_dim=2, options=OPTIONS, y=None, **more):
    model = tbr.TreeModel(sim.tree, latent_dim, encoder, likelihood=sim.likelihood)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tbr.fit(
            model, sim.x, sim.y if y is None else y, sim.env, progress=False, options=options,
            **more,
        )  # fmt: skip


class Cut(Exception):
    """In place of a signal."""


def cut_short(monkeypatch, number, **given):
    """A fit that ends once so many parts are written."""
    kept, done = Checkpoint.keep, []

    def keep(self, name, left):
        kept(self, name, left)
        done.append(name)
        if len(done) == number:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep", keep)
        with pytest.raises(Cut):
            fit(**given)


def counted(monkeypatch, **given):
    """A fit, and how many of its parts were done in it."""
    kept, done = Checkpoint.keep, []

    def keep(self, name, left):
        done.append(name)
        kept(self, name, left)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "keep", keep)
        return fit(**given), len(done)


def assert_same(one, other):
    for name in ("deltas", "node_weights"):
        tables = (getattr(each, name)() for each in (one, other))
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    np.testing.assert_array_equal(one.encode(SIM.x), other.encode(SIM.x))
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)
    assert str(one.identification()) == str(other.identification())
    assert one.report.folds == other.report.folds
    assert one.report.optimism == other.report.optimism


KINDS = {
    "linear": {},
    "network": {"encoder": "mlp"},
    "binary": {"sim": BINARY},
    "module": {"encoder": own_module()},
    "groups": {"groups": GROUPS},
    "mean field": {"guide": "mean_field"},
    "number of latents": {"latent_dim": None},
}


@pytest.mark.parametrize("kind", [
    name if name in ("linear", "module") else pytest.param(name, marks=pytest.mark.slow)
    for name in KINDS
])  # fmt: skip
def test_cut_short_after_any_part(kind, tmp_path, monkeypatch):
    path = tmp_path / "fit.part"
    whole = fit(checkpoint=path, **KINDS[kind])
    assert_same(whole, fit(**KINDS[kind]))  # to be written changes nothing
    state = torch.get_rng_state()
    number = len(torch.load(path, weights_only=True)["fit"]["parts"])
    assert number >= 4
    for parts in sorted({1, number // 2, number - 1}):
        path.unlink()
        cut_short(monkeypatch, parts, checkpoint=path, **KINDS[kind])
        again, done = counted(monkeypatch, checkpoint=path, resume=path, **KINDS[kind])
        assert done == number - parts  # nothing is done twice
        assert_same(whole, again)
    assert_same(whole, fit(resume=path, **KINDS[kind]))  # all is done
    assert torch.equal(torch.get_rng_state(), state)


def test_one_call_serves_until_it_is_done(tmp_path, monkeypatch):
    path = tmp_path / "fit.part"
    cut_short(monkeypatch, 2, seed=None, checkpoint=path, resume=path)  # not there yet
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"fit\.part' is there already: give it as resume too"):
        fit(checkpoint=path)
    assert path.read_bytes() == before
    first = fit(seed=None, checkpoint=path, resume=path)
    assert_same(first, fit(seed=None, checkpoint=path, resume=path))


def test_from_a_start_and_without_a_seed(tmp_path, monkeypatch):
    start = fit()
    path = tmp_path / "fit.part"
    whole = fit(start=start, seed=None, checkpoint=path)
    path.unlink()
    cut_short(monkeypatch, 1, start=start, seed=5, checkpoint=path)
    assert_same(fit(start=start, seed=None, resume=path), fit(start=start, seed=5))
    assert whole.report.seed != 5


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("done") / "fit.part"
    fit(checkpoint=path)
    return path


Y = SIM.y.copy()
Y[7] += 1e-3


@pytest.mark.parametrize(("other", "what"), [
    ({"y": Y}, r"another rows: call fit as then, or leave resume out"),
    ({"seed": 3}, r"another seed \(0, here 3\)"),
    ({"encoder": "mlp"}, r"another encoder \(linear, here mlp\)"),
    ({"latent_dim": 1}, r"another latent_dim \(2, here 1\)"),
    ({"guide": "mean_field"}, r"another guide \(tree, here mean_field\)"),
    ({"groups": GROUPS}, "another rows"),
    ({"row_weights": np.full(len(Y), 2.0)}, "another rows"),
    ({"options": tbr.FitOptions(restarts=5)}, r"another options\.\w+ \("),
])  # fmt: skip
def test_another_fit_does_not_go_on(other, what, done):
    before = done.read_bytes()
    with pytest.raises(DataError, match=what):
        fit(resume=done, checkpoint=done, **other)
    assert done.read_bytes() == before


def test_files_that_are_no_checkpoint(tmp_path, done, monkeypatch):
    posterior = fit()
    posterior.save(tmp_path / "fit.tbr")
    with pytest.raises(DataError, match=r"torch file, but not one fit\(checkpoint=\) wrote"):
        fit(resume=tmp_path / "fit.tbr")
    with pytest.raises(DataError, match=r"torch file, but not one Posterior\.save wrote"):
        tbr.load(done)
    content = done.read_bytes()
    for name, bad in {
        "cut": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint",
        "turned": content[:3000] + bytes([content[3000] ^ 255]) + content[3001:],
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(DataError, match=r"no complete file that fit\(checkpoint=\) wrote"):
            fit(resume=tmp_path / name)
    with pytest.raises(FileNotFoundError):
        fit(resume=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fit(checkpoint=tmp_path / "none" / "fit.part")
    for name in ("checkpoint", "resume"):
        with pytest.raises(DataError, match=r"path must be the name of a file, got int"):
            fit(**{name: 3})
    monkeypatch.setattr(tbr, "__version__", "0.0.1")
    with pytest.raises(DataError, match=r"and this is 0\.0\.1, whose fits may differ"):
        fit(resume=done)


def test_a_full_disk_costs_no_work(tmp_path, monkeypatch):
    path, writes, write = tmp_path / "fit.part", [], torch.save

    def full_disk(*given):
        writes.append(0)
        if len(writes) > 3:
            raise OSError(28, "No space left on device")
        write(*given)

    monkeypatch.setattr(torch, "save", full_disk)
    model = tbr.TreeModel(SIM.tree, 2, "linear")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = tbr.fit(
            model, SIM.x, SIM.y, SIM.env, progress=False, options=OPTIONS, checkpoint=path
        )
    said = [str(one.message) for one in caught if one.category is tbr.DataWarning]
    assert len(said) == 1
    assert "could not be written" in said[0]
    assert "No space left" in said[0]
    monkeypatch.undo()
    assert_same(found, fit(resume=path))  # two parts are there
    assert [one.name for one in tmp_path.iterdir()] == ["fit.part"]


SCRIPT = """
import warnings
import pyro_tbr as tbr
warnings.simplefilter("ignore")
sim = tbr.simulate(num_leaves=6, latent_dim=2, num_features=8, rows_per_leaf=60, noise_scale=1.0)
options = tbr.FitOptions(restarts=8, max_steps=200, mixture_components=8, cross_fit=3)
print("begun", flush=True)
found = tbr.fit(tbr.TreeModel(sim.tree, 2, "mlp"), sim.x, sim.y, sim.env, progress=False,
                options=options, checkpoint="fit.part", resume="fit.part")
found.deltas().to_pickle("deltas.pkl")
"""


def killed(folder, kind, seconds):
    """Runs the script and ends it by a signal after so many seconds; what it had done by then."""
    run = subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout.readline() == "begun\n"
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.send_signal(kind)
    _, errors = run.communicate()
    return errors


def in_folder(folder):
    folder.mkdir()
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    return folder


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    whole = in_folder(tmp_path / "whole")
    start = time.perf_counter()
    assert killed(whole, signal.SIGKILL, 600) == ""
    took = time.perf_counter() - start
    rng = np.random.default_rng(int(os.environ.get("TBR_SEED", 0)))
    for number in range(10):
        folder = in_folder(tmp_path / str(number))
        kind = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        errors = killed(folder, kind, rng.uniform(0.05, 0.8) * took)
        if kind == signal.SIGINT and "KeyboardInterrupt" in errors:
            assert "what is done is in 'fit.part': fit(..., resume=) of it" in errors
        killed(folder, kind, 600)
        pd.testing.assert_frame_equal(
            pd.read_pickle(folder / "deltas.pkl"), pd.read_pickle(whole / "deltas.pkl"),
            check_exact=True,
        )  # fmt: skip
        assert sorted(one.name for one in folder.iterdir()) == [
            "deltas.pkl", "fit.part", "script.py"
        ]  # fmt: skip
