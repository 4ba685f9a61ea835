"""Slow and plain answers for small trees: what the library's fast code is compared with."""

from typing import NamedTuple

import torch


class Enumerated(NamedTuple):
    """Exact posterior of one latent: a number, arcs (A,) or nodes (V,)."""

    log_evidence: torch.Tensor
    pips: torch.Tensor
    node_mean: torch.Tensor
    node_var: torch.Tensor
    delta_mean: torch.Tensor
    delta_second: torch.Tensor
    any_on: torch.Tensor  # (A, A): probability that arc a or arc b is on


def dense_paths(tree):
    """1 where the arc lies on the way from the root to the node, (V, A)."""
    paths = torch.zeros(tree.num_nodes, tree.num_arcs, dtype=torch.float64)
    for arc, parent in enumerate(tree.arc_parent.tolist()):
        paths[arc + 1] = paths[parent]
        paths[arc + 1, arc] = 1.0
    return paths


def all_gates(num_arcs):
    """Every inclusion pattern, (2**A, A)."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * num_arcs).view(
        -1, num_arcs
    )


def enumerate_posterior(
    paths, eta, lam, inclusion_prob, slab_scale, root_scale, root_loc=0.0, gates=None
):
    """Exact posterior over all 2**A inclusion patterns, potentials exp(eta u - lam u^2 / 2)."""
    num_arcs = paths.shape[1]
    gates = all_gates(num_arcs) if gates is None else gates
    rate = torch.as_tensor(inclusion_prob, dtype=torch.float64).expand(num_arcs)
    slab_var = torch.as_tensor(slab_scale, dtype=torch.float64).square().expand(num_arcs)
    log_prior = torch.where(gates > 0, rate, 1 - rate).log().sum(1)
    weight, found = _given_patterns(
        paths, eta, lam, gates * slab_var, log_prior, root_scale, root_loc
    )
    both_off = torch.einsum("g,ga,gb->ab", weight, 1 - gates, 1 - gates)
    return Enumerated(pips=weight @ gates, any_on=1 - both_off, **found)


def enumerate_classes(paths, eta, lam, class_prob, class_var, root_scale, root_loc=0.0):
    """Exact posterior over all J**A patterns of classes of changes.

    Returns:
        The posterior's fields by name, with ``class_prob``, (A, J), in place of ``pips``.
    """
    num_arcs = paths.shape[1]
    prob, var = (part.expand(num_arcs, *part.shape[-1:]) for part in (class_prob, class_var))
    picks = [torch.arange(prob.shape[-1])] * num_arcs
    patterns = torch.cartesian_prod(*picks).view(-1, num_arcs)
    arcs = torch.arange(num_arcs)
    log_prior = prob[arcs, patterns].log().sum(1)
    weight, found = _given_patterns(
        paths, eta, lam, var[arcs, patterns], log_prior, root_scale, root_loc
    )
    picked = torch.nn.functional.one_hot(patterns, prob.shape[-1]).double()
    return found | {"class_prob": torch.einsum("g,gaj->aj", weight, picked)}


def _given_patterns(paths, eta, lam, change_var, log_prior, root_scale, root_loc):
    """Weights of patterns and moments over them, given each one's variances of changes, (G, A).

    The unknowns are the root's weight and the A changes; given a pattern they are Gaussian, and a
    node with a potential is an observation eta / lam of its weight with variance 1 / lam.
    """
    num_nodes, num = len(paths), len(change_var)
    design = torch.cat([torch.ones(num_nodes, 1, dtype=torch.float64), paths], 1)  # V, 1 + A
    root_var = torch.full((num, 1), float(root_scale) ** 2, dtype=torch.float64)
    prior_var = torch.cat([root_var, change_var], 1)  # G, 1 + A

    seen = lam > 0
    observed, noise, rows = eta[seen] / lam[seen], 1 / lam[seen], design[seen]
    gain = torch.einsum("gi,li->gil", prior_var, rows)
    cov = torch.einsum("li,gim->glm", rows, gain) + torch.diag(noise)
    chol = torch.linalg.cholesky(cov)
    residual = (observed - root_loc).unsqueeze(1)
    white = torch.linalg.solve_triangular(chol, residual.expand(num, -1, -1), upper=False)
    log_lik = -0.5 * white.square().sum((1, 2)) - chol.diagonal(dim1=1, dim2=2).log().sum(1)
    # The potential is the density of the observation times sqrt(2 pi noise) exp(eta^2 / 2 lam).
    log_joint = log_lik + 0.5 * (noise.log().sum() + (eta[seen] * observed).sum()) + log_prior
    weight = log_joint.softmax(0)

    solved = torch.cholesky_solve(gain.mT, chol).mT  # G, 1 + A, L
    mean = (solved @ residual).squeeze(2)
    mean[:, 0] += root_loc
    cov = torch.diag_embed(prior_var) - solved @ gain.mT
    second = weight @ (cov.diagonal(dim1=1, dim2=2) + mean.square())
    at_nodes = mean @ design.T
    node_mean = weight @ at_nodes
    node_cov = torch.einsum("vi,gij,vj->gv", design, cov, design)
    return weight, {
        "log_evidence": log_joint.logsumexp(0),
        "node_mean": node_mean,
        "node_var": weight @ (node_cov + (at_nodes - node_mean).square()),
        "delta_mean": weight @ mean[:, 1:],
        "delta_second": second[1:],
    }
