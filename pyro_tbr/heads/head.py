"""Weights on a tree, given a design: prior and likelihood as a Pyro model that needs no encoder."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pyro_tbr.errors import ShapeError
from pyro_tbr.heads.likelihoods import Likelihood
from pyro_tbr.heads.likelihoods.distributions import Weighted
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.heads.priors import ArcPrior
from pyro_tbr.heads.rows import RowTerms
from pyro_tbr.tree import Tree, path_sum


class Head(LocalParamsModule):
    r"""Outcomes given a design, by weights that change along the arcs of a tree.

    .. math::
        w_v = w_{\mathrm{root}} + \sum_{a \in \mathrm{path}(v)} \delta_a, \quad
        y \sim \mathrm{likelihood}(d^\top w_{\mathrm{env}})

    Args:
        tree: The environments.
        prior: A built prior of the tree's arcs.
        likelihood: A built likelihood of as many outcomes.

    Attributes:
        num_weights: W.
        num_outcomes: Q.
        num_latents: K; weights behind the first K are the intercept.
        num_rows: Rows in the whole data set, for the scale of a minibatch; ``None``: the rows
            given are all there are.
    """

    def __init__(self, tree: Tree, prior: ArcPrior, likelihood: Likelihood) -> None:
        super().__init__()
        self.tree, self.prior, self.likelihood = tree, prior, likelihood
        self.num_weights, self.num_outcomes = prior.num_weights, prior.num_outcomes
        self.num_latents = prior.num_latents
        self.num_rows: int | None = None

    def with_prior(self, prior: ArcPrior, num_latents: int | None = None) -> Head:
        """A head of the same tree, likelihood and units with another prior, not built yet.

        It has ``num_latents`` latents, by default as many as this one.
        """
        own = self.prior
        latents = own.num_latents if num_latents is None else num_latents
        width = latents + own.num_weights - own.num_latents
        sizes = (width, own.num_outcomes)
        loc, both = own.root_loc.new_zeros(sizes, device="cpu"), min(latents, own.num_latents)
        loc[:both], loc[latents:] = own.root_loc[:both], own.root_loc[own.num_latents :]
        built = prior.build(
            self.tree, *sizes, num_latents=latents, root_loc=loc,
            predictor_scale=own.predictor_scale,
        )  # fmt: skip
        built.to(dtype=own.root_loc.dtype, device=own.root_loc.device)
        return Head(self.tree, built, self.likelihood)

    def apart(self) -> Head:
        """The same head with a likelihood of outcomes each of which is alone; parts are shared."""
        likelihood = self.likelihood.apart()
        if likelihood is self.likelihood:
            return self
        other = Head(self.tree, self.prior, likelihood)
        other.num_rows = self.num_rows
        return other

    def forward(
        self,
        design: Tensor,
        env_index: Tensor,
        y: Tensor | None = None,
        terms: RowTerms | None = None,
    ) -> Tensor:
        """The generative process.

        Args:
            design: Latents and intercept, (N, W).
            env_index: Node of each row in ``tree.nodes`` order, (N,) int64.
            y: Outcomes (N, Q), or (N,) where Q is 1; NaN where not observed.
            terms: What else is known of the rows, such as their exposure.

        Returns:
            Outcomes (N, Q), drawn where not given.
        """
        num_batch = design.shape[0]
        if y is not None:
            y = y.unsqueeze(-1) if y.dim() == 1 else y
            if y.shape != (num_batch, self.num_outcomes):
                raise ShapeError(
                    f"y has shape {tuple(y.shape)}, expected ({num_batch}, {self.num_outcomes})"
                )
        root_weights, deltas = self.prior()
        nuisance = self.likelihood.sample_nuisance()
        weights = path_sum(self.tree, root_weights, deltas, event_dim=2)
        weights = weights.index_select(-3, env_index)
        rows = torch.arange(num_batch, device=design.device)
        with pyro.plate("rows", self.num_rows or num_batch, subsample=rows, dim=-1):
            predictor = torch.einsum("...nw,...nwq->...nq", design, weights)
            # A vectorised Predictive puts its draws left of the plate, where sites without rows
            # have a dimension of one.
            predictor = predictor.squeeze(-3) if predictor.dim() > 3 else predictor
            own = self._at_rows(nuisance, env_index) | self._of_weights(nuisance, weights)
            outcome = self.likelihood(predictor, {**own, **terms.values} if terms else own)
            every = torch.ones(num_batch, self.num_outcomes, dtype=torch.bool, device=design.device)
            observed = every if y is None else ~torch.isnan(y)
            outcome = self.likelihood.joint(outcome, observed)
            if terms is not None and terms.weights is not None:
                outcome = Weighted(outcome, terms.weights)
            if y is None:
                return pyro.sample("y", outcome.to_event(1))
            obs = self.likelihood.filled(y)
            return pyro.sample("y", outcome.mask(observed).to_event(1), obs=obs)

    def _of_weights(self, nuisance: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """What rows have of their weights (*B, N, W, Q), as :meth:`_at_rows` has it."""
        found = self.likelihood.values_with(nuisance, weights)
        return {name: v.squeeze(-4) if v.dim() > 4 else v for name, v in found.items()}

    def _at_rows(self, nuisance: dict[str, Tensor], env_index: Tensor) -> dict[str, Tensor]:
        """The likelihood's parameters as rows see them; vectorised draws left of the rows."""
        found = self.likelihood.values_at_nodes(nuisance, env_index)
        if not self.likelihood.by_node:
            return found
        return {name: v.squeeze(-3) if v.dim() > 3 else v for name, v in found.items()}
