"""Methods that only the tables of RESULTS.md compare with, in the face of the package's baselines.

Those a user would compare with are in ``pyro_tbr.evaluation.baselines``.
"""

from rivals.autoencoder import AutoencoderLeafRegression
from rivals.dendronet import DendroNet
from rivals.invariant import IRM, GroupDRO
from rivals.moretrees import MOReTreeS

RIVALS = (DendroNet, MOReTreeS, AutoencoderLeafRegression, GroupDRO, IRM)

__all__ = [
    "IRM",
    "RIVALS",
    "AutoencoderLeafRegression",
    "DendroNet",
    "GroupDRO",
    "MOReTreeS",
]
