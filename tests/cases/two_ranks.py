"""One rank of a training over several processes; run by ``test_two_processes``.

The loss of the library's own training as a module under DistributedDataParallel, full batch, then
the weights' posterior from the statistics of all ranks' rows.
"""

import gc
import sys

import torch
import torch.distributed as dist
from torch import nn

import pyro_tbr as tbr
from pyro_tbr.guides import statistics
from pyro_tbr.inference.svi import TrainingRows, minibatch_elbo
from tests.cases.toy import star, toy

LEAVES = [f"l{i}" for i in range(20)]
STEPS = 60


class Loss(nn.Module):
    """Negative ELBO a row of the global data set."""

    def __init__(self, model, guide):
        super().__init__()
        self.encoder, self.likelihood, self.guide = model.encoder, model.likelihood, guide
        self.model = (model,)  # not a second owner of its parts

    def forward(self, rows):
        return -minibatch_elbo(self.model[0], self.guide, rows, self.model[0].num_rows)


def parts(num_rows):
    """Rows, and a model that knows how many there are over all ranks."""
    tree = star(LEAVES)
    x, y, env = toy(LEAVES, n=11, d=2, shift=[("l3", 0, 3.0), ("l15", 1, -3.0)])
    kept = torch.arange(len(x)).reshape(20, 11)[:, :10].reshape(-1).tolist()
    kept = (kept + [len(x) - 1])[:num_rows]  # 200 rows, and one more at the last leaf
    index = torch.tensor([tree.index(env[i]) for i in kept])
    features, outcomes = torch.tensor(x[kept]).float(), torch.tensor(y[kept]).float()[:, None]
    rows = TrainingRows(features, outcomes, torch.ones_like(outcomes), index)
    model = tbr.TreeModel(tree, 2, encoder="linear", num_features=2, num_outcomes=1)
    model.num_rows = num_rows
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
        design = model.design(model.encoder(rows.prepared))
    own = statistics(design, rows.y, rows.env_index, model.likelihood)
    first, *others = gather(own)
    guide = tbr.TreeGuide(model)
    guide.update(sum(others, start=first), sweeps=40)
    return guide.delta_moments().inclusion


def run(num_rows, ranks=1, rank=0):
    """State, PIPs of the mean-field guide and PIPs of the tree guide, after training."""
    model, rows = parts(num_rows)
    loss = Loss(model, tbr.MeanFieldGuide(model))
    named = dict(loss.named_parameters())
    if ranks == 1:
        train(loss, rows)
        pips = weights(model, rows)
    else:
        middle = num_rows // 2  # the first rank has the first ten leaves only
        own = torch.arange(middle) if rank == 0 else torch.arange(middle, num_rows)
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


if __name__ == "__main__":
    number, rank, store, target = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(run(number, ranks=2, rank=rank), target)
    dist.destroy_process_group()
    gc.collect()
