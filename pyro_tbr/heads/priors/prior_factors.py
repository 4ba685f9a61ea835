"""The variational factors of all of a prior's hyperparameters, and their joint update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_tbr.heads.hyper.factors import HyperFactor, RateFactor, ScaleFactor
from pyro_tbr.heads.hyper.hyperparameters import Hyperparameter, Rate, Separation
from pyro_tbr.heads.priors import ArcPrior, HorseshoePrior, SpikeSlabPrior
from pyro_tbr.heads.priors.prior_moments import scale_factor, scale_moments, separation_factor
from pyro_tbr.heads.priors.slab_factors import SeparationFactor

# A start counts as a change where it is above this share of the latent's root mean square change.
_START_SHARE = 0.1
_LEAST_START = 0.3  # least slab scale to start from, over the hyperprior's median
_ALTERNATIONS = 3  # of the slab's scale and separation, each given the other


def hyper_factor(hyper: Hyperparameter) -> HyperFactor:
    """The factor of a hyperparameter, started at the middle of its hyperprior."""
    if isinstance(hyper, Rate):
        return RateFactor(hyper, 0.2)
    kind = SeparationFactor if isinstance(hyper, Separation) else ScaleFactor
    factor = kind(hyper, 1.0)
    if hyper.fixed is None:
        factor.initialise(hyper.middle(), 0.2)
    return factor


class PriorFactors(nn.ModuleDict):
    """Factors by site name, for a built prior."""

    def __init__(self, prior: ArcPrior) -> None:
        super().__init__({hyper.name: hyper_factor(hyper) for hyper in prior.hyperparameters()})
        self._prior = (prior,)  # in a tuple: the model owns the prior

    @torch.no_grad()
    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """Starts at what point estimates say: root weights (W, Q), deltas (A, W, Q)."""
        prior = self._prior[0]
        mask = informed.reshape(-1, 1, 1)
        square = torch.where(mask, deltas.square(), 0.0).double()
        gates = None
        if isinstance(prior, SpikeSlabPrior):
            # Slabs start wide: from a slab as narrow as the estimates' errors the updates do not
            # find back, since every change is then as likely as none.
            least = _LEAST_START * prior.slab_scale.prior_loc.exp().amax().double()
            typical = square.mean((0, 2), keepdim=True).clamp(min=least**2)
            gates = (square > _START_SHARE**2 * typical).double()
            square = gates * square.clamp(min=least**2)
        # A spike starts at its hyperprior's middle: sparse estimates are zero where gates are off,
        # and from no width at all the updates find none.
        self.learn((root - prior.root_loc).square(), square, gates, mask, square.sqrt())

    def learn(
        self,
        root: Tensor,
        square: Tensor,
        gates: Tensor | None,
        informed: Tensor,
        size: Tensor | None = None,
        spike: Tensor | None = None,
    ) -> None:
        """Moves every factor to its optimum.

        Args:
            root: Expected squared deviation of the root weights from their prior mean, (W, Q).
            square: Expected squares of the deltas, those with an open gate where there are gates,
                0 on arcs without data, (A, W, Q).
            gates: Expected gates (A, W, Q), or ``None`` where the prior has none.
            informed: (A, 1, 1) bool; other arcs say nothing of the hyperparameters.
            size: Expected deltas times the sign of their half of the slab, 0 on arcs without data,
                (A, W, Q); not needed where the slab has no halves.
            spike: Expected squares of the deltas with a closed gate, likewise; not needed where the
                spike has no width.
        """
        prior = self._prior[0]
        self.update_scale("root_scale", root, torch.ones_like(root))
        if isinstance(prior, HorseshoePrior):
            self._climb(square, informed)
            return
        if gates is None:
            count = informed.double().expand_as(square)
        else:
            count = torch.where(informed, gates, 0.0).expand_as(square)
            rate = self["inclusion_rate"]
            assert isinstance(rate, RateFactor)
            off = torch.where(informed, 1 - gates, 0.0)
            if prior.wide_spike and spike is not None:
                still = torch.where(prior.changing(), off, 0.0)
                self.update_scale("spike_scale", spike.sum(0), still.expand_as(square).sum(0))
            on = count if gates.shape == count.shape else torch.where(informed, gates, 0.0)
            if rate.hyper.shape[-1] == 1:
                on, off = on.sum(-1, keepdim=True), off.sum(-1, keepdim=True)
            rate.update(on, off, prior.relative_length)
        square, count = square.sum(0), count.sum(0)
        separation = separation_factor(prior, self)
        if separation is None:
            self.update_scale("slab_scale", square, count)
            return
        assert size is not None
        size = size.sum(0)
        for _ in range(_ALTERNATIONS):
            one_plus, cross, _ = separation.moments()
            self.update_scale("slab_scale", one_plus * square, count, cross * size)
            scale = scale_factor(self, "slab_scale")
            separation.learn(
                (square * scale.mean_power(-2.0)).sum(),
                (size * scale.mean_power(-1.0)).sum(),
                count.sum(),
            )

    def update_scale(
        self, name: str, square: Tensor, count: Tensor, size: Tensor | float = 0.0
    ) -> None:
        """Moves the factor of a scale; as for ``ScaleFactor.update``, (W, Q) each."""
        factor, prior = self[name], self._prior[0]
        assert isinstance(factor, ScaleFactor)
        size = torch.as_tensor(size).expand_as(square)
        if factor.hyper.shape[-1] == 1:
            square, count, size = (p.sum(-1, keepdim=True) for p in (square, count, size))
        if getattr(prior, "pooled", False):
            first = prior.num_latents
            square, count, size = (
                torch.cat([part[:first].sum(0).expand(first, -1), part[first:]])
                for part in (square, count, size)
            )
        factor.update(square, count, size)

    @torch.enable_grad()
    def _climb(self, square: Tensor, informed: Tensor, steps: int = 30) -> None:
        """A few Adam steps for scales that have no closed form: the horseshoe's, by mean field."""
        names = ("global_scale", "local_scale", "slab_scale")
        factors = [self[name] for name in names]
        params = [p for factor in factors for p in factor.parameters()]
        if not params:
            return
        optimizer = torch.optim.Adam(params, lr=0.1)
        square = square.detach()
        for _ in range(steps):
            inverse, log_scale, _ = scale_moments(self._prior[0], self)
            fit = torch.where(informed, 0.5 * square * inverse + log_scale, 0.0).sum()
            loss = fit + sum(factor.kl().sum() for factor in factors)  # type: ignore[operator]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
