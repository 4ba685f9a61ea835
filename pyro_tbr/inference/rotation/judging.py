"""The ELBO of a basis of the latents: what decides between bases that are close."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_tbr.heads import Head, Statistics, TreeGuide
from pyro_tbr.inference.rotation.search import Candidates, expand_basis

_COMPONENTS = 8  # of a message, where ELBOs are only compared
_SWEEPS = 4


def judging_head(head: Head) -> Head:
    """The head by whose ELBO bases are compared: small changes are zero unless their size is known.

    Outcomes are taken alone. Parts are shared with the head given where they are the same.
    """
    return Head(head.tree, head.prior.without_learnt_spike(), head.likelihood.apart())


@torch.no_grad()
def basis_elbo(head: Head, nodes: Tensor, stats: Statistics, candidate: Candidates) -> float:
    """ELBO of one candidate's latents, weights and hyperparameters moved to their optimum.

    Args:
        head: See :func:`judging_head`.
        nodes: Nodes that have rows, (V,) bool.
        stats: Flattened, of the latents that the candidate's basis is relative to. Sites of
            outcomes that are not normal stay where they are.
        candidate: Without the first dimension, in the model's units.
    """
    like = head.prior.root_loc
    # Mean field between latents, whose ELBO is the better one.
    guide = TreeGuide(head, nodes, _COMPONENTS, coupled=False).to(like.device)
    guide.start(candidate.root.to(like), candidate.deltas.to(like))
    alone = stats._replace(joint=None)
    turned = alone.transform(expand_basis(candidate.basis, candidate.offset, stats.gram.shape[-1]))
    guide.update(turned, sweeps=_SWEEPS)
    return guide.elbo(turned).item()
