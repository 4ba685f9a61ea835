"""The fit, its sampler and Pyro's NUTS on a small tree: the same answers, and how long they take.

Known latents and normal changes (``GaussianPrior``: NUTS cannot move gates) on a random tree,
scales and noise given. NUTS runs the model that the fit has built, on the same rows in the same
units, for as many draws as warm-up steps, of 127 leapfrog steps at most. Prints CPU seconds, their
ratio to the fit's, and how leaf weights compare with those of NUTS: the largest and the root mean
square difference of means in its standard deviations, and the mean ratio of standard deviations;
in the last line the error of NUTS' means, in the same unit, and the effective number of its draws.

    python examples/experiments/benchmark_nuts.py
    python examples/experiments/benchmark_nuts.py --leaves 4 --draws 100
"""

import argparse
import time

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from pyro.util import get_rng_state, set_rng_state

import pyro_tbr as tbr
from pyro_tbr.tree import path_sum

NOISE = 0.3


def leaf_weights(tree, draws):
    """Weights of the leaves in the model's units, (draws, leaves, W, Q)."""
    root, deltas = (draws[name].double() for name in ("root_weights", "deltas"))
    return path_sum(tree, root, deltas, event_dim=2)[..., tree.leaf_index, :, :]


def by_nuts(posterior, rows, draws, seed):
    """Draws of leaf weights by NUTS of the model that was fitted."""
    model, before = posterior.model, get_rng_state()
    kernel = NUTS(model, max_tree_depth=7)
    chain = MCMC(kernel, num_samples=draws, warmup_steps=draws, disable_progbar=True)
    pyro.set_rng_seed(seed)
    try:
        chain.run(*rows)
    finally:
        set_rng_state(before)
    return leaf_weights(model.tree, chain.get_samples())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, default=6)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = tbr.simulate(
        num_leaves=args.leaves, shape="random", latent_dim=2, rows_per_leaf=args.rows,
        noise_scale=NOISE, seed=args.seed,
    )  # fmt: skip
    prior, likelihood = tbr.GaussianPrior(1.0, root_scale=1.0), tbr.GaussianLikelihood(NOISE)
    model = tbr.TreeModel(data.tree, 2, "identity", prior=prior, likelihood=likelihood)
    how = {"progress": False, "options": tbr.FitOptions(dtype="float64")}
    tbr.fit(model, data.z, data.y, data.env, **how)  # compiles
    start = time.process_time()
    posterior = tbr.fit(model, data.z, data.y, data.env, **how)
    seconds = {"fit": time.process_time() - start}
    found = {"fit": leaf_weights(data.tree, posterior.guide.sample(4000, _generator(args.seed)))}

    start = time.process_time()
    sampled = tbr.sample_posterior(posterior, seed=args.seed, progress=False)
    seconds["sample_posterior"] = time.process_time() - start
    found["sample_posterior"] = leaf_weights(
        data.tree, sampled.guide.sample(4000, _generator(args.seed))
    )

    x = torch.as_tensor(data.z)
    env = torch.tensor([data.tree.index(leaf) for leaf in data.env])
    y = posterior.scaling.to_model(torch.as_tensor(data.y).reshape(len(x), -1))
    start = time.process_time()
    found["NUTS"] = by_nuts(posterior, (x, env, y), args.draws, args.seed)
    seconds["NUTS"] = time.process_time() - start

    mean, sd = found["NUTS"].mean(0), found["NUTS"].std(0)
    size = effective_sample_size(found["NUTS"].unsqueeze(0), chain_dim=0, sample_dim=1)
    table = []
    for name, draws in found.items():
        off = ((draws.mean(0) - mean) / sd).abs().numpy()
        ratio = seconds[name] / seconds["fit"]
        table.append({
            "method": name, "CPU s": seconds[name], "over the fit's": ratio,
            "means off, largest": off.max(), "rms": np.sqrt(np.square(off).mean()),
            "sd over NUTS'": (draws.std(0) / sd).mean().item(),
        })  # fmt: skip
    table = pd.DataFrame(table).set_index("method")
    print(table.round(3).to_string())
    error, size = (1 / size).mean().sqrt().item(), size.mean().item()
    print(f"error of NUTS' means {error:.3f}, effective draws {size:.0f}")
    return table


def _generator(seed):
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    main()
