"""Sums over all patterns of changes, by messages along the tree."""
