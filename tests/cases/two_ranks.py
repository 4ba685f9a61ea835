"""One rank of a training over several processes; run by ``test_two_processes``.

The loss of the library's own training as a module under DistributedDataParallel, full batch, then
the weights' posterior from the statistics of all ranks' rows; then ``fit`` with each rank's rows.
"""

import gc
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from scipy.sparse import csr_matrix
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.data import stream
from pyro_tbr.heads import DesignRows
from pyro_tbr.heads.sites import row_sites
from pyro_tbr.heads.statistics import statistics
from pyro_tbr.inference.checkpoint import Checkpoint
from pyro_tbr.inference.encoder import rows as encoder_rows
from pyro_tbr.inference.encoder.rows import StandardRows
from tests.brief import sweeps
from tests.cases.toy import star, toy

LEAVES = [f"l{i}" for i in range(20)]
STEPS = 40
NUM_ROWS = 201  # 100 of them the first rank's
SIM = tbr.simulate(
    num_leaves=8, latent_dim=2, num_features=6, rows_per_leaf=20, feature_noise=0.3,
    delta_min=1.0, seed=1,
)  # fmt: skip
# Encoders that are learnt, and all that may be said of rows.
LEARNT = {
    "linear": ({}, {}),
    "network": ({"encoder": "mlp"}, {"row_weights": np.linspace(0.5, 2, 160)}),
    "network, by blocks": ({"encoder": "mlp"}, {}),
    "binary": ({"likelihood": "bernoulli"}, {}),
    "binary, by blocks": ({"likelihood": "bernoulli"}, {}),
    "groups": ({}, {"groups": [f"g{i // 5}" for i in range(160)]}),
    "number of latents": ({"latent_dim": None}, {}),
}


class Loss(nn.Module):
    """Negative ELBO a row of the global data set."""

    def __init__(self, model, guide):
        super().__init__()
        # Not in training mode, or a single process would start next to what its rows say.
        self.encoder, self.guide = model.encoder, guide.eval()
        self.model = (model,)  # not a second owner of its parts

    def forward(self, rows):
        model = self.model[0]
        loss = tbr.TreeELBO().differentiable_loss
        return loss(model, self.guide, rows.x, rows.env_index, rows.y) / model.num_rows


def parts():
    """Rows, and a model that knows how many there are over all ranks."""
    tree = star(LEAVES)
    x, y, env = toy(LEAVES, n=11, d=2, shift=[("l3", 0, 3.0), ("l15", 1, -3.0)])
    kept = torch.arange(len(x)).reshape(20, 11)[:, :10].reshape(-1).tolist()
    kept.append(len(x) - 1)  # 200 rows, and one more at the last leaf
    index = torch.tensor([tree.index(env[i]) for i in kept])
    features, outcomes = torch.tensor(x[kept]).float(), torch.tensor(y[kept]).float()[:, None]
    rows = StandardRows(features, outcomes, index)
    model = tbr.TreeModel(tree, 2, encoder="linear", num_features=2, num_outcomes=1)
    model.num_rows = NUM_ROWS
    return model, rows


def train(loss, rows):
    """Full-batch steps; the optimizer has every parameter from the start."""
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()


def weights(model, rows, gather=lambda own: [own]):
    """PIPs of the tree guide from the statistics of all ranks."""
    with torch.no_grad():
        design = model.design(model.encoder(rows.x))
    # Not coupled: latents that were not rotated leave open which of them a change is in, and which
    # it is hangs by a hair.
    guide = tbr.TreeGuide(model, num_components=8, coupled=False)
    block = DesignRows(design, rows.y, rows.env_index)
    first, *others = gather(statistics(block, row_sites(guide, block)[0]))
    guide.update(sum(others, start=first), sweeps=20, rough=True)
    return guide.delta_moments().inclusion


def run(ranks=1, rank=0):
    """State, PIPs of the mean-field guide and PIPs of the tree guide, after training."""
    model, rows = parts()
    loss = Loss(model, tbr.MeanFieldGuide(model))
    named = dict(loss.named_parameters())
    if ranks == 1:
        train(loss, rows)
        pips = weights(model, rows)
    else:
        middle = NUM_ROWS // 2  # the first rank has the first ten leaves only
        own = torch.arange(middle) if rank == 0 else torch.arange(middle, NUM_ROWS)
        rows = rows.select(own)
        wrapped = nn.parallel.DistributedDataParallel(loss)
        assert set(wrapped.parameters()) == set(named.values())
        train(wrapped, rows)

        def gather(mine):
            every = [None] * ranks
            dist.all_gather_object(every, mine)
            return every

        pips = weights(model, rows, gather)
        dist.barrier()
        del wrapped  # before the group, else the process may abort as it ends
        gc.collect()
    return loss.state_dict(), loss.guide.delta_moments().inclusion.detach(), pips


def table(num_rows):
    """All rows as a user has them."""
    x, y, env = toy(LEAVES, n=11, d=3, shift=[("l3", 0, 3.0), ("l15", 1, -3.0)])
    kept = slice(len(x) - num_rows, None)
    return pd.DataFrame(x[kept], columns=list("uvw")), y[kept], env[kept]


