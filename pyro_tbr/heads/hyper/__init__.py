"""Hyperparameters and their variational factors."""
