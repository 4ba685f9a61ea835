"""How time and memory of inside and outside passes grow with the tree, and a fit-sized case.

Prints seconds and peak memory of both passes on large trees, each in a process of its own; then
seconds per pass and their ratio to the size before; linear means a ratio of about 10 for 10 times
the arcs. Then draws of all weights along a tree, and smoothing of dense changes beside the
same by the mixtures' passes. One thread:
``python examples/experiments/benchmark_tree.py --leaves 1000 10000``.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable

import torch
from torch import Tensor

from parts.spawned import peak
from pyro_tbr.tree import Tree, path_sum
from pyro_tbr.tree.messages import ArcLaw, inside_pass, outside_pass, sample, smooth

ROOT = (0.0, 3.0)  # prior mean and standard deviation of the root's weight


def balanced(num_leaves: int) -> Tree:
    return Tree(range(2 * num_leaves - 1), [i // 2 for i in range(2 * num_leaves - 2)])


def caterpillar(num_leaves: int) -> Tree:
    return Tree(range(2 * num_leaves - 1), [i // 2 * 2 for i in range(2 * num_leaves - 2)])


def star(num_leaves: int) -> Tree:
    return Tree(range(num_leaves + 1), [0] * num_leaves)


def random_tree(num_leaves: int) -> Tree:
    generator = torch.Generator().manual_seed(0)
    parents = [int(torch.randint(i + 1, (1,), generator=generator)) for i in range(num_leaves)]
    return Tree(range(num_leaves + 1), sorted(parents))


def random_binary(num_leaves: int) -> Tree:
    """A random leaf is split in two until there are enough."""
    generator = torch.Generator().manual_seed(0)
    leaves, parents = [0], {}
    for child in range(1, 2 * num_leaves - 1, 2):
        place = int(torch.randint(len(leaves), (1,), generator=generator))
        parents[child] = parents[child + 1] = leaves[place]
        leaves[place] = child
        leaves.append(child + 1)
    return Tree.from_parents(parents)


def potentials(tree: Tree, num: int, error: float, rate: float) -> tuple[Tensor, Tensor]:
    """Data at the leaves, (num, V), for weights with sparse changes."""
    generator = torch.Generator().manual_seed(1)
    shape = (num, tree.num_arcs)
    gates = torch.rand(shape, generator=generator) < rate
    weights = path_sum(
        tree,
        3 * torch.randn(num, generator=generator),
        gates * torch.randn(shape, generator=generator),
        event_dim=0,
    )
    lam = torch.zeros_like(weights)
    lam[:, tree.leaf_index] = error**-2
    return lam * (weights + error * torch.randn(weights.shape, generator=generator)), lam


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_memory(make: Callable[[int], Tree], leaves: int, num: int, components: int) -> None:
    """Prints seconds and peak memory of both passes; data at all leaves, or at a fifth of them."""
    torch.set_num_threads(1)
    tree = make(leaves)
    eta, lam = potentials(tree, num, 0.2, 0.05)
    law = ArcLaw.spike_slab(inclusion_prob=0.05, slab_scale=1.0)
    before = peak()
    for share in (5, 1):  # the peak never falls: the smaller one first
        seen = torch.where(torch.arange(tree.num_nodes) % share == 0, lam, 0.0)
        seconds = timed(lambda seen=seen: smooth(tree, eta, seen, law, *ROOT, components))
        print(
            f"{make.__name__:13s} {leaves} leaves, data at {100 // share:3d} %, batch {num:2d}, "
            f"{components:2d} components: {seconds:6.1f} s, peak {peak():5.0f} MB "
            f"({before:.0f} before)",
            flush=True,
        )


def measure(tree: Tree, num: int, components: int, sweeps: int, repeats: int) -> list[float]:
    """Seconds of the inside pass, the outside pass, and the inside pass with its gradient."""
    eta, lam = potentials(tree, num, 0.2, 0.05)
    law = (ArcLaw.spike_slab(inclusion_prob=0.05, slab_scale=1.0), *ROOT, components, sweeps)

    inside = inside_pass(tree, eta, lam, *law)
    times = (
        [timed(lambda: inside_pass(tree, eta, lam, *law)) for _ in range(repeats)],
        [timed(lambda: outside_pass(tree, inside)) for _ in range(repeats)],
    )
    if tree.num_arcs > 1_000:
        return [min(part) for part in times]

    def gradient() -> None:
        leaf = eta.clone().requires_grad_()
        inside_pass(tree, leaf, lam, *law).log_evidence.sum().backward()

    return [*(min(part) for part in times), min(timed(gradient) for _ in range(repeats))]


def measure_draws(tree: Tree, num: int, components: int, draws: int) -> tuple[int, float]:
    """Numbers drawn, and seconds: spike, slab in halves, as in a fit by default."""
    eta, lam = potentials(tree, num, 0.2, 0.05)
    law = ArcLaw.spike_slab(inclusion_prob=0.2, slab_scale=0.5, slab_loc=1.0, spike_scale=0.05)
    inside = inside_pass(tree, eta, lam, law, *ROOT, components)
    generator = torch.Generator().manual_seed(0)
    seconds = timed(lambda: sample(tree, inside, draws, generator))
    return draws * num * tree.num_arcs, seconds


def measure_dense(tree: Tree, num: int, repeats: int) -> tuple[float, float]:
    """Seconds of smoothing dense changes in closed form, and by the passes for mixtures."""
    eta, lam = potentials(tree, num, 0.2, 1.0)
    law = ArcLaw.of(prob=1.0, mean=0.0, var=1.0)

    def by_passes() -> None:
        outside_pass(tree, inside_pass(tree, eta, lam, law, *ROOT))

    direct = min(timed(lambda: smooth(tree, eta, lam, law, *ROOT)) for _ in range(repeats))
    return direct, min(timed(by_passes) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--large", type=int, default=20_000, help="leaves for memory; 0: none")
    parser.add_argument("--chain", type=int, default=5_000, help="length of the chain; 0: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    if arguments.large:
        for make in (star, random_binary):
            for num, components in ((6, 4), (6, 32), (96, 4), (96, 32)):
                process = multiprocessing.get_context("spawn").Process(
                    target=measure_memory, args=(make, arguments.large, num, components)
                )
                process.start()
                process.join()

    print("62 arcs, batch of 5: milliseconds inside, outside, inside with gradient")
    for make, leaves in ((balanced, 32), (star, 62), (caterpillar, 32), (random_tree, 62)):
        for sweeps in (1, 2):
            times = measure(make(leaves), 5, arguments.components, sweeps, 5)
            values = "  ".join(f"{1e3 * value:6.1f}" for value in times)
            print(f"  {make.__name__:12s} sweeps {sweeps}: {values}")

    for make in (balanced, star, random_tree):
        before = None
        for leaves in arguments.leaves:
            total = sum(measure(make(leaves), arguments.batch, arguments.components, 1, 1)[:2])
            ratio = "" if before is None else f", {total / before:.1f} times the one before"
            print(
                f"{make.__name__:12s} {leaves:6d} leaves x {arguments.batch}: {total:.2f} s{ratio}"
            )
            before = total
    if arguments.chain:
        chain = Tree(range(arguments.chain + 1), range(arguments.chain))
        total = sum(measure(chain, 1, arguments.components, 1, 1)[:2])
        print(f"chain of {arguments.chain}: {total:.2f} s")
    for leaves, batch, draws in ((24, 96, 2_000), (max(arguments.leaves), arguments.batch, 100)):
        tree = random_tree(leaves)
        numbers, seconds = measure_draws(tree, batch, arguments.components, draws)
        print(
            f"{draws} draws, {tree.num_arcs} arcs x {batch}: {seconds:.2f} s, "
            f"{numbers / seconds / 1e6:.1f} million numbers a second"
        )
        direct, passes = measure_dense(tree, batch, 3)
        print(
            f"dense changes, {tree.num_arcs} arcs x {batch}: {1e3 * direct:.2f} ms, "
            f"the passes for mixtures {passes / direct:.1f} times as long"
        )


if __name__ == "__main__":
    main()
