"""Weights on a tree, given a design: priors with their factors of q, likelihoods, guides."""
