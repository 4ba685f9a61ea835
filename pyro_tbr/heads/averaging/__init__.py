"""Averages over bases of the latents: a guide in each, and one guide that is their mixture."""

from pyro_tbr.heads.averaging.averaged_guide import AveragedGuide

__all__ = ["AveragedGuide"]
