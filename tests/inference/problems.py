"""Small problems with a known answer, shared by the tests of this room."""

import torch

import pyro_tbr as tbr
from pyro_tbr.guides import statistics
from pyro_tbr.inference.dense_stage import StandardRows
from pyro_tbr.models import GaussianLikelihood

QUICK = tbr.FitOptions(restarts=16, rotation_steps=600, sparse_steps=100)


def standard_rows(data):
    """Rows of a simulation in the units of training."""
    y = torch.as_tensor(data.y).reshape(len(data.x), -1)
    y = (y - y.nanmean(0)) / (y - y.nanmean(0)).square().nanmean(0).sqrt()
    env = torch.tensor([data.tree.index(label) for label in data.env])
    return StandardRows(torch.as_tensor(data.x), y.float(), env)


def design_statistics(design, y, env_index):
    return statistics(design, y, env_index, GaussianLikelihood())