def fits(rank):
    """What ``fit`` does in a rank that has the first hundred rows, or all others."""
    x, y, env = (part[:100] if rank == 0 else part[100:] for part in table(NUM_ROWS))
    tree = star(LEAVES)
    together = [fit_rows(tree, x, y, env, ranks="together", seed=seed) for seed in (3, None)]
    apart = fit_rows(tree, x, y, env, ranks="apart")
    sparse = pd.DataFrame.sparse.from_spmatrix(csr_matrix(x.to_numpy()), columns=x.columns)
    bad = x if rank == 0 else x.assign(v=x["v"].where(x.index != x.index[0]))
    refused = {
        "nothing said": lambda: fit_rows(tree, x, y, env),
        "NaN in one rank": lambda: fit_rows(tree, bad, y, env, ranks="together"),
        "other seeds": lambda: fit_rows(tree, x, y, env, ranks="together", seed=rank),
        "sparse in one rank": lambda: fit_rows(tree, (x, sparse)[rank], y, env, ranks="together"),
        "another column": lambda: fit_rows(
            tree, x.rename(columns={"w": f"w{rank}"}), y, env, ranks="together"
        ),
    }
    return {
        "together": [torch.tensor(posterior.pips().to_numpy()) for posterior in together],
        "state": together[0].model.state_dict(),
        "seeds": [posterior.report.seed for posterior in together],
        "rows": [int(posterior.row_counts.sum()) for posterior in (*together, apart)],
        "refused": {name: text_of(call) for name, call in refused.items()},
    }


def learnt(kind, rows):
    """PIPs, latents and predictions for all rows of a fit to some, those of this process."""
    about, known = LEARNT[kind]
    model = tbr.TreeModel(SIM.tree, **{"latent_dim": 2, "encoder": "linear", **about})
    y = (SIM.y > 0).astype(float) if "binary" in kind else SIM.y
    known = {name: np.asarray(value)[rows] for name, value in known.items()}
    options = tbr.FitOptions(
        restarts=8, max_steps=40, sparse_steps=4, mixture_components=4, dtype="float64"
    )
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        if "by blocks" in kind:  # prepared features are made anew each time
            patch.setattr(encoder_rows, "_MOST_ELEMENTS", 0)
            patch.setattr(stream, "_BLOCK_ELEMENTS", 60)
            patch.setattr(stream, "_LEAST_ROWS", 1)
        posterior = tbr.fit(
            model, SIM.x[rows], y[rows], SIM.env[rows], ranks="together", progress=False,
            options=options, **known,
        )  # fmt: skip
    mean = posterior.predict(SIM.x, SIM.env).mean
    return {
        "pips": torch.tensor(posterior.pips().to_numpy()),
        "latents": torch.as_tensor(posterior.encode(SIM.x)),
        "mean": torch.as_tensor(mean),
        "rows": posterior.row_counts,
    }


def resumed(rank, folder):
    """PIPs of a fit, and of one that goes on from files of which one process' is a part ahead."""
    own = np.arange(160) % 3 == 0 if rank == 0 else np.arange(160) % 3 > 0

    def fit(seed=0, **files):
        options = tbr.FitOptions(
            restarts=8, max_steps=40, sparse_steps=4, mixture_components=4, dtype="float64"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = tbr.fit(
                tbr.TreeModel(SIM.tree, 2), SIM.x[own], SIM.y[own], SIM.env[own], seed=seed,
                ranks="together", progress=False, options=options, **files,
            )  # fmt: skip
        return torch.tensor(posterior.pips().to_numpy())

    path, parts = Path(folder) / "fit.part", []
    keep = Checkpoint.keep

    def kept(self, name, left):
        keep(self, name, left)
        parts.append(Path(f"{path}.{rank}").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "keep", kept)
        whole = fit(checkpoint=path)
    Path(f"{folder}/later.part.{rank}").write_bytes(parts[1 + rank])
    later = Path(folder) / "later.part"
    found = {"parts": len(parts), "whole": whole}
    found["resumed"] = fit(seed=None, resume=later, checkpoint=Path(folder) / "again.part")
    found["again"] = Path(f"{folder}/again.part.{rank}").exists()
    if rank == 1:
        Path(f"{later}.1").write_bytes(b"damaged")
    found["refused"] = text_of(lambda: fit(resume=later))
    found["there already"] = text_of(lambda: fit(checkpoint=path))
    return found


def fit_rows(tree, x, y, env, **arguments):
    """A quick fit whose warnings do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tbr.IdentificationWarning)
        model = tbr.TreeModel(tree, 3, encoder="identity")
        options = tbr.FitOptions(mixture_components=2)
        with sweeps(1):
            return tbr.fit(model, x, y, env, progress=False, options=options, **arguments)


def text_of(call):
    """The text of the error that a call raises."""
    try:
        call()
    except tbr.TbrError as error:
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    rank, store, target, *kinds = int(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    own = np.arange(160) % 3 == 0 if rank == 0 else np.arange(160) % 3 > 0
    if kinds == ["resumed"]:
        learnt_fits = {"resumed": resumed(rank, Path(store).parent)}
    else:
        learnt_fits = {kind: learnt(kind, own) for kind in kinds}
    torch.save(learnt_fits if kinds else (run(ranks=2, rank=rank), fits(rank)), target)
    dist.destroy_process_group()
    gc.collect()
