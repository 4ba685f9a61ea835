"""The bases behind a posterior by ``average_bases``: how good each is, and how alike."""

from __future__ import annotations

import pandas as pd

from pyro_tbr.errors import DataError
from pyro_tbr.heads.averaging import AveragedGuide
from pyro_tbr.posterior.view import PosteriorView


def bases_table(view: PosteriorView) -> pd.DataFrame:
    """See ``Posterior.bases``."""
    guide = view.guide
    if not isinstance(guide, AveragedGuide):
        raise DataError(
            "bases() is of an average over bases, and this posterior is of one basis: use "
            "average_bases(posterior).bases()"
        )
    table = pd.DataFrame({"gap": guide.gap.cpu().numpy(), "weight": guide.weight.cpu().numpy()})
    for k, name in enumerate(view.latent_names[: view.model.latent_dim]):
        table[name] = guide.agreement[:, k].cpu().numpy()
    return table.rename_axis("basis")
