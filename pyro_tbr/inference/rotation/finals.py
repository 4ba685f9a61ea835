"""The last choice among candidates that the rotation search cannot tell apart.

The search judges a basis row by row: its estimates as independent, their likelihood as normal, a
few inclusion rates. Where several bases are close by that, the sparse stage itself decides: each
one's weights are brought to their optimum and the ELBOs of the rows compared. ELBOs within a unit
of each other are ties, so the bases behind stay in the report as alternatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_tbr.inference.rotation.choice import CLOSE, MOST_CLOSE, SAME_BASIS, RotationResult, ranked
from pyro_tbr.inference.rotation.search import Candidates
from pyro_tbr.posterior.identification import latent_match


def decided(found: RotationResult, elbo: Callable[[Candidates], float]) -> RotationResult:
    """The candidates ranked anew, those close to the best by their ELBO.

    Args:
        found: What the search found.
        elbo: Of a single candidate, without the first dimension.

    Returns:
        The same candidates. The evidence of a finalist is its ELBO, up to a constant that leaves
        the evidence of the best as it was; one with the latents of a finalist moves as that one
        does, all others as the finalists do on average.
    """
    everything, evidence = found.everything()
    finalists: list[int] = []
    double_of = torch.full(evidence.shape, -1, device=evidence.device)
    for place in torch.nonzero(evidence > found.evidence - CLOSE)[:, 0].tolist():
        matches = [latent_match(everything.basis[place], everything.basis[i]) for i in finalists]
        if matches and max(matches) > SAME_BASIS:
            double_of[place] = matches.index(max(matches))
        elif len(finalists) < MOST_CLOSE:
            double_of[place] = len(finalists)
            finalists.append(place)
    if len(finalists) < 2:
        return found

    scores = [elbo(everything.take(torch.tensor(place))) for place in finalists]
    shift = torch.tensor(scores).to(evidence) - evidence[finalists]
    evidence = evidence + torch.where(double_of < 0, shift.mean(), shift[double_of])
    return ranked(everything, evidence - evidence.max() + found.evidence)
