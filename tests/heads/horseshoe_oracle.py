"""The horseshoe's posterior on a small tree, one latent, slow and plain: sampling of the scales.

Root weight and changes are integrated out, so a state is the logs of global, slab and local scales
alone, (2 + A,); given them the changes are normal. Gibbs draws each scale given the others from a
fine grid with a random offset; the log density serves other samplers too.
"""

from typing import NamedTuple

import torch
from torch.distributions import HalfCauchy, InverseGamma

_STEP, _REACH = 0.35, 7.0


class Changes(NamedTuple):
    """Scales (S, ...), draws of the changes (S, A), and their moments given the scales."""

    global_scale: torch.Tensor
    slab_scale: torch.Tensor
    local_scale: torch.Tensor
    deltas: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor

    def sd(self):
        """Posterior standard deviations, (A,)."""
        return (self.mean.var(0) + self.var.mean(0)).sqrt()


class HorseshoeOracle:
    """For potentials exp(eta u - lam u^2 / 2), (V,), under a built prior of one weight."""

    def __init__(self, paths, eta, lam, prior):
        seen = lam > 0
        self.prior, self.fixed = prior, prior.global_scale.fixed
        self.num_arcs = paths.shape[1]
        one = torch.ones(len(paths), 1, dtype=torch.float64)
        self.design = torch.cat([one, paths], 1)[seen]
        self.observed, self.noise = eta[seen] / lam[seen], 1 / lam[seen]
        self.root_var = prior.root_scale.fixed.double().square().reshape(1)

    def _solved(self, logs):
        """Prior variances of root and changes, their covariance with data, a factor of data's."""
        wide = logs[..., :1] + logs[..., 2:]
        var = 1 / ((-2 * wide).exp() + (-2 * logs[..., 1:2]).exp())
        var = torch.cat([self.root_var.expand(*var.shape[:-1], 1), var], -1)
        gain = var.unsqueeze(-1) * self.design.T  # (..., 1 + A, L)
        return var, gain, torch.linalg.cholesky(self.design @ gain + torch.diag(self.noise))

    def log_density(self, logs):
        """Log density of log scales (..., 2 + A), up to a constant."""
        chol = self._solved(logs)[2]
        residual = self.observed.expand(chol.shape[:-1]).unsqueeze(-1)
        white = torch.linalg.solve_triangular(chol, residual, upper=False)
        total = -0.5 * white.square().sum((-2, -1))
        total = total - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        total = total + (HalfCauchy(1.0).log_prob(logs[..., 2:].exp()) + logs[..., 2:]).sum(-1)
        slab, whole = self.prior.slab_scale, self.prior.global_scale
        half = torch.tensor(slab.df / 2, dtype=torch.float64)
        square = InverseGamma(half, half * slab.prior_scale.double().reshape(()) ** 2)
        total = total + square.log_prob((2 * logs[..., 1]).exp()) + 2 * logs[..., 1]
        if self.fixed is None:
            density = HalfCauchy(whole.prior_scale.double().reshape(()))
            total = total + density.log_prob(logs[..., 0].exp()) + logs[..., 0]
        return total

    def start(self, num_chains, generator):
        """Log scales to start from, (num_chains, 2 + A)."""
        shape = (num_chains, 2 + self.num_arcs)
        logs = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.fixed is None:
            logs[:, 0] += self.prior.global_scale.prior_scale.double().log().reshape(())
        else:
            logs[:, 0] = self.fixed.double().log().reshape(())
        return logs

    def gibbs(self, num_chains, num_sweeps, warmup=15, seed=0):
        """Log scales, (num_chains * num_sweeps, 2 + A)."""
        generator = torch.Generator().manual_seed(seed)
        logs, kept = self.start(num_chains, generator), []
        middle = logs.mean(0) * (torch.arange(logs.shape[1]) == 0)
        steps = torch.arange(-_REACH, _REACH + 1e-9, _STEP, dtype=torch.float64)
        for sweep in range(warmup + num_sweeps):
            for place in range(0 if self.fixed is None else 1, logs.shape[1]):
                shift = torch.rand(num_chains, 1, generator=generator, dtype=torch.float64) - 0.5
                trial = logs.unsqueeze(1).repeat(1, len(steps), 1)
                trial[..., place] = middle[place] + steps + _STEP * shift
                weight = self.log_density(trial).softmax(-1)
                pick = torch.multinomial(weight, 1, generator=generator)
                logs[:, place] = trial[..., place].gather(1, pick).squeeze(1)
            if sweep >= warmup:
                kept.append(logs.clone())
        return torch.cat(kept)

    def changes(self, logs, repeats=1, seed=1):
        """Draws and moments of the changes given log scales, (S, 2 + A)."""
        generator = torch.Generator().manual_seed(seed)
        logs = logs.repeat(repeats, 1)
        var, gain, chol = self._solved(logs)
        solved = torch.cholesky_solve(gain.mT, chol).mT
        mean = (solved @ self.observed)[:, 1:]
        cov = (torch.diag_embed(var) - solved @ gain.mT)[:, 1:, 1:]
        root = torch.linalg.cholesky(cov + 1e-14 * torch.eye(self.num_arcs, dtype=torch.float64))
        noise = torch.randn(*mean.shape, 1, generator=generator, dtype=torch.float64)
        deltas = mean + (root @ noise).squeeze(-1)
        scales = logs.exp()
        spread = cov.diagonal(dim1=1, dim2=2)
        return Changes(scales[:, 0], scales[:, 1], scales[:, 2:], deltas, mean, spread)
