"""Small problems with a known answer, shared by the tests of this room."""

import torch

import pyro_tbr as tbr
from pyro_tbr.heads import DesignRows
from pyro_tbr.heads.statistics import Sites, statistics
from pyro_tbr.inference.encoder.rows import StandardRows

QUICK = tbr.FitOptions(restarts=4, sparse_steps=30, mixture_components=8)
# Every stage, where what a fit finds does not matter.
BRIEF = tbr.FitOptions(restarts=1, sparse_steps=5, mixture_components=4, batch_size=64)


def standard_rows(data):
    """Rows of a simulation in the units of training."""
    y = torch.as_tensor(data.y).reshape(len(data.x), -1)
    y = (y - y.nanmean(0)) / (y - y.nanmean(0)).square().nanmean(0).sqrt()
    env = torch.tensor([data.tree.index(label) for label in data.env])
    return StandardRows(torch.as_tensor(data.x), y.float(), env)


def design_statistics(design, y, env_index, weights=None):
    """Statistics of rows with normal noise."""
    rows = DesignRows(design, y, env_index)
    shares = rows.shares(weights)
    return statistics(rows, Sites(torch.ones_like(shares), y, torch.zeros_like(shares), shares))
