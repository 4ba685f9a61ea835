"""Time of a whole fit beside other methods on the same rows, and beside version 0.1.0.

Every method runs in a process of its own, one after the other, with one thread; what is imported
and compiled, and a first small fit, come before its clock starts. Prints CPU seconds, their ratio
to ours, the largest memory of the process, and R2 on a fifth of the rows, which is held out.
``0.1.0`` is that version, taken from this repository's history, with its own defaults. ``encoder``
is one training of the same network with weights for each environment, by squared error, for
1,000 steps of 512 rows.

Data: ``simulated`` is the simulator's default (32 leaves, 5 latents, 200 rows a leaf), ``network``
the same with latents that are mixed by a network, where all encoders are networks; ``neurons`` and
``birds`` are real tables (``real_outcomes.py``). Of a busy machine only ratios of one run count.

    python examples/experiments/benchmark_fit.py
    python examples/experiments/benchmark_fit.py --data neurons birds --methods ours l1_tbr
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
FIRST_VERSION = "f058c1a"
DATA = ("simulated", "network", "neurons", "birds")
METHODS = ("ours", "0.1.0", "dense_tree", "l1_tbr", "encoder")
STEPS, BATCH = 1000, 512  # of one training of an encoder


def rows_of(name: str, seed: int) -> dict:
    """Tree, rows, number of latents and kind of encoder, all as plain arrays."""
    import pyro_tbr as tbr
    from parts import real_data

    if name in ("simulated", "network"):
        mixing = "mlp" if name == "network" else "linear"
        data = tbr.simulate(mixing=mixing, seed=seed)
        x, y, env, tree, latents = data.x, data.y, data.env, data.tree, 5
    else:
        folder = ROOT.parent / "shared" / "data"
        if name == "neurons":
            data, latents = real_data.neurons(folder / "neurons_m1"), 5
        else:
            data, latents = real_data.birds(folder / "birds_niche"), 8
        x, y, env, tree = data.features(np.arange(len(data.y))), data.y, data.env, data.tree
    y = np.asarray(y).reshape(len(y), -1)
    test = np.random.default_rng(seed).random(len(y)) < 0.2
    return {
        "parents": {child: parent for parent, child in tree.arcs},
        "x": np.asarray(x),
        "y": (y - y[~test].mean(0)) / y[~test].std(0),
        "env": np.asarray(env),
        "test": test,
        "latents": latents,
        "encoder": "mlp" if name == "network" else "linear",
    }


def fit_and_predict(method: str, task: dict) -> tuple[float, np.ndarray]:
    """CPU seconds, and predictions for the rows that are held out."""
    import warnings

    import torch

    import pyro_tbr as tbr

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tree, test, latents = tbr.Tree.from_parents(task["parents"]), task["test"], task["latents"]
    x, y, env = (task[name][~test] for name in ("x", "y", "env"))
    new, at = task["x"][test], task["env"][test]

    def ours() -> np.ndarray:
        model = tbr.TreeModel(tree, latents, task["encoder"])
        posterior = tbr.fit(model, x, y, env, progress=False)
        return np.asarray(posterior.predict(new, at).mean).reshape(len(new), -1)

    def rival() -> np.ndarray:
        from pyro_tbr.evaluation import baselines

        kind = {"dense_tree": baselines.DenseTree, "l1_tbr": baselines.L1TBR}[method]
        fitted = kind().fit(tree, x, y, env, latent_dim=latents, encoder=task["encoder"])
        found = np.empty((len(new), y.shape[1]))
        for leaf in dict.fromkeys(at):
            found[at == leaf] = np.asarray(fitted.predict(new[at == leaf], leaf).mean)
        return found

    small = tbr.simulate(num_leaves=4, latent_dim=2, num_features=4, rows_per_leaf=20, seed=0)
    quick = tbr.FitOptions(max_steps=20, sparse_steps=5, restarts=2)
    tbr.fit(
        tbr.TreeModel(small.tree, 2), small.x, small.y, small.env, progress=False, options=quick
    )
    run = ours if method in ("ours", "0.1.0") else rival
    if method == "encoder":
        run = lambda: trained_once(task, x, y, env, new, at)  # noqa: E731
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def trained_once(task: dict, x, y, env, new, at) -> np.ndarray:
    """A network with linear weights for each environment, by Adam on squared errors."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    loc, scale = x.mean(0), x.std(0) + 1e-12
    labels = {label: number for number, label in enumerate(dict.fromkeys(env))}
    width, latents = x.shape[1], task["latents"]
    body = nn.Linear(width, latents)
    if task["encoder"] == "mlp":
        layers = [nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        body = nn.Sequential(*layers, nn.Linear(128, latents))
    weights = nn.Parameter(0.3 * torch.randn(len(labels), latents + 1, y.shape[1]))
    optimizer = torch.optim.Adam([*body.parameters(), weights], lr=3e-3)

    def predicted(features, index):
        z = body(features)
        return torch.einsum("nw,nwq->nq", torch.cat([z, torch.ones(len(z), 1)], 1), weights[index])

    def tensors(features, where):
        index = torch.tensor([labels[label] for label in where])
        return torch.as_tensor((features - loc) / scale).float(), index

    features, index = tensors(x, env)
    target, done = torch.as_tensor(y).float(), 0
    while done < STEPS:
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = (predicted(features[batch], index[batch]) - target[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == STEPS:
                break
    with torch.no_grad():
        return predicted(*tensors(new, at)).numpy()


def measured(method: str, task: dict, folder: Path) -> tuple[float, float, float]:
    """CPU seconds, MB and R2 of a method, by a process of its own."""
    source = ROOT
    if method == "0.1.0":
        source = folder / method
        if not source.exists():
            source.mkdir()
            git = ["git", "-C", str(ROOT), "archive", FIRST_VERSION, "pyro_tbr"]
            with subprocess.Popen(git, stdout=subprocess.PIPE) as archive:
                subprocess.run(["tar", "-x", "-C", source], stdin=archive.stdout, check=True)
    given, answer = folder / "task", folder / "answer"
    given.write_bytes(pickle.dumps(task))
    paths = os.pathsep.join([str(source), str(HERE.parent)])
    command = [sys.executable, str(HERE), "--run", method, str(given), str(answer)]
    subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, check=True
    )
    seconds, memory, found = pickle.loads(answer.read_bytes())
    y, test = task["y"], task["test"]
    error = ((y[test] - found) ** 2).sum(0)
    return seconds, memory, float((1 - error / (y[test] ** 2).sum(0)).mean())


def run(method: str, given: str, answer: str) -> None:
    """What a process of its own does."""
    from parts.spawned import peak

    seconds, found = fit_and_predict(method, pickle.loads(Path(given).read_bytes()))
    Path(answer).write_bytes(pickle.dumps((seconds, peak(), found)))


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run:
        run(*args.run)
        return {}
    found = {}
    print("| data | method | CPU s | over ours | MB | R2 |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.data:
            for repeat in range(args.repeats):
                task = rows_of(name, repeat)
                for method in args.methods:
                    seconds, memory, r2 = measured(method, task, Path(folder))
                    found[name, method, repeat] = seconds
                    ours = found.get((name, "ours", repeat), float("nan"))
                    print(
                        f"| {name} | {method} | {seconds:.1f} | {seconds / ours:.2f} | "
                        f"{memory:.0f} | {r2:.4f} |",
                        flush=True,
                    )
    return found


if __name__ == "__main__":
    main()
