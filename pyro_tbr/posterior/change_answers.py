"""What is asked of the changes along the arcs: whether, how much, which to report."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
import torch

import pyro_tbr.posterior.tables as tables
from pyro_tbr.posterior.arcs import arc_pip_table
from pyro_tbr.posterior.credible_sets import credible_set_table
from pyro_tbr.posterior.selection import exceedances, selected
from pyro_tbr.posterior.view import PosteriorView, require_gates
from pyro_tbr.progress import querying


class ChangeAnswers(PosteriorView):
    """The methods of a :class:`Posterior` that speak of changes."""

    @torch.no_grad()
    def pips(self) -> pd.DataFrame:
        """Posterior inclusion probabilities of the changes.

        Returns:
            Rows (parent, child), columns latents; with several outcomes (outcome, latent). For a
            prior without gates (horseshoe, Gaussian) every change is included: 1. With a basis
            that of a latent is of all its functions, which change together.
        """
        pips = self.guide.delta_moments().inclusion[:, self.gate_places]
        return tables.pip_table(self.tree, pips, self.gate_names, self.outcome_names)

    def arc_pips(self, outcome: Hashable = None) -> pd.DataFrame:
        """Probability that a latent's effect changed along an arc for some outcome.

        With one outcome these are :meth:`pips`. For ``guide="tree"`` and mean field it follows from
        the inclusion probabilities, latents independent, and with ``SpikeSlabPrior(gates=)`` other
        than ``"separate"`` from what all outcomes say of the arc; for others it is a share of
        joint draws, standard error up to 0.008.

        Args:
            outcome: Name of the only outcome to ask for; ``None``: whichever.

        Returns:
            Rows (parent, child), columns latents, then ``any_slope``, that some latent's effect
            changed, and ``any``, that this or the intercept did.

        Raises:
            DataError: The prior has no gates, or there is no such outcome.
        """
        return arc_pip_table(self, outcome)

    @torch.no_grad()
    def deltas(self, level: float = 0.9) -> pd.DataFrame:
        """The changes, one row an arc, latent and outcome.

        Args:
            level: Probability of the interval.

        Returns:
            Columns parent, child, latent, outcome, pip, prior_pip, mean, sd, lower, upper (of the
            change, zero included, in outcome per unit of latent), lfsr (local false sign rate:
            probability that the change is not of its likelier sign; Stephens, Biostatistics 18
            (2017) 275) and log_odds (of inclusion: finite, and they differ where PIPs round to 1;
            NaN for a prior without gates). For a horseshoe, and where arcs with gates that are off
            change a little (``SpikeSlabPrior(spike_scale=)``), lower, upper and lfsr are those of
            draws (their seed their own), for others in closed form. A PIP is no p-value, and PIPs
            summed over arcs are an expected number of changes, not the probability of one: see
            :meth:`path_pips`. A change of the intercept is that at the latents' reference point:
            their mean where they are learnt or were centred, not where all are 0. With a basis
            there are rows for the curves of each latent too, with the latent's PIP.
        """
        return tables.deltas(self, level)

    @torch.no_grad()
    def path_pips(self, node: Hashable) -> pd.Series | pd.DataFrame:
        """Probability that some arc on the way from the root to a node changed.

        Arcs that share the evidence for one change have a small PIP each, and their path a large
        one. For ``guide="tree"`` it is a ratio of evidences, within 0.02 (the cap on components);
        for mean field one minus the product of 1 - PIP; for a sampled posterior a share of its
        draws; for other guides of 4,000 draws, standard error up to 0.008.

        Args:
            node: A node's label; for the root all are 0.

        Returns:
            By latent; with several outcomes latents by outcomes.
        """
        require_gates(self, "path_pips()")
        arcs = torch.tensor(self.tree.path(node), dtype=torch.int64)
        value = self.guide.path_inclusion(arcs)[self.gate_places].cpu().numpy()
        index = tables.names_index(self.gate_names, "latent")
        outcomes = tables.names_index(self.outcome_names, "outcome")
        table = pd.DataFrame(value, index=index, columns=outcomes)
        return table.iloc[:, 0].rename("path_pip") if len(outcomes) == 1 else table

    def credible_sets(
        self, coverage: float = 0.95, *, min_purity: float | None = None, num_draws: int = 4000
    ) -> pd.DataFrame:
        """Sets of arcs that hold a change with this probability or more, one change a set.

        How they are found: :mod:`pyro_tbr.posterior.credible_sets`.

        Args:
            coverage: Least probability that some arc of a set changed.
            min_purity: Least probability that an arc of a set that changed is the only one of it;
                ``None``: just above what independent arcs can reach, 0.25 at 0.95.
            num_draws: Joint draws of the gates, their seed their own; with 4,000 the standard
                error of a coverage of 0.95 is 0.003.

        Returns:
            Columns latent, outcome, set (1, 2, ...), arcs (a tuple of (parent, child), likeliest
            first), coverage, purity; no rows where nothing is sure.
        """
        with querying("credible_sets"):
            return credible_set_table(self, coverage, min_purity, num_draws)

    def select(self, fdr: float = 0.05) -> pd.DataFrame:
        """The changes to report so that the expected share of wrong ones is at most ``fdr``.

        Arcs without data below them are left out, as their PIP is the prior's. False ones are
        mostly true changes put on a neighbouring arc: where it matters which arc it is, see
        :meth:`credible_sets` first.

        Args:
            fdr: Bayesian false discovery rate; see :func:`~pyro_tbr.posterior.select_at_fdr`.

        Returns:
            Rows and columns of :meth:`deltas`, surest first; ``fdr``: the level of the list down
            to this row; ``determined``: whether the row's latent is (of an intercept always), as
            a PIP of another is that of one of several solutions. With a basis a row a latent, and
            ``size``: by how much its curve changes, as a root mean square over the rows of the fit
            (``mean`` is the change of its slope alone). The last row's, the realised level, is in
            ``.attrs["fdr"]``, what :meth:`identification` says in a sentence in
            ``.attrs["verdict"]``.
        """
        with querying("select"):
            return selected(self, fdr)

    def exceedance(self, threshold: float) -> pd.DataFrame:
        """Probabilities that changes are larger in size than a threshold; for every prior.

        Args:
            threshold: In outcome per unit of latent, 0 or more.

        Returns:
            Columns parent, child, latent, outcome, exceedance (a share of 4,000 draws, standard
            error up to 0.008), threshold.
        """
        with querying("exceedance"):
            return exceedances(self, threshold)

    @torch.no_grad()
    def shrinkage(self) -> pd.DataFrame:
        """How much of each change a horseshoe prior takes away, between 0 and 1.

        1 where the change is shrunk to nothing, 0 where it is left as the data have it; 1 less it
        is what comes closest to an inclusion probability, but it is none.

        Returns:
            Columns parent, child, latent, outcome, shrinkage (posterior mean).

        Raises:
            DataError: The prior is no horseshoe, or the guide is not exact along the tree.
        """
        shrinkage = {"shrinkage": self.guide.shrinkage().cpu().double()}
        return tables.long_table(self.tree, shrinkage, self.latent_names, self.outcome_names)
