"""Bins of inclusion probabilities in which tables compare them with the share of true changes."""

import numpy as np

BINS = np.array([0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
