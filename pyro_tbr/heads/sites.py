"""Rows as normal sites at the moments a guide gives their predictors."""

import torch
from torch import Tensor

from pyro_tbr.heads.guide import Guide
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.statistics import Sites


@torch.no_grad()
def row_moments(guide: Guide, block: DesignRows) -> tuple[Tensor, Tensor]:
    """Mean and variance of each row's predictor, (N, Q) each."""
    moments = guide.node_moments()
    found = predictor_moments(block.design.to(moments.mean), block.env_index, moments)
    return found.mean, found.var


@torch.no_grad()
def row_sites(guide: Guide, block: DesignRows, *, at_start: bool = False) -> tuple[Sites, Tensor]:
    """The normal that stands for each row at the guide's moments; root mean square of predictors.

    With ``at_start`` predictors are where the likelihood starts instead, as a guide knows nothing.
    """
    likelihood, nuisance = guide.head.likelihood, guide.nuisance_of(block)
    if at_start:
        mean, var = likelihood.start_moments(block.y, nuisance)
    else:
        mean, var = row_moments(guide, block)
    terms = likelihood.site_terms(block.y, mean, var, nuisance)
    log_norm = torch.zeros_like(terms.log_norm) if likelihood.exact else terms.log_norm
    sites = Sites(terms.precision, terms.response, log_norm, block.shares())
    return sites, (mean.square() + var).sqrt()
