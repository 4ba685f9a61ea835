"""The changes: their table, log odds of inclusion, and inclusion of whole paths."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.mean_field import MeanFieldGuide
from pyro_tbr.heads.priors import SpikeSlabPrior
from pyro_tbr.heads.priors.delta_factors import SpikeSlabDeltas
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.posterior.drawing import delta_draws, site_draws, tree_messages
from pyro_tbr.posterior.selection import require_gates
from pyro_tbr.posterior.tables import delta_table
from pyro_tbr.tree import Tree

if TYPE_CHECKING:
    from pyro_tbr.posterior.posterior import Posterior

_NUM_DRAWS = 4000
_SEED = 141_421
_SURE = 1e-13  # where one minus a PIP in double precision has still three digits
_MAX_PASSES, _MAX_ARCS = 32, 4000  # passes for log odds of sure changes, and arcs in all of them


@torch.no_grad()
def log_odds(guide: Guide) -> Tensor:
    """Posterior log odds of inclusion, (A, W, Q), finite and in the order of the PIPs.

    They are the logits of the PIPs in double precision. Where a tree guide's PIP is within 1e-13
    of 1 they come from the log evidence with and without the change, one pass for every such arc
    of a latent and outcome, up to 32 and up to 4,000 arcs in all; any beyond get the logit of
    1 - 1e-13. NaN where the prior has no gates.
    """
    moments = guide.delta_moments()
    prior = guide.model.prior
    if not isinstance(prior, SpikeSlabPrior):
        return torch.full_like(moments.inclusion, torch.nan, dtype=torch.float64)
    if isinstance(guide, MeanFieldGuide):
        free = guide.informed_arcs.reshape(-1, 1, 1) & prior.changing()
        factor = guide.deltas
        assert isinstance(factor, SpikeSlabDeltas)
        logits = factor.logits.double()
        return torch.where(free, logits, _logit(moments.prior_inclusion))
    if not isinstance(guide, TreeGuide):
        return _logit(moments.inclusion)
    return _tree_log_odds(guide)


@torch.no_grad()
def deltas(posterior: Posterior, level: float) -> pd.DataFrame:
    """See ``Posterior.deltas``."""
    return delta_table(
        posterior.tree,
        posterior.guide.delta_moments(),
        posterior.scaling.scale,
        posterior.latent_names,
        posterior.outcome_names,
        level,
        log_odds(posterior.guide),
        delta_draws(posterior),
    )


def _tree_log_odds(guide: TreeGuide) -> Tensor:
    """See :func:`log_odds`."""
    pips = guide.current.pips
    assert pips is not None  # the prior has gates
    found = _logit(pips)
    # Without data below an arc its odds are the prior's, whatever they are.
    sure = (pips > 1 - _SURE) & guide.informed_arcs & (guide.law()["inclusion_prob"] < 1)
    number = sure.cumsum(-1) * sure  # 1, 2, ... within a latent and outcome
    found = torch.where(sure, _logit(pips.new_tensor(1 - _SURE)), found)
    passes = min(_MAX_PASSES, _MAX_ARCS // max(1, sure.shape[-1]), int(number.max()))
    if passes:
        whole = tree_messages(guide, guide.law(), sweeps=1).log_evidence
    for one in range(1, passes + 1):
        here = number == one
        off = _log_off(guide, here, whole, sweeps=1).unsqueeze(-1)
        found = torch.where(here, torch.maximum(found, -off), found)
    return found.permute(2, 0, 1)


def _log_off(guide: TreeGuide, arcs: Tensor, log_evidence: Tensor, sweeps: int) -> Tensor:
    """Log posterior probability that none of some arcs changed, (W, Q).

    It is the log evidence without changes there, over that with, times the prior's probability.

    Args:
        guide: The guide.
        arcs: Which arcs, (W, Q, A) bool.
        log_evidence: That with changes, (W, Q).
        sweeps: Of messages.
    """
    law = guide.law()
    rate = law["inclusion_prob"]
    law["inclusion_prob"] = torch.where(arcs, 0.0, rate)
    without = tree_messages(guide, law, sweeps).log_evidence
    return without - log_evidence + torch.where(arcs, torch.log1p(-rate), 0.0).sum(-1)


def _logit(prob: Tensor) -> Tensor:
    """Finite also at 0 and 1."""
    prob = prob.double()
    return prob.clamp(min=1e-300).log() - (1 - prob).clamp(min=1e-16).log()


@torch.no_grad()
def path_pips(posterior: Posterior, node: Hashable) -> pd.Series | pd.DataFrame:
    """See ``Posterior.path_pips``."""
    require_gates(posterior, "path_pips()", "exceedance(threshold)")
    tree, guide = posterior.tree, posterior.guide
    arcs = path_arcs(tree, tree.index(node))
    if isinstance(guide, TreeGuide):
        value = _tree_path_pips(guide, arcs)
    elif isinstance(guide, MeanFieldGuide):
        value = 1 - (1 - guide.delta_moments().inclusion[arcs].double()).prod(0)
    else:
        blocks = site_draws(posterior, "gates", _NUM_DRAWS, _SEED)
        value = torch.cat([block[:, arcs].any(1) for block in blocks]).double().mean(0)
    index = pd.Index(posterior.latent_names, name="latent")
    outcomes = pd.Index(posterior.outcome_names, name="outcome", tupleize_cols=False)
    table = pd.DataFrame(value.cpu().numpy(), index=index, columns=outcomes)
    return table.iloc[:, 0].rename("path_pip") if len(outcomes) == 1 else table


def path_arcs(tree: Tree, node: int) -> Tensor:
    """Arcs from the root to a node, (n,) int64; an arc's position is its child's minus one."""
    arcs = []
    while node > 0:
        arcs.append(node - 1)
        node = int(tree.arc_parent[node - 1])
    return torch.tensor(arcs[::-1], dtype=torch.int64)


def _tree_path_pips(guide: TreeGuide, arcs: Tensor) -> Tensor:
    """(W, Q): see :func:`_log_off`."""
    pips = guide.current.pips
    assert pips is not None  # the prior has gates
    single = pips[..., arcs.to(pips.device)]
    if not len(arcs):
        return single.sum(-1)
    on_path = torch.zeros_like(pips, dtype=torch.bool)
    on_path[..., arcs] = True
    now = guide.current.log_evidence
    value = -torch.expm1(_log_off(guide, on_path, now, sweeps=2))
    # The cap's error stays within what the single arcs allow.
    return torch.minimum(torch.maximum(value, single.amax(-1)), single.sum(-1).clamp(max=1.0))
